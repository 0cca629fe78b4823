"""Rules over a parameter tree: which tensor gets which quantizer, and what is shared.

`quantize_tree(rules, params)` is itself a `Quantizer`, whose `w` is a whole tree. Soft
and hard trees go through the same `model.apply`; the model is never edited.
"""

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.core import layout as layouts
from quantnet_jax.core import paths
from quantnet_jax.core.layout import Layout
from quantnet_jax.core.paths import flatten
from quantnet_jax.core.qtensor import dequantize, is_qtensor
from quantnet_jax.core.quantizer import PerTensor, PyTree, Quantizer

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


def quantize_tree(rules: Iterable[Rule], params: PyTree) -> Quantizer:
    """A quantizer for whole parameter trees; see `tree_quantizer` and `plan`.

    Example:
      >>> from quantnet_jax.core.quantizer import identity
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 2))}, "bias": jnp.ones(2)}
      >>> q = quantize_tree([Rule(".*kernel", identity())], params)
      >>> qparams = q.init(jax.random.key(0), params)
      >>> sorted(flatten(q.soft(qparams, params, step=0)))
      ['bias', 'conv/kernel']
    """
    return tree_quantizer(plan(rules, params))


def tree_quantizer(buckets: Sequence[Bucket]) -> Quantizer:
    """The `Quantizer` over trees that a plan describes.

    `init(key, params)` gives `{path or shared key: qparams}`. `soft` gives a tree like
    `params` with the claimed tensors replaced; `hard` the same with `QTensor` leaves
    (see `dequantize_tree`); `penalty` the sum over tensors. Tensors of equal shape go
    through one `vmap`, so the cost does not grow with the number of small kernels.
    Every tensor gets a key of its own from `key`. Shared parameters are initialized on
    the first of their tensors in path order. `gradient` and `project` are there if one
    of the quantizers has them; tensors without a rule of their own keep the VJP of
    `soft`, and their weights.
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
                full = _init(bucket, k, leaves[path])
                if bucket.shared is None:
                    qparams[path] = full
                    continue
                shared, qparams[path] = _split(full)
                if bucket.layout.stack:  # of the first of the stacked tensors
                    shared = jax.tree.map(lambda x: x[0], shared)
                qparams.setdefault(bucket.shared, shared)
        return qparams

    def mapped(fn: Callable, bucket, qparams, leaves, *extra, out_axes: Any = 0):
        """vmap of fn(qparams, w, *extra) over the tensors of a bucket."""
        w = _gather(bucket, leaves)
        joined = jnp.concatenate if bucket.layout.stack else lambda x: jnp.stack(x)
        own = jax.tree.map(
            lambda *x: joined(x), *[qparams[path] for path in bucket.paths]
        )
        if bucket.shared is None:
            return jax.vmap(fn, out_axes=out_axes)(own, w, *extra)
        shared = qparams[bucket.shared]
        with_shared = lambda o, *rest: fn(_merge(shared, o), *rest)
        return jax.vmap(with_shared, out_axes=out_axes)(own, w, *extra)

    def soft(qparams, params, *, step, key=None):
        leaves, new = flatten(params), {}
        for bucket in buckets:
            q = bucket.quantizer
            one = lambda p, w, k=None, q=q: q.soft(p, w, step=step, key=k)
            extra = () if key is None else (_copies(bucket, keys_of(key, bucket)),)
            out = mapped(one, bucket, qparams, leaves, *extra)
            new |= _scatter(bucket, out)
        return paths.replace(params, new)

    def hard(qparams, params):
        leaves, new = flatten(params), {}
        for bucket in buckets:
            rule = bucket.quantizer.hard
            made = _scatter(bucket, mapped(rule, bucket, qparams, leaves))
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
            rule = q.gradient or _vjp_of(q)
            one = lambda p, w, g, rule=rule: rule(p, w, g, step=step)
            g = _gather(bucket, flat)
            out = mapped(one, bucket, qparams, leaves, g)
            new |= _scatter(bucket, out)
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
                _, moved = _split(moved)
            own |= {p: x for p, x in _pieces(bucket, moved)}
            new |= _scatter(bucket, out)
        return qparams | own, paths.replace(params, new)

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


def _init(bucket: Bucket, key: jax.Array, w: jax.Array) -> PyTree:
    """`qparams` of one leaf; of stacked tensors with `copies` in front."""
    layout = bucket.layout
    if layout.plain or not layout.shape:
        return bucket.quantizer.init(key, w)
    rows = layouts.split(w, layout)
    if not layout.stack:
        return bucket.quantizer.init(key, rows[0])
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(layout.copies))
    return jax.vmap(bucket.quantizer.init)(keys, rows)


def _gather(bucket: Bucket, leaves: dict[str, jax.Array]) -> jax.Array:
    """The tensors of a bucket along a new first axis, as its quantizer sees them."""
    found = [leaves[path] for path in bucket.paths]
    if bucket.layout.plain or not bucket.layout.shape:
        return jnp.stack(found)
    return jnp.concatenate([layouts.split(x, bucket.layout) for x in found])


def _copies(bucket: Bucket, keys: jax.Array) -> jax.Array:
    """A key for each tensor, stacked ones included."""
    if not bucket.layout.stack:
        return keys
    numbers = jnp.arange(bucket.layout.copies)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda key: fold(key, numbers))(keys).reshape(-1)


def _pieces(bucket: Bucket, out: PyTree) -> Iterator[tuple[str, PyTree]]:
    """(path, its part) of a result of all tensors; `copies` in front if stacked."""
    size, stacked = bucket.layout.copies, bool(bucket.layout.stack)
    for i, path in enumerate(bucket.paths):
        at = slice(size * i, size * (i + 1)) if stacked else i
        yield path, jax.tree.map(lambda x, at=at: x[at], out)


def _scatter(bucket: Bucket, out: PyTree) -> dict[str, PyTree]:
    """{path: array or QTensor like the leaf} of a result of all tensors."""
    layout, new = bucket.layout, dict(_pieces(bucket, out))
    if layout.plain or not layout.shape:
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
            + _near(rule.pattern, sorted(leaves))
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


def _near(pattern: str, paths: list[str], most: int = 8) -> str:
    """All paths in words, of many those that a pattern may have meant."""
    if len(paths) <= 2 * most:
        return ", ".join(paths)
    near = difflib.get_close_matches(pattern, paths, n=most, cutoff=0.0)
    return ", ".join(sorted(near)) + f" and {len(paths) - most} more"


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
        shared, _ = _split(jax.eval_shape(bucket.quantizer.init, key, w))
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


def _split(qparams: PyTree) -> tuple[PyTree, PyTree]:
    """(what may be shared, what is each tensor's own), None where the other has it."""
    keep = lambda wanted: jax.tree.map(
        lambda x: x if _is_own(x) == wanted else None, qparams, is_leaf=_is_own
    )
    return keep(False), keep(True)


def _merge(shared: PyTree, own: PyTree) -> PyTree:
    return jax.tree.map(
        lambda s, o: s if o is None else o,
        shared,
        own,
        is_leaf=lambda x: x is None or _is_own(x),
    )


def _is_own(x: object) -> bool:
    return isinstance(x, PerTensor)


def _vjp_of(q: Quantizer) -> Callable:
    """The gradient rule of a quantizer that has none of its own."""

    def rule(qparams, w, g, *, step):
        _, vjp = jax.vjp(lambda w: q.soft(qparams, w, step=step), w)
        return vjp(g)[0]

    return rule
