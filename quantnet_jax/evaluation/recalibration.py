"""BatchNorm recalibration: statistics of given weights, averaged over batches."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


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


# Compiled: one dispatch per tree instead of one per leaf.
_add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
_divide = jax.jit(lambda tree, count: jax.tree.map(lambda x: x / count, tree))
