"""Tensors of one rule and one shape: gathered, computed together, scattered again."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.core.qtensor import is_qtensor
from quantnet_jax.core.quantizer import PerTensor, PyTree, Quantizer
from quantnet_jax.trees import layout as layouts
from quantnet_jax.trees.layout import Layout


class Bucket(NamedTuple):
    """Tensors of one rule and one shape, computed together.

    Attributes:
      quantizer: of the rule.
      paths: of the tensors, sorted.
      layout: shape and axes that all of them have.
      shared: key of the shared part of their `qparams`, None if nothing is shared.
    """

    quantizer: Quantizer
    paths: tuple[str, ...]
    layout: Layout
    shared: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one tensor as the quantizer sees it."""
        return self.layout.one


def init(bucket: Bucket, key: jax.Array, w: jax.Array) -> PyTree:
    """`qparams` of one leaf; of stacked tensors with `copies` in front."""
    layout = bucket.layout
    if layout.plain:
        return bucket.quantizer.init(key, w)
    rows = layouts.split(w, layout)
    if not layout.stack:
        return bucket.quantizer.init(key, rows[0])
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(layout.copies))
    return jax.vmap(bucket.quantizer.init)(keys, rows)


def gather(bucket: Bucket, leaves: dict[str, jax.Array]) -> jax.Array:
    """The tensors of a bucket along a new first axis, as its quantizer sees them."""
    found = [leaves[path] for path in bucket.paths]
    if bucket.layout.plain:
        return jnp.stack(found)
    return jnp.concatenate([layouts.split(x, bucket.layout) for x in found])


def copied(bucket: Bucket, keys: jax.Array) -> jax.Array:
    """A key for each tensor, stacked ones included."""
    if not bucket.layout.stack:
        return keys
    numbers = jnp.arange(bucket.layout.copies)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda key: fold(key, numbers))(keys).reshape(-1)


def pieces(bucket: Bucket, out: PyTree) -> Iterator[tuple[str, PyTree]]:
    """(path, its part) of a result of all tensors; `copies` in front if stacked."""
    size, stacked = bucket.layout.copies, bool(bucket.layout.stack)
    for i, path in enumerate(bucket.paths):
        at = slice(size * i, size * (i + 1)) if stacked else i
        yield path, jax.tree.map(lambda x, at=at: x[at], out)


def scatter(bucket: Bucket, out: PyTree) -> dict[str, PyTree]:
    """{path: array or QTensor like the leaf} of a result of all tensors."""
    layout, new = bucket.layout, dict(pieces(bucket, out))
    if layout.plain:
        return new
    made = {}
    for path, x in new.items():
        if not is_qtensor(x):
            made[path] = layouts.join(x, layout)
            continue
        table = x.levels if not layout.stack and x.levels.ndim == 1 else None
        if not layout.stack:
            x = jax.tree.map(lambda part: part[None], x)
        made[path] = layouts.join_qtensor(x, layout)
        if table is not None:
            made[path] = dataclasses.replace(made[path], levels=table)
    return made


def split(qparams: PyTree) -> tuple[PyTree, PyTree]:
    """(what may be shared, what is each tensor's own), None where the other has it."""
    keep = lambda wanted: jax.tree.map(
        lambda x: x if _is_own(x) == wanted else None, qparams, is_leaf=_is_own
    )
    return keep(False), keep(True)


def merge(shared: PyTree, own: PyTree) -> PyTree:
    return jax.tree.map(
        lambda s, o: s if o is None else o,
        shared,
        own,
        is_leaf=lambda x: x is None or _is_own(x),
    )


def _is_own(x: object) -> bool:
    return isinstance(x, PerTensor)


def vjp_of(q: Quantizer) -> Callable:
    """The gradient rule of a quantizer that has none of its own."""

    def rule(qparams, w, g, *, step):
        _, vjp = jax.vjp(lambda w: q.soft(qparams, w, step=step), w)
        return vjp(g)[0]

    return rule
