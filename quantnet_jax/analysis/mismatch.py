r"""Gradient mismatch: the gradient that a method uses against the loss that it has.

The loss L(w) is that of the forward pass that the method trains with, as a function of
the latent kernels: of the soft weights for QuantNet and tanh_sign, of the hard weights
for straight-through members, penalty included, on a fixed batch without augmentation,
BatchNorm by batch statistics. g is what autodiff returns for it. A hard loss is
piecewise constant, so what descent on the latent weights can mean is the smoothed loss

  L_s(w) = E L(w + s z),  z normal, s in units of each kernel's root mean square,
  G_s = grad L_s = E z (L(w + s z) - L(w - s z)) / 2s.

For soft members s -> 0 gives the gradient of L itself. From K antithetic directions z_i
with central differences d_i,

  <g, G> = mean of d_i <g, z_i>,  |G|^2 = mean over i != j of d_i d_j <z_i, z_j>,

both unbiased; their quotient is the cosine.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.training import experiment, parts
from quantnet_jax.trees import tree
from quantnet_jax.trees.paths import replace

GROUPS = 20
"""Of directions, over which the jackknife goes."""
PyTree = Any


def quantized(exp: experiment.Experiment, params: PyTree) -> dict[str, jax.Array]:
    """{path: kernel} of the tensors that are quantized."""
    paths = {path for bucket in exp.buckets for path in bucket.paths}
    return {k: x for k, x in tree.flatten(params).items() if k in paths}


def make_losses(exp: experiment.Experiment, images: int) -> tuple[Callable, Callable]:
    """(loss of the forward pass that is trained, loss of the hard weights).

    Both are `(kernels, params, batch_stats, step) -> float32`, on the first training
    images.
    """
    quantizer, task = tree.bucket_quantizer(exp.buckets), exp.task
    model = parts.make_model(exp.config, task.model_options, None)
    data = {k: x[:images] for k, x in exp.feed.train_data.items()}
    batch = {
        "position": np.arange(images, dtype=np.uint32),
        "mask": np.ones(images, np.float32),
    }
    examples = task.prepare(None, {**data, **batch}, seed=0, train=False)

    def loss(weights, batch_stats, step):
        # Activations as in training both times: they have no part in the comparison.
        training = {"step": step}
        outputs, _ = model.apply(
            {"params": weights, "batch_stats": batch_stats, "training": training},
            examples["input"],
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean(task.loss(outputs, examples, train=False))

    def own(kernels, params, batch_stats, step):
        model_params = replace(params["model"], kernels)
        weights = quantizer.soft(params["quant"], model_params, step=step)
        penalty = quantizer.penalty(params["quant"], model_params, step=step)
        return loss(weights, batch_stats, step) + penalty

    def hard(kernels, params, batch_stats, step):
        model_params = replace(params["model"], kernels)
        weights = tree.dequantize_tree(quantizer.hard(params["quant"], model_params))
        return loss(weights, batch_stats, step)

    return jax.jit(own), jax.jit(hard)


def cosine(
    loss: Callable,
    kernels: dict[str, np.ndarray],
    gradient: dict[str, np.ndarray],
    spread: float,
    directions: int,
    *,
    seed: int,
) -> dict[str, float | None]:
    """Cosine of a gradient and that of a smoothed loss, with its standard error.

    Args:
      loss: `kernels -> float`.
      kernels: where.
      gradient: that is compared, like `kernels`.
      spread: of the smoothing, in units of each kernel's root mean square.
      directions: how many are tried, at least twice `GROUPS`.
      seed: of the directions.

    Returns:
      {'cosine', 'error' (by the jackknife over `GROUPS`), 'length' (of the smoothed
      gradient), 'used' (of `gradient`)} in coordinates that are weights over their root
      mean square; None where the gradient is too short to tell.
    """
    names = sorted(kernels)
    units = {k: float(np.sqrt(np.mean(np.square(kernels[k])))) for k in names}
    g = np.concatenate([np.ravel(gradient[k]) * units[k] for k in names])
    g = g.astype(np.float64)
    rng = np.random.default_rng(seed)
    sums = np.zeros((GROUPS, g.size))
    squares, counts = np.zeros(GROUPS), np.zeros(GROUPS)
    for i in range(directions):
        z = {k: rng.standard_normal(kernels[k].shape) for k in names}
        step = {k: np.float32(spread * units[k]) * z[k].astype(np.float32) for k in z}
        ahead = loss({k: kernels[k] + step[k] for k in names})
        behind = loss({k: kernels[k] - step[k] for k in names})
        d = (ahead - behind) / (2 * spread)
        v = np.concatenate([np.ravel(z[k]) for k in names])
        sums[i % GROUPS] += d * v
        squares[i % GROUPS] += d * d * (v @ v)
        counts[i % GROUPS] += 1

    def quotient(kept):
        total, n = sums[kept].sum(0), counts[kept].sum()
        square = (total @ total - squares[kept].sum()) / (n * (n - 1))
        if square <= 0 or not g.any():
            return math.nan, math.nan
        length = math.sqrt(square)
        return float(total @ g) / n / (np.linalg.norm(g) * length), length

    groups = np.arange(GROUPS)
    value, length = quotient(groups)
    left_out = np.array([quotient(groups != i)[0] for i in groups])
    spread_of = (GROUPS - 1) / GROUPS * np.sum((left_out - left_out.mean()) ** 2)
    found = {"cosine": value, "error": math.sqrt(spread_of), "length": length}
    finite = {k: v if math.isfinite(v) else None for k, v in found.items()}
    return finite | {"used": float(np.linalg.norm(g))}
