"""Rules over a parameter tree: which quantizer a tensor gets, and what is shared."""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.common.names import closest, show
from quantnet_jax.core.quantizer import PyTree, Quantizer
from quantnet_jax.trees import bucketed
from quantnet_jax.trees import layout as layouts
from quantnet_jax.trees.axes import Axes
from quantnet_jax.trees.bucketed import Bucket
from quantnet_jax.trees.layout import Layout
from quantnet_jax.trees.paths import flatten

AUTO = "auto"
SHARES = ("layer", "shape", "kernel", "model")


class Rule(NamedTuple):
    """Gives the tensors whose path matches `pattern` to `quantizer`.

    Attributes:
      pattern: regular expression, matched against the whole '/'-joined path, such as
        'stage1_block0/conv1/kernel'.
      quantizer: the functions to use.
      share: 'layer': every tensor has parameters of its own; 'shape': one set for all
        tensors of equal shape; 'kernel': for all of the same spatial size (3x3, 1x1,
        dense), and shape, where those of one size need different parameters; 'model':
        one set for all. Parts marked `PerTensor` are never shared.
      out: axis, or axes, that count output units: the last one for Dense and Conv,
        (-2, -1) for queries, keys and values of attention (in, heads, head_dim), 0 for
        Embed and equinox, -2 for a transposed kernel, () if all is one unit; or 'auto':
        output, stacked and input axes are those that `quantnet_jax.axes` found.
      stack: axis, or axes, that count separate tensors, as `nn.scan`, `nn.vmap` and
        experts add in front.
    """

    pattern: str
    quantizer: Quantizer
    share: str = "layer"
    out: int | tuple[int, ...] | str = -1
    stack: int | tuple[int, ...] = ()


def plan(
    rules: Iterable[Rule], params: PyTree, axes: Mapping[str, Axes] | None = None
) -> tuple[Bucket, ...]:
    """Resolves rules against a tree into buckets of equal shape.

    Args:
      rules: at most one may claim a tensor. Tensors that no rule claims stay float.
      params: arrays or `jax.ShapeDtypeStruct`s.
      axes: of each parameter, for rules with `out='auto'`.

    Raises:
      ValueError: a rule matches nothing, two rules claim one tensor, a claimed tensor
        is not floating point, an unknown `share`, tensors that are to share parameters
        need parameters of different shapes, or the axes of a tensor do not exist or are
        not known. The message lists the paths.
    """
    leaves, rules = flatten(params), _checked(rules)
    if axes is not None and all(rule.out != AUTO for rule in rules):
        raise ValueError("`axes` are given, but no rule says out='auto'")
    claims: dict[str, str] = {}
    buckets = []
    for number, rule in enumerate(rules):
        found_paths = _claim(rule, leaves, claims)
        groups: dict[tuple, list[str]] = {}
        for path in found_paths:
            layout = _layout(rule, path, leaves[path], axes)
            dtype = jnp.dtype(leaves[path].dtype)
            key = _share_key(rule, number, layout.one), layout, dtype
            groups.setdefault(key, []).append(path)
        found = [
            Bucket(rule.quantizer, tuple(members), layout, shared)
            for (shared, layout, _), members in groups.items()
        ]
        buckets += _shared(rule, number, found)
    return tuple(buckets)


def _layout(
    rule: Rule, path: str, leaf: jax.Array, axes: Mapping[str, Axes] | None
) -> Layout:
    try:
        if isinstance(rule.out, str):
            found = _found(rule, path, axes)
            return layouts.make(leaf.shape, found.out, found.stack, found.inputs)
        return layouts.make(leaf.shape, rule.out, rule.stack)
    except ValueError as e:
        raise ValueError(f"rule {rule.pattern!r}, {path!r}: {e}") from None


