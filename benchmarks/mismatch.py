"""Measures the gradient mismatch: the gradient used against finite differences.

    python benchmarks/mismatch.py          # writes results/mismatch.json, ten minutes

What is compared. The loss L(w) is that of the forward pass that the method trains with,
as a function of the latent kernels: of the soft weights for QuantNet and tanh_sign, of
the hard weights for straight-through members (whose forward pass is the hard one),
penalty included, on a fixed batch without augmentation, BatchNorm by batch statistics.
g is what autodiff returns for it: the gradient that the method uses. A hard loss is
piecewise constant, so its own gradient is zero; what descent on the latent weights can
mean is the smoothed loss L_s(w) = E L(w + s z), z normal, s in units of each kernel's
root mean square. Its exact gradient is G_s = E z (L(w + s z) - L(w - s z)) / 2s. For
soft members s -> 0 gives the gradient of L itself.

Estimator. From K antithetic directions z_i with central differences d_i: <g, G> by the
mean of d_i <g, z_i>, |G|^2 by the mean of d_i d_j <z_i, z_j> over pairs i != j, both
unbiased; their quotient is the cosine. Its standard error is that of the jackknife over
20 groups of directions. Coordinates are weights in units of their kernel's root mean
square.
"""

import argparse
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as a script it finds only benchmarks/

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import gap_page  # noqa: E402
from configs import default  # noqa: E402
from quantnet_jax import data as qdata  # noqa: E402
from quantnet_jax import quantizers  # noqa: E402
from quantnet_jax.core import tree  # noqa: E402
from quantnet_jax.logging import records  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402
from quantnet_jax.tasks import classification as losses  # noqa: E402
from quantnet_jax.training import experiment, parts  # noqa: E402

METHODS = (
    *("quantnet", "tanh_sign", "clipped_ste", "binary_ste", "approx_sign", "irnet"),
)
FRACTIONS = (0.0, 1 / 3, 2 / 3, 1.0)
SMALL, LARGE = 0.05, 0.3
GROUPS = 20
RATES = ROOT / "results" / "gap_table" / "bundled"
PyTree = Any


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/mismatch.py", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--directions", type=int, default=300)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "results/mismatch.json"
    )
    args = parser.parse_args(argv)
    if args.directions < 2 * GROUPS:
        parser.error(f"--directions={args.directions}, expected at least {2 * GROUPS}")
    began = time.monotonic()
    rows = {}
    for name in args.methods:
        config = configuration(name, args.epochs)
        rows[name] = measure(config, args.directions, args.images)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    records.write_json(
        args.out,
        {
            "benchmark": "cosine of the gradient used and the smoothed loss' gradient",
            "network": "small, width 8, bundled images (2,000), batch 64",
            "epochs": args.epochs,
            "directions": args.directions,
            "images": args.images,
            "spreads": {"small": SMALL, "large": LARGE},
            "methods": rows,
            "seconds": time.monotonic() - began,
            **provenance(),
        },
    )
    print(f"wrote {args.out}")
    return 0


def configuration(method: str, epochs: float) -> Any:
    """A small network on a part of the bundled images."""
    c = default.get_config()
    c.model = ConfigDict({"name": "small", "width": 8})
    c.data.train_size, c.data.test_size = 2000, 500
    c.epochs = epochs
    c.quantizer.name = method
    c.quantizer[method] = ConfigDict(quantizers.recipe(method))
    rate = gap_page.best_rate(RATES, method)  # of a larger network on the same images
    c.weights.learning_rate = rate or c.weights.learning_rate
    return c


def measure(config: Any, directions: int, images: int) -> dict[str, Any]:
    """Trains one method and measures it along the way.

    Returns:
      {'rate', 'loss' ('soft' or 'hard'), 'points': [{'fraction', 'step', 'own_small',
      'own_large', 'hard_large': {'cosine', 'error'}}]}; for straight-through members
      'hard_large' is 'own_large'.
    """
    exp = experiment.build(config, jax.local_devices()[:1])
    wanted = {round(f * exp.steps): f for f in FRACTIONS}
    own, hard = make_losses(exp, images)
    gradient = jax.jit(jax.grad(own))
    straight = quantizers.MEMBERS[config.quantizer.name].forward == "hard"

    def at(state, step):
        host = jax.device_get(state)
        rest = (host.params, host.batch_stats, host.step)
        kernels = quantized(exp, host.params["model"])
        g = jax.device_get(gradient(kernels, *rest))

        def estimate(loss, spread):
            value = lambda kernels: float(loss(kernels, *rest))
            return cosine(value, kernels, g, spread, directions, seed=step)

        point = {"fraction": wanted[step], "step": step}
        point["own_small"] = estimate(own, SMALL)
        point["own_large"] = large = estimate(own, LARGE)
        return point | {"hard_large": large if straight else estimate(hard, LARGE)}

    state, batches, points = exp.state, exp.train_batches(0), []
    for step in range(exp.steps + 1):
        if step in wanted:
            points.append(at(state, step))
        if step < exp.steps:
            state, _ = exp.train_step(state, exp.train_data, next(batches))
    return {
        "rate": float(config.weights.learning_rate),
        "loss": "hard" if straight else "soft",
        "weights": sum(k.size for k in quantized(exp, state.params["model"]).values()),
        "points": points,
    }


def quantized(exp: experiment.Experiment, params: PyTree) -> dict[str, jax.Array]:
    """{path: kernel} of the tensors that are quantized."""
    paths = {path for bucket in exp.buckets for path in bucket.paths}
    return {k: x for k, x in tree.flatten(params).items() if k in paths}


def make_losses(exp: experiment.Experiment, images: int) -> tuple[Callable, Callable]:
    """(loss of the forward pass that is trained, loss of the hard weights).

    Both are `(kernels, params, batch_stats, step) -> float32`, on fixed images.
    """
    quantizer = tree.tree_quantizer(exp.buckets)
    model = parts.make_model(exp.config, exp.task.model_options, None)
    batch = {k: x[:images] for k, x in exp.feed.train_data.items()}
    batch = {**batch, "position": np.arange(images, dtype=np.uint32)}
    batch["mask"] = np.ones(images, np.float32)
    batch = qdata.prepare(
        None,
        batch,
        seed=0,
        train=False,
        pad=0,
        flip=False,
        mean=exp.feed.mean,
        std=exp.feed.std,
        dtype=jnp.float32,
    )

    def task(weights, batch_stats):
        logits, _ = model.apply(
            {"params": weights, "batch_stats": batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean(losses.cross_entropy(logits, batch["label"], 0.0))

    def own(kernels, params, batch_stats, step):
        model_params = replaced(params["model"], kernels)
        weights = quantizer.soft(params["quant"], model_params, step=step)
        penalty = quantizer.penalty(params["quant"], model_params, step=step)
        return task(weights, batch_stats) + penalty

    def hard(kernels, params, batch_stats, step):
        del step
        model_params = replaced(params["model"], kernels)
        weights = tree.dequantize_tree(quantizer.hard(params["quant"], model_params))
        return task(weights, batch_stats)

    return jax.jit(own), jax.jit(hard)


def replaced(params: PyTree, kernels: dict[str, jax.Array]) -> PyTree:
    """`params` with some tensors of other values."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: kernels.get(
            jax.tree_util.keystr(path, simple=True, separator="/"), x
        ),
        params,
    )


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
      {'cosine', 'error', 'length' (of the smoothed gradient), 'used' (of `gradient`)}
      in coordinates that are weights over their root mean square; None where the
      gradient is too short to tell.
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


if __name__ == "__main__":
    sys.exit(main())
