"""Soft against hard: metrics through one forward pass, and the gap of each layer."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax import models
from quantnet_jax.core import regularizers
from quantnet_jax.core.qtensor import QTensor, dequantize, is_qtensor
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.distributed.runners import REPLICATED, STATE
from quantnet_jax.evaluation.forward import make_forward, make_tally
from quantnet_jax.logging.scores import unit_of
from quantnet_jax.tasks import Metric, Task
from quantnet_jax.trees import tree

PyTree = Any
BINS = 64
REACH = 1.25
"""Histograms cover [-REACH, REACH] times the largest hard value; values beyond it are
counted in the outermost bins."""
AHEAD = 4
"""Streamed batches whose results are still being computed when more are sent to the
devices; of a device-resident dataset, only rows are sent."""
DECIDED = 0.1
"""A weight is undecided if soft and hard differ by more than this share of the largest
hard value; for binary weights: if |soft| < 0.9."""


class Realized(NamedTuple):
    """The two weight trees of a state and how far apart they are.

    Attributes:
      soft, hard: float32 trees like the model's parameters.
      codes: {path: uint8 codes} of the quantized tensors.
      layers: {path: {'distance': mean squared difference of soft and hard relative to
        the mean square of hard, 'undecided': fraction, 'counts': int32[BINS], 'bits':
        of a code without repeated levels, 'floats': int32[2], how many levels and
        scales are stored, 'kurtosis' of the latent weights, 'off': mean distance of
        latent weights from their hard values, relative to the root mean square}}.
    """

    soft: PyTree
    hard: PyTree
    codes: dict[str, jax.Array]
    layers: dict[str, dict[str, jax.Array]]


REALIZED = Realized._make((STATE, STATE, REPLICATED, REPLICATED))
"""Where the parts go, for `Runner.compile`: the host reads the last two."""


def make_fold(quantizer: Quantizer) -> Callable:
    """Makes `fold(params, batch_stats, axis_name)`: hard weights, normalizations in.

    With `QTensor` leaves, for a runner to compile.
    """

    def folded(params, stats, axis_name):
        del axis_name
        return models.fold(quantizer.hard(params["quant"], params["model"]), stats)

    return folded


def make_realize(quantizer: Quantizer) -> Callable:
    """Makes `realize(state, axis_name) -> Realized`, for a runner to compile."""

    def realize(state, axis_name) -> Realized:
        del axis_name
        model, quant = state.params["model"], state.params["quant"]
        soft = quantizer.soft(quant, model, step=state.step)
        hard = quantizer.hard(quant, model)
        soft_leaves, latent = tree.flatten(soft), tree.flatten(model)
        quantized = {p: x for p, x in tree.flatten(hard).items() if is_qtensor(x)}
        return Realized(
            soft=soft,
            hard=tree.dequantize_tree(hard),
            codes={path: qt.codes for path, qt in quantized.items()},
            layers={
                p: compare(soft_leaves[p], qt) | of_latent(latent[p], qt)
                for p, qt in quantized.items()
            },
        )

    return realize


def compare(soft: jax.Array, qt: QTensor) -> dict[str, jax.Array]:
    """How far soft weights are from their hard values; see `Realized.layers`."""
    hard = dequantize(qt)
    unit = jnp.max(jnp.abs(qt.levels)) * qt.scale
    unit = jnp.where(unit == 0.0, 1.0, unit)
    difference = soft - hard
    scaled = jnp.clip(soft / unit, -REACH, REACH)
    counts, _ = jnp.histogram(scaled, BINS, (-REACH, REACH))
    bits, levels = qt.bits, qt.levels.size
    if qt.levels.ndim == 1:  # as `qtensor.trim` will leave it
        count = 1 + jnp.sum(qt.levels[1:] != qt.levels[:-1])
        fewer = jnp.maximum(1, jnp.sum(count > 2 ** jnp.arange(8)))
        levels = jnp.where((fewer < bits) & (count > 1), count, levels)
        bits = jnp.where(count > 1, fewer, bits)
    return {
        "distance": jnp.mean(difference**2) / (jnp.mean(hard**2) + 1e-30),
        "undecided": jnp.mean(jnp.abs(difference / unit) > DECIDED),
        "counts": counts.astype(jnp.int32),
        "bits": jnp.asarray(bits, jnp.int32),
        "floats": jnp.asarray([levels, qt.scale.size], jnp.int32),
    }


def of_latent(w: jax.Array, qt: QTensor) -> dict[str, jax.Array]:
    """How latent weights are distributed; see `Realized.layers`."""
    off = jnp.mean(jnp.abs(w - dequantize(qt)))
    rms = jnp.sqrt(jnp.mean(w * w)) + 1e-30
    return {"kurtosis": regularizers.kurtosis(w), "off": off / rms}


def score(
    tally: Callable,
    outputs_of: Callable[[PyTree], dict[str, PyTree]],
    data: PyTree,
    batches: Iterable[PyTree],
    primary: Metric,
) -> dict[str, float]:
    """Evaluates weight trees on every example once, through one compiled function.

    Args:
      tally: compiled function of `quantnet_jax.evaluation.forward`.
      outputs_of: `batch -> outputs` of each tree, by one compiled function: of 'soft',
        'hard' and perhaps 'hard_bn' (recalibrated BatchNorm).
      data: on the devices, or None.
      batches: sharded, with masks.
      primary: the metric of the task.

    Returns:
      'soft', 'hard', 'hard_bn' (means of the primary metric), 'gap' and 'gap_bn' (by
      how much 'hard' and 'hard_bn' are worse than 'soft'), 'loss_soft', 'loss_hard',
      other metrics likewise, what the task compares soft and hard by, 'examples'
      (count), and 'interval': half the width of the 95 % interval of 'hard', 1.96
      standard errors over the examples.
    """
    waiting: list[dict[str, Any]] = []
    for batch in batches:
        waiting.append(tally(data, batch, outputs_of(batch)))
        # The host runs ahead of the devices, but not so far that they hold all images.
        if "index" not in batch and len(waiting) > AHEAD:
            jax.block_until_ready(waiting[-1 - AHEAD])
    if not waiting:
        raise ValueError("an evaluation needs at least one batch")
    # Read once, when all of them are under way; summed in double precision.
    sums = jax.tree.map(lambda *x: sum(map(float, x)), *jax.device_get(waiting))
    examples, unit = sums["examples"], unit_of(primary._asdict())
    of_tree = {name: values[primary.name] for name, values in sums["trees"].items()}
    result: dict[str, float] = {k: v / examples for k, v in of_tree.items()}
    for name in ("soft", "hard"):
        others = {k: v for k, v in sums["trees"][name].items() if k != primary.name}
        result |= {f"{k}_{name}": v / examples for k, v in others.items()}
    result |= {name: value / examples for name, value in sums["compare"].items()}
    for name, gap in (("hard", "gap"), ("hard_bn", "gap_bn")):
        if name in of_tree:
            result[gap] = unit.gap(of_tree["soft"], of_tree[name]) / examples
    result["examples"] = int(examples)
    spread = sums["squares"] - of_tree["hard"] ** 2 / examples
    error = math.sqrt(max(0.0, spread) / max(1.0, examples - 1)) / math.sqrt(examples)
    result["interval"] = 1.96 * error
    return result


def evaluate_tree(
    apply: Callable,
    hard: PyTree,
    task: Task,
    batches: Iterable[PyTree],
    *,
    soft: PyTree = None,
    data: PyTree = None,
) -> dict[str, float]:
    """Evaluates any parameter tree with `QTensor` leaves, whoever made it.

    Args:
      apply: `(params, input) -> outputs` of a model, in evaluation mode.
      hard: the parameters; `QTensor` leaves are dequantized.
      task: what the outputs are judged by.
      batches: what `task.prepare(data, batch, seed=0, train=False)` takes, with 'mask'.
      soft: weights to compare with; default the hard ones, whose gap is 0.
      data: see `batches`.

    Returns:
      As `score`.

    Example:
      >>> from quantnet_jax.tasks import Source, reconstruction
      >>> ready = lambda data, batch, *, seed, train: dict(batch)
      >>> task = reconstruction(Source(ready, (1, 1, 1), (0.0,), (1.0,), {}))
      >>> batch = {"image": jnp.ones((2, 1, 1, 1)), "mask": jnp.ones(2)}
      >>> hard = {"scale": jnp.full((1, 1, 1), 0.9)}
      >>> result = evaluate_tree(lambda w, x: x * w["scale"][None], hard, task, [batch])
      >>> round(result["hard"], 2), result["gap"], result["examples"]
      (20.0, 0.0, 2)
    """
    prepare = functools.partial(task.prepare, seed=0, train=False)
    forward = make_forward(lambda v, x, train: apply(v["params"], x), prepare)
    tally = make_tally(task, prepare)
    hard = tree.dequantize_tree(hard)
    trees = {"soft": hard if soft is None else soft, "hard": hard}
    compiled = jax.jit(functools.partial(forward, axis_name=None))
    return score(
        jax.jit(functools.partial(tally, axis_name=None)),
        lambda batch: {name: compiled(w, data, batch) for name, w in trees.items()},
        data,
        batches,
        task.primary,
    )


def layer_report(
    realized: Realized, previous: dict[str, np.ndarray] | None
) -> dict[str, dict]:
    """Plain numbers of every quantized tensor, for the logs and the final table.

    Args:
      realized: of the current state.
      previous: codes at the evaluation before, or None.

    Returns:
      {path: {'shape', 'bits', 'floats' ([levels, scales] stored beside the codes),
      'values' ([distinct codes of the tensor, most in one output channel]), 'distance',
      'undecided', 'kurtosis', 'off', 'flips' (fraction of codes that differ from
      `previous`, None without
      it), 'histogram': {'edges', 'counts'}}}.
    """
    edges = np.linspace(-REACH, REACH, BINS + 1).round(6).tolist()
    report = {}
    layers, every_code = jax.device_get((realized.layers, realized.codes))
    for path, layer in layers.items():
        codes = every_code[path]
        flips = None
        if previous is not None:
            flips = float(np.mean(codes != previous[path]))
        report[path] = {
            "shape": list(codes.shape),
            "bits": int(layer["bits"]),
            "floats": layer["floats"].tolist(),
            "values": _distinct(codes),
            "distance": float(layer["distance"]),
            **{k: float(layer[k]) for k in ("undecided", "kurtosis", "off")},
            "flips": flips,
            "histogram": {"edges": edges, "counts": layer["counts"].tolist()},
        }
    return report


def _distinct(codes: np.ndarray) -> list[int]:
    """[Distinct codes of the tensor, the most that one output channel has]."""
    channels = codes.shape[-1]
    # One bin for each channel and code; faster than sorting the codes of each channel.
    bins = codes.reshape(-1, channels) + 256 * np.arange(channels)
    counts = np.bincount(bins.reshape(-1), minlength=256 * channels)
    used = counts.reshape(channels, 256) > 0
    return [int(used.any(0).sum()), int(used.sum(1).max())]


def flip_rate(layers: dict[str, dict]) -> float | None:
    """Fraction of all codes that flipped since the evaluation before; None at first.

    Args:
      layers: of `layer_report`.
    """
    sizes = {path: math.prod(layer["shape"]) for path, layer in layers.items()}
    if not sizes or any(layer["flips"] is None for layer in layers.values()):
        return None
    flipped = sum(layers[path]["flips"] * size for path, size in sizes.items())
    return flipped / sum(sizes.values())