def _found(rule: Rule, path: str, axes: Mapping[str, Axes] | None) -> Axes:
    if rule.out != AUTO:
        raise ValueError(f"out={rule.out!r}, expected an axis, axes or 'auto'")
    if rule.stack != ():
        raise ValueError(f"stack={rule.stack} beside out='auto', which finds both")
    if axes is None:
        raise ValueError("out='auto' needs axes=qn.axes(apply, params, example)")
    if path not in axes:
        raise ValueError("out='auto', but `axes` are those of another tree")
    if axes[path].unknown:
        raise ValueError(f"out='auto', but {axes[path].unknown}; expected `out`")
    return axes[path]


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
        if wrong := _unfit(leaves[path]):
            raise ValueError(
                f"rule {rule.pattern!r} claims {path!r}, {wrong}; only floating-point "
                "tensors with elements can be quantized"
            )
    vectors = [path for path in paths if len(leaves[path].shape) == 1]
    if vectors and len(vectors) < len(paths):
        warnings.warn(
            f"rule {rule.pattern!r} claims vectors beside larger tensors, such as "
            f"{vectors[0]!r}; biases and norms usually stay float, as by '.*/kernel'",
            stacklevel=2,
        )
    claims |= dict.fromkeys(paths, rule.pattern)
    return paths


def _checked(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules, if they are some."""
    if isinstance(rules, Rule) or not isinstance(rules, Iterable):
        raise ValueError(f"`rules` is {show(rules)}, expected a list of Rule(...)")
    rules = tuple(rules)
    for number, rule in enumerate(rules):
        if not isinstance(rule, Rule) or not isinstance(rule.pattern, str):
            found = rule.pattern if isinstance(rule, Rule) else rule
            expected = "a string" if isinstance(rule, Rule) else "Rule(...)"
            raise ValueError(f"rule {number} has {show(found)}, expected {expected}")
        if callable(rule.quantizer) or isinstance(rule.quantizer, str):
            name = getattr(rule.quantizer, "__name__", None)
            hint = f"; call it: {name}()" if name else ""
            raise ValueError(
                f"rule {rule.pattern!r}: {show(rule.quantizer)} is no Quantizer{hint}"
            )
    return rules


def _unfit(leaf: Any) -> str:
    """Why a leaf cannot be quantized, '' if it can."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return f"a {type(leaf).__name__}"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"of dtype {leaf.dtype}"
    if not leaf.shape:
        return "a scalar"
    return f"of shape {tuple(leaf.shape)}" if 0 in leaf.shape else ""


def _share_key(rule: Rule, number: int, shape: tuple[int, ...]) -> str | None:
    if rule.share == "layer":
        return None
    if rule.share == "model":
        return f"shared{number}"
    sizes = shape if rule.share == "shape" else shape[:-2]
    return f"shared{number}:" + ("x".join(map(str, sizes)) or "dense")


def _shared(rule: Rule, number: int, buckets: list[Bucket]) -> list[Bucket]:
    """The buckets with keys that hold what all under them need, or ValueError."""
    needs: dict[str, list[tuple[Bucket, list]]] = {}
    for bucket in buckets:
        if bucket.shared is None:
            continue
        w = jax.ShapeDtypeStruct(bucket.shape, jnp.float32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        shared, _ = bucketed.split(jax.eval_shape(bucket.quantizer.init, key, w))
        shapes = [x.shape for x in jax.tree.leaves(shared)]
        needs.setdefault(bucket.shared, []).append((bucket, shapes))
    narrow = rule._replace(share="shape")
    for key, ((first, wanted), *others) in needs.items():
        differs = [(x, shapes) for x, shapes in others if shapes != wanted]
        if differs and rule.share == "kernel":
            own = lambda x: x._replace(shared=_share_key(narrow, number, x.shape))
            buckets = [own(x) if x.shared == key else x for x in buckets]
        elif differs:
            other, shapes = differs[0]
            raise ValueError(
                f"rule {rule.pattern!r}: share={rule.share!r} gives one set of "
                f"parameters to {first.paths[0]!r} of shape {first.shape} and "
                f"{other.paths[0]!r} of shape {other.shape}, which need different "
                f"ones ({wanted} and {shapes}); choose a narrower share of "
                f"{SHARES} or another unit"
            )
    return buckets
