"""Gradient accumulation: a batch is computed in parts, one after another."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def accumulate(
    fn: Callable, carry: PyTree, batch: PyTree, *, parts: int = 1, loop: bool = True
) -> tuple[PyTree, PyTree]:
    """Calls `fn` on each part of a batch and averages what it returns.

    Row i of the batch belongs to part i % parts. So each device that holds neighbouring
    rows, a multiple of `parts`, holds its share of every part: nothing moves.

    Args:
      fn: `(carry, rows) -> (carry, out)`; `out` are means over the rows.
      carry: goes from part to part (running statistics).
      batch: arrays with the same first axis, a multiple of `parts`.
      parts: number of parts; with 1 this is a call of `fn`.
      loop: one compiled part in a loop, whose memory serves all parts. Else the parts
        are written out one by one, for XLA's CPU backend, which is slow at convolutions
        in a loop; it may compute them at the same time, and saves no memory.

    Returns:
      (last carry, mean of `out` over the parts).
    """
    if parts == 1:
        return fn(carry, batch)
    stacked = jax.tree.map(lambda x: _split(x, parts), batch)
    first = jax.tree.map(lambda x: x[0], stacked)
    _, shapes = jax.eval_shape(fn, carry, first)
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def one(held, rows):
        carry, total = held
        carry, out = fn(carry, rows)
        return (carry, jax.tree.map(jnp.add, total, out)), None

    unroll = 1 if loop else parts
    (carry, total), _ = jax.lax.scan(one, (carry, total), stacked, unroll=unroll)
    return carry, jax.tree.map(lambda x: x / parts, total)


def check(parts: int, mode: str, lagged: bool) -> None:
    """Refuses what cannot be accumulated.

    Args:
      parts: value of `config.accumulation_steps`.
      mode: value of `config.meta.mode`.
      lagged: whether the quantizer learns through the weights' update (`gradient`).

    Raises:
      ValueError: one line that names the key.
    """
    if parts == 1:
        return
    if mode != "joint" or lagged:
        other = f"meta.mode={mode!r}" if mode != "joint" else "a gradient network"
        raise ValueError(
            f"accumulation_steps={parts} cannot be combined with {other}, expected 1: "
            "there the update of the weights is itself differentiated, which needs the "
            "batch as a whole"
        )


def _split(x: jax.Array, parts: int) -> jax.Array:
    """(N, ...) -> (parts, N / parts, ...)."""
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
