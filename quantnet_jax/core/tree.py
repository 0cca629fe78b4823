"""Rules over a parameter tree: which tensor gets which quantizer, and what is shared.

`tree_quantizer(rules, params)` is itself a `Quantizer`, whose `w` is a whole tree. Soft
and hard trees go through the same `model.apply`; the model is never edited.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.core import bucketed, paths
from quantnet_jax.core import layout as layouts
from quantnet_jax.core.bucketed import Bucket
from quantnet_jax.core.layout import Layout
from quantnet_jax.core.names import closest
from quantnet_jax.core.paths import flatten
from quantnet_jax.core.qtensor import dequantize, is_qtensor
from quantnet_jax.core.quantizer import PyTree, Quantizer

SHARES = ("layer", "shape", "kernel", "model")


class Rule(NamedTuple):
    """Gives the tensors whose path matches `pattern` to `quantizer`.

    Attributes:
      pattern: regular expression, matched against the whole '/'-joined path, such as
        'stage1_block0/conv1/kernel'.
      quantizer: the functions to use.
      share: 'layer': every tensor has parameters of its own; 'shape': one set for all
        tensors of equal shape; 'kernel': for all of the same spatial size (3x3, 1x1,
        dense); 'model': one set for all. Parts marked `PerTensor` are never shared.
      out: axis, or axes, that count output units: the last one for Dense and Conv,
        (-2, -1) for queries, keys and values of attention (in, heads, head_dim), 0 for
        Embed and equinox, -2 for a transposed kernel.
      stack: axis, or axes, that count separate tensors, as `nn.scan`, `nn.vmap` and
        experts add in front.
    """

    pattern: str
    quantizer: Quantizer
    share: str = "layer"
    out: int | tuple[int, ...] = -1
    stack: int | tuple[int, ...] = ()


def plan(rules: Iterable[Rule], params: PyTree) -> tuple[Bucket, ...]:
    """Resolves rules against a tree into buckets of equal shape.

    Args:
      rules: at most one may claim a tensor. Tensors that no rule claims stay float.
      params: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: a rule matches nothing, two rules claim one tensor, a claimed tensor
        is not floating point, an unknown `share`, or tensors that are to share
        parameters need parameters of different shapes. The message lists the paths.
    """
    leaves = flatten(params)
    claims: dict[str, str] = {}
    buckets = []
    for number, rule in enumerate(rules):
        found_paths = _claim(rule, leaves, claims)
        groups: dict[tuple, list[str]] = {}
        for path in found_paths:
            layout = _layout(rule, path, leaves[path])
            key = _share_key(rule, number, layout.one), layout
            groups.setdefault(key, []).append(path)
        found = [
            Bucket(rule.quantizer, tuple(members), layout, shared)
            for (shared, layout), members in groups.items()
        ]
        _check_shared(rule, found)
        buckets += found
    return tuple(buckets)


def tree_quantizer(rules: Iterable[Rule], params: PyTree) -> Quantizer:
    """A quantizer for whole parameter trees; see `plan` for the errors.

    `init(key, params)` gives `{path or shared key: qparams}`. `soft` gives a tree like
    `params` with the claimed tensors replaced; `hard` the same with `QTensor` leaves
    (see `dequantize_tree`); `penalty` the sum over tensors. `gradient` and `project`
    are there if one of the quantizers has them.

    Args:
      rules: at most one may claim a tensor. Tensors that no rule claims stay float.
      params: arrays or `jax.ShapeDtypeStruct`s.

    Example:
      >>> from quantnet_jax.core.quantizer import identity
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 2))}, "bias": jnp.ones(2)}
      >>> q = tree_quantizer([Rule(".*kernel", identity())], params)
      >>> qparams = q.init(jax.random.key(0), params)
      >>> sorted(flatten(q.soft(qparams, params, step=0)))
      ['bias', 'conv/kernel']
    """
    return bucket_quantizer(plan(rules, params))


def bucket_quantizer(buckets: Sequence[Bucket]) -> Quantizer:
    """The `Quantizer` over trees that a plan describes; see `tree_quantizer`.

    Tensors of equal shape go through one `vmap`, so the cost does not grow with the
    number of small kernels. Every tensor gets a key of its own from `key`. Shared
    parameters are initialized on the first of their tensors in path order. Tensors
    whose quantizer has no `gradient` or `project` keep the VJP of `soft`, and their
    weights.
    """
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
            new |= made
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


def dequantize_tree(params: PyTree) -> PyTree:
    """Replaces every QTensor leaf by its float32 values."""
    return jax.tree.map(dequantize, params, is_leaf=is_qtensor)


def _layout(rule: Rule, path: str, leaf: jax.Array) -> Layout:
    try:
        if rule.out == -1 and rule.stack == () and not leaf.shape:
            return Layout((), (), ())  # whether a scalar will do, its quantizer says
        return layouts.make(leaf.shape, rule.out, rule.stack)
    except ValueError as e:
        raise ValueError(f"rule {rule.pattern!r}, {path!r}: {e}") from None


def _claim(rule: Rule, leaves: dict, claims: dict[str, str]) -> list[str]:
    if rule.share not in SHARES:
        raise ValueError(
            f"rule {rule.pattern!r}: share is {rule.share!r}, expected one of {SHARES}"
        )
    try:
        pattern = re.compile(rule.pattern)
    except re.error as e:
        raise ValueError(
            f"rule {rule.pattern!r} is not a regular expression: {e}"
        ) from None
    paths = sorted(path for path in leaves if pattern.fullmatch(path))
    if not paths:
        raise ValueError(
            f"rule {rule.pattern!r} matches no parameter; the paths are "
            + closest(rule.pattern, sorted(leaves))
        )
    for path in paths:
        if path in claims:
            raise ValueError(
                f"rules {claims[path]!r} and {rule.pattern!r} both claim {path!r}; "
                "in all: " + ", ".join(p for p in paths if p in claims)
            )
        if not jnp.issubdtype(leaves[path].dtype, jnp.floating):
            raise ValueError(
                f"rule {rule.pattern!r} claims {path!r} of dtype {leaves[path].dtype}; "
                "only floating-point tensors can be quantized"
            )
    claims |= dict.fromkeys(paths, rule.pattern)
    return paths


def _share_key(rule: Rule, number: int, shape: tuple[int, ...]) -> str | None:
    if rule.share == "layer":
        return None
    if rule.share == "model":
        return f"shared{number}"
    sizes = shape if rule.share == "shape" else shape[:-2]
    return f"shared{number}:" + ("x".join(map(str, sizes)) or "dense")


def _check_shared(rule: Rule, buckets: Sequence[Bucket]) -> None:
    """Tensors that share parameters must need the same ones."""
    first: dict[str, tuple] = {}
    for bucket in buckets:
        if bucket.shared is None:
            continue
        w = jax.ShapeDtypeStruct(bucket.shape, jnp.float32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        shared, _ = bucketed.split(jax.eval_shape(bucket.quantizer.init, key, w))
        shapes = [x.shape for x in jax.tree.leaves(shared)]
        other, other_shapes = first.setdefault(bucket.shared, (bucket, shapes))
        if shapes != other_shapes:
            raise ValueError(
                f"rule {rule.pattern!r}: share={rule.share!r} gives one set of "
                f"parameters to {other.paths[0]!r} of shape {other.shape} and "
                f"{bucket.paths[0]!r} of shape {bucket.shape}, which need different "
                f"ones ({other_shapes} and {shapes}); choose a narrower share of "
                f"{SHARES} or another unit"
            )
