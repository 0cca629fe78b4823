"""Soft against hard: accuracies through one forward pass, and the gap of each layer."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.core import tree
from quantnet_jax.core.qtensor import QTensor, dequantize, is_qtensor
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.distributed.runners import SAME, STATE

PyTree = Any
BINS = 64
REACH = 1.25
"""Histograms cover [-REACH, REACH] times the largest hard value; values beyond it are
counted in the outermost bins."""
AHEAD = 4
"""Streamed batches whose results are still being computed when more are sent to the
devices; of a set that they hold, only rows are sent."""
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
        of a code, 'floats': int32[2], how many levels and scales are stored}}.
    """

    soft: PyTree
    hard: PyTree
    codes: dict[str, jax.Array]
    layers: dict[str, dict[str, jax.Array]]


REALIZED = Realized._make((STATE, STATE, SAME, SAME))
"""Where the parts go, for `Runner.compile`: the host reads the last two."""


def make_realize(quantizer: Quantizer) -> Callable:
    """Makes `realize(state, axis_name) -> Realized`, for a runner to compile."""

    def realize(state, axis_name) -> Realized:
        del axis_name
        model, quant = state.params["model"], state.params["quant"]
        soft = quantizer.soft(quant, model, step=state.step)
        hard = quantizer.hard(quant, model)
        soft_leaves = tree.flatten(soft)
        quantized = {p: x for p, x in tree.flatten(hard).items() if is_qtensor(x)}
        return Realized(
            soft=soft,
            hard=tree.dequantize_tree(hard),
            codes={path: qt.codes for path, qt in quantized.items()},
            layers={p: compare(soft_leaves[p], qt) for p, qt in quantized.items()},
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
    return {
        "distance": jnp.mean(difference**2) / (jnp.mean(hard**2) + 1e-30),
        "undecided": jnp.mean(jnp.abs(difference / unit) > DECIDED),
        "counts": counts.astype(jnp.int32),
        "bits": jnp.asarray(qt.bits, jnp.int32),
        "floats": jnp.asarray([qt.levels.size, qt.scale.size], jnp.int32),
    }


def score(
    tally: Callable,
    forward: Callable,
    trees: dict[str, PyTree],
    data: PyTree,
    batches: Iterable[PyTree],
) -> dict[str, float]:
    """Evaluates weight trees on every example once, through one compiled function.

    Args:
      tally, forward: compiled functions of `quantnet_jax.evaluation.forward`.
      trees: 'soft', 'hard' and perhaps 'hard_bn' (re-estimated BatchNorm), folded.
      data: on the devices, or None.
      batches: sharded, with masks.

    Returns:
      'soft', 'hard', 'hard_bn' (accuracies, fractions), 'gap' (soft - hard), 'gap_bn'
      (soft - hard_bn), 'loss_soft', 'loss_hard', 'kl' (means), 'examples' (count).
    """
    waiting: list[dict[str, jax.Array]] = []
    for batch in batches:
        logits = {name: forward(tree, data, batch) for name, tree in trees.items()}
        new = tally(data, batch, logits["soft"], logits["hard"])
        if "hard_bn" in logits:
            again = tally(data, batch, logits["soft"], logits["hard_bn"])
            new = new | {"hard_bn": again["hard"]}
        waiting.append(new)
        # The host runs ahead of the devices, but not so far that they hold all images.
        if "image" in batch and len(waiting) > AHEAD:
            jax.block_until_ready(waiting[-1 - AHEAD])
    sums: dict[str, float] = {}
    for new in jax.device_get(waiting):  # once, when all of them are under way
        for name, value in new.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    examples = sums.pop("examples")
    result = {name: value / examples for name, value in sums.items()}
    result["gap"] = (sums["soft"] - sums["hard"]) / examples
    if "hard_bn" in trees:
        result["gap_bn"] = (sums["soft"] - sums["hard_bn"]) / examples
    return result | {"examples": int(examples)}


def average_statistics(
    statistics: Callable,
    weights: PyTree,
    batch_stats: PyTree,
    data: PyTree,
    batches: Iterable[PyTree],
) -> PyTree:
    """BatchNorm statistics of given weights: the mean over training batches.

    Running statistics lag behind weights that move with the sharpness, and belong to
    soft weights; these belong to the weights that are evaluated.
    """
    total, count = None, 0
    for batch in batches:
        new = statistics(weights, batch_stats, data, batch)
        total = new if total is None else _add(total, new)
        count += 1
    if total is None:
        raise ValueError("batch statistics need at least one batch")
    return _divide(total, float(count))


# Compiled: a launch for the tree, not one for each of its leaves.
_add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
_divide = jax.jit(lambda tree, count: jax.tree.map(lambda x: x / count, tree))


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
      'undecided', 'flips' (fraction of codes that differ from `previous`, None without
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
            "undecided": float(layer["undecided"]),
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
