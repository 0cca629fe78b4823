"""What the calibration batches say of one layer, and its solution."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.posttrain.capture import evaluate
from quantnet_jax.posttrain.methods import solver
from quantnet_jax.posttrain.methods.solver import Grams

PyTree = Any


def gram_sums(
    apply: Callable,
    params: PyTree,
    quantized: PyTree,
    stream: Callable[[], Iterable[PyTree]],
    visits: Sequence[int],
    positions: float,
    key: jax.Array,
) -> Grams:
    """Gram matrices of inputs over all batches, divided by the number of rows.

    Args:
      apply: `(params, batch) -> outputs`.
      params, quantized: of the float network, and of that as far as it is quantized.
      stream: `() -> batches`.
      visits: numbers of the uses whose inputs are meant, in the order of the trace.
      positions: fraction of the rows of each batch that is used.
      key: of the draw.

    Returns:
      float32 (groups, N, N) each.
    """

    try:
        inputs = _reader(apply, tuple(visits), positions)
    except TypeError:  # it has no hash
        inputs = _reader(functools.partial(apply), tuple(visits), positions)
    total, rows = None, 0
    for number, batch in enumerate(stream()):
        draw = jax.random.fold_in(key, number)
        x, xq = inputs(params, batch, draw), inputs(quantized, batch, draw)
        total, rows = _add(total, x, xq), rows + x.shape[1]
    return jax.tree.map(lambda g: g / rows, total)


@functools.lru_cache(maxsize=1)
def _reader(apply: Callable, visits: tuple[int, ...], positions: float) -> Callable:
    """`(params, batch, key) -> inputs (groups, rows, N)`.

    The last one alone is kept: programs of all layers take more memory than all else.
    """

    @jax.jit
    def inputs(p, batch, key):
        taken, number = [], itertools.count()

        def some(rows: int) -> jax.Array:
            keep = max(1, round(positions * rows))
            return jax.random.permutation(key, rows)[:keep]

        def visit(use, x):
            if next(number) in visits:
                taken.append(use.rows(x, None if positions == 1.0 else some))
            return x

        evaluate(apply, p, batch, visit)
        return jnp.concatenate(taken, axis=1)

    return inputs


@jax.jit
def _add(total, x, xq):
    new = jax.vmap(solver.grams)(x, xq)
    return new if total is None else jax.tree.map(jnp.add, total, new)


@functools.partial(jax.jit, static_argnums=0)
def solve(solve: Callable, w, sums: Grams | None, key) -> tuple[QTensor, Any]:
    """(solved unit, groups in front of its fields; relative error of its outputs)."""
    keys = jax.random.split(key, len(w))
    qt = jax.vmap(solve, in_axes=(0, None if sums is None else 0, 0))(w, sums, keys)
    if sums is None:
        return qt, None
    values = jax.vmap(lambda levels, codes: levels[codes])(qt.levels, qt.codes)
    return qt, solver.relative_error(w, values * qt.scale, sums)
