"""A quantizer for a whole parameter tree, of rules.

`tree_quantizer(rules, params)` is itself a `Quantizer`, whose `w` is a whole tree. Soft
and hard trees go through the same `model.apply`; the model is never edited.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax.core.precision import in_float32
from quantnet_jax.core.qtensor import QTensor, dequantize, is_qtensor
from quantnet_jax.core.quantizer import PyTree, Quantizer
from quantnet_jax.trees import bucketed, guard, paths
from quantnet_jax.trees.axes import Axes
from quantnet_jax.trees.bucketed import Bucket
from quantnet_jax.trees.paths import flatten
from quantnet_jax.trees.rules import SHARES, Rule, plan

__all__ = [
    "SHARES",
    "Rule",
    "bucket_quantizer",
    "dequantize_tree",
    "flatten",
    "plan",
    "tree_quantizer",
]


def tree_quantizer(
    rules: Iterable[Rule],
    params: PyTree,
    *,
    axes: Mapping[str, Axes] | None = None,
) -> Quantizer:
    """A quantizer for whole parameter trees; see `plan` for the errors.

    `init(key, params)` gives `{path or shared key: qparams}`. `soft` gives a tree like
    `params` with the claimed tensors replaced; `hard` the same with `QTensor` leaves
    (see `dequantize_tree`); `penalty` the sum over tensors. `gradient` and `project`
    are there if one of the quantizers has them; differentiating `soft` alone then
    warns, since `quantnet_jax.make_update` calls all of them. Parameters keep their
    dtype, see `precision.in_float32`; a tensor that is not finite gets NaN scales,
    which no file holds.

    Args:
      rules: at most one may claim a tensor. Tensors that no rule claims stay float.
      params: arrays or `jax.ShapeDtypeStruct`s.
      axes: of each parameter, from `quantnet_jax.axes(apply, params, example)`, for
        rules with `out='auto'`.

    Example:
      >>> from quantnet_jax.core.quantizer import identity
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 2))}, "bias": jnp.ones(2)}
      >>> q = tree_quantizer([Rule(".*kernel", identity())], params)
      >>> qparams = q.init(jax.random.key(0), params)
      >>> sorted(flatten(q.soft(qparams, params, step=0)))
      ['bias', 'conv/kernel']
    """
    buckets = plan(rules, params, axes)
    return guard.guarded(bucket_quantizer(buckets), buckets)


def bucket_quantizer(buckets: Sequence[Bucket]) -> Quantizer:
    """The `Quantizer` over trees that a plan describes; see `tree_quantizer`.

    Tensors of equal shape go through one `vmap`, so the cost does not grow with the
    number of small kernels. Every tensor gets a key of its own from `key`. Shared
    parameters are initialized on the first of their tensors in path order. Tensors
    whose quantizer has no `gradient` or `project` keep the VJP of `soft`, and their
    weights.
    """
    buckets = [b._replace(quantizer=in_float32(b.quantizer)) for b in buckets]
    order = sorted(path for bucket in buckets for path in bucket.paths)
    numbers = {path: number for number, path in enumerate(order)}

    def keys_of(key, bucket):
        numbers_ = jnp.asarray([numbers[path] for path in bucket.paths])
        return jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers_)

    def init(key, params):
        leaves = flatten(params)
        qparams = {}
        for bucket in buckets:
            keys = keys_of(key, bucket)
            for k, path in zip(keys, bucket.paths, strict=True):
                full = bucketed.init(bucket, k, leaves[path])
                if bucket.shared is None:
                    qparams[path] = full
                    continue
                shared, qparams[path] = bucketed.split(full)
                if bucket.layout.stack:  # of the first of the stacked tensors
                    shared = jax.tree.map(lambda x: x[0], shared)
                qparams.setdefault(bucket.shared, shared)
        return qparams

    def mapped(fn: Callable, bucket, qparams, leaves, *extra, out_axes: Any = 0):
        """vmap of fn(qparams, w, *extra) over the tensors of a bucket."""
        w = bucketed.gather(bucket, leaves)
        joined = jnp.concatenate if bucket.layout.stack else lambda x: jnp.stack(x)
        own = jax.tree.map(
            lambda *x: joined(x), *[qparams[path] for path in bucket.paths]
        )
        if bucket.shared is None:
            return jax.vmap(fn, out_axes=out_axes)(own, w, *extra)
        shared = qparams[bucket.shared]
        with_shared = lambda o, *rest: fn(bucketed.merge(shared, o), *rest)
        return jax.vmap(with_shared, out_axes=out_axes)(own, w, *extra)

    def soft(qparams, params, *, step, key=None):
        leaves, new = flatten(params), {}
        for bucket in buckets:
            q = bucket.quantizer
            one = lambda p, w, k=None, q=q: q.soft(p, w, step=step, key=k)
            keys = None if key is None else keys_of(key, bucket)
            extra = () if keys is None else (bucketed.copied(bucket, keys),)
            out = mapped(one, bucket, qparams, leaves, *extra)
            new |= bucketed.scatter(bucket, out)
        return paths.replace(params, new)

    def hard(qparams, params):
        leaves, new = flatten(params), {}
        for bucket in buckets:
            rule = bucket.quantizer.hard
            made = bucketed.scatter(bucket, mapped(rule, bucket, qparams, leaves))
            if bucket.layout.stack and is_qtensor(next(iter(made.values()))):
                levels = lambda p, w, rule=rule: rule(p, w).levels
                with contextlib.suppress(ValueError):  # no table that all have
                    table = mapped(levels, bucket, qparams, leaves, out_axes=None)
                    made = {
                        path: dataclasses.replace(qt, levels=table)
                        for path, qt in made.items()
                    }
            new |= {path: _unhidden(x, leaves[path]) for path, x in made.items()}
        return paths.replace(params, new)

    def penalty(qparams, params, *, step):
        leaves, total = flatten(params), jnp.zeros((), jnp.float32)
        for bucket in buckets:
            q = bucket.quantizer
            one = lambda p, w, q=q: q.penalty(p, w, step=step)
            total = total + jnp.sum(mapped(one, bucket, qparams, leaves))
        return total

    def gradient(qparams, params, grads, *, step):
        leaves, flat, new = flatten(params), flatten(grads), {}
        for bucket in buckets:
            q = bucket.quantizer
            rule = q.gradient or bucketed.vjp_of(q)
            one = lambda p, w, g, rule=rule: rule(p, w, g, step=step)
            g = bucketed.gather(bucket, flat)
            out = mapped(one, bucket, qparams, leaves, g)
            new |= bucketed.scatter(bucket, out)
        return paths.replace(grads, new)

    def project(qparams, params, *, step):
        leaves, new, own = flatten(params), {}, {}
        for bucket in buckets:
            rule = bucket.quantizer.project
            if rule is None:
                continue
            one = lambda p, w, rule=rule: rule(p, w, step=step)
            moved, out = mapped(one, bucket, qparams, leaves)
            if bucket.shared is not None:
                # What tensors share has no tensor to be moved by.
                _, moved = bucketed.split(moved)
            own |= {p: x for p, x in bucketed.pieces(bucket, moved)}
            new |= bucketed.scatter(bucket, out)
        return qparams | own, paths.replace(params, new)

    count = f"{len(order)} tensor{'s' * (len(order) != 1)}"
    setattr(soft, "made_by", f"tree_quantizer({count})")  # noqa: B010
    has = lambda field: any(getattr(b.quantizer, field) for b in buckets)
    return Quantizer(
        init,
        soft,
        hard,
        penalty,
        gradient if has("gradient") else None,
        project if has("project") else None,
    )


def _unhidden(x: QTensor | jax.Array, w: jax.Array) -> QTensor | jax.Array:
    """Scales that are NaN where `w` is not finite: its codes alone would look valid."""
    if not isinstance(x, QTensor):
        return x
    scale = jnp.where(jnp.isfinite(w).all(), x.scale, jnp.float32(jnp.nan))
    return dataclasses.replace(x, scale=scale)


def dequantize_tree(params: PyTree) -> PyTree:
    """Replaces every QTensor leaf by its float32 values."""
    return jax.tree.map(dequantize, params, is_leaf=is_qtensor)
