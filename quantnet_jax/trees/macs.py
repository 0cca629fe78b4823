"""Counts multiply-accumulates in the trace of any JAX function, parameter by parameter.

A product (convolution or matrix product) belongs to the parameters whose values alone
make up one of its operands, through any conversions, transposes, scales and masks.
Nothing is computed: the trace is of shapes.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from quantnet_jax.trees import trace
from quantnet_jax.trees.tree import flatten

PyTree = Any
FLOAT = 32
"""Bits of an operand by default."""

PRODUCTS = ("conv_general_dilated", "dot_general")
UNCOUNTED = ("ragged_dot", "ragged_dot_general")
# What moves values without changing them: a quantized activation stays one.
MOVES = (
    *("convert_element_type", "reshape", "transpose", "broadcast_in_dim", "squeeze"),
    *("slice", "dynamic_slice", "pad", "concatenate", "rev", "copy", "name"),
    *("split", "stack", "unstack", "tile", "gather", "stop_gradient"),
    *("reduce_max", "reduce_window_max"),
)
_MARK = re.compile(r"activation of (\d+) bits")


class Use(NamedTuple):
    """Where parameters meet what depends on the example, in the order of the trace.

    Attributes:
      params: paths of the parameters that the operand is made of; empty if both
        operands depend on the example, or one is a constant.
      macs: multiply-accumulates; 0 for an elementwise operation.
      bits: of the activations, and of the other operand where `params` is empty.
      shape: of the result.
    """

    params: frozenset[str]
    macs: int
    bits: tuple[int, int]
    shape: tuple[int, ...]


class _Source(NamedTuple):
    """What a value depends on: parameters alone, or the example (`data`)."""

    params: frozenset[str] = frozenset()
    data: bool = False
    bits: int = FLOAT


_CONSTANT = _Source()


def mark_activation(x: jax.Array, bits: int) -> jax.Array:
    """`x` itself, marked for `count` as taking at most 2**bits values.

    Example:
      >>> import jax.numpy as jnp
      >>> binary = lambda x: mark_activation(jnp.sign(x), 1)
      >>> uses = count(lambda w, x: binary(x) @ w, jnp.ones((2, 3)), jnp.ones((1, 2)))
      >>> [(use.macs, use.bits[0]) for use in uses]
      [(6, 1)]
    """
    return checkpoint_name(x, f"activation of {bits} bits")


def count(apply: Callable, params: PyTree, example: PyTree) -> list[Use]:
    """Every use of a parameter, and every product, in `apply(params, example)`.

    Padding counts as it is computed; of a transposed convolution the inserted zeros do
    not. Products of parameters alone (they do not depend on the example, so they are
    done once) are excluded; of the branches of a condition the most expensive counts.

    Args:
      apply: any traceable function.
      params: tree of arrays or `jax.ShapeDtypeStruct`s.
      example: the same, with its batch axis.

    Raises:
      ValueError: the number of products cannot be read from the trace: a `while` loop,
        a kernel, a manual partition.
    """
    closed = jax.make_jaxpr(apply)(params, example)
    sources = [_Source(frozenset([path])) for path in flatten(params)]
    sources += [_Source(data=True) for _ in jax.tree.leaves(example)]
    return trace.walk(closed.jaxpr, sources, _FACTS)[1]


def _equation(eqn, operands: list[_Source]) -> tuple[list[_Source], list[Use]]:
    name = eqn.primitive.name
    shape = tuple(eqn.outvars[0].aval.shape) if eqn.outvars else ()
    if name in PRODUCTS:
        return [_join(operands)], _product(eqn, operands, shape)
    if name in UNCOUNTED or any(map(trace.holds_product, trace.inner(eqn.params))):
        raise ValueError(
            f"{name!r} holds products whose number cannot be read from the trace; "
            "expected convolutions and matrix products in plain calls, scans and "
            "conditions"
        )
    joined = _join(operands, keep=name in MOVES)
    if name == "name" and (mark := _MARK.fullmatch(str(eqn.params["name"]))):
        joined = joined._replace(bits=int(mark[1]))
    met = frozenset[str]().union(*(s.params for s in operands if not s.data))
    uses = [Use(met, 0, (FLOAT, FLOAT), shape)] if joined.data and met else []
    return [joined] * len(eqn.outvars), uses


def _product(eqn, operands: list[_Source], shape: tuple[int, ...]) -> list[Use]:
    a, b = operands
    if not (a.data or b.data):
        return []
    if not a.data:
        a, b = b, a
    macs = _conv(eqn) if eqn.primitive.name == PRODUCTS[0] else _dot(eqn)
    params = frozenset() if b.data else b.params
    return [Use(params, macs, (a.bits, b.bits), shape)]


def _dot(eqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return math.prod(out) * math.prod(lhs[axis] for axis in contracted)


def _conv(eqn) -> int:
    p, out = eqn.params, eqn.outvars[0].aval.shape
    kernel, layout = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    batch, channels, *space = layout.out_spec
    _, inputs, *window = layout.rhs_spec
    total = out[batch] * out[channels] * kernel[inputs]
    axes = zip(
        *(space, window, p["window_strides"], p["padding"]),
        *(p["lhs_dilation"], p["rhs_dilation"]),
        strict=True,
    )
    for o, k, stride, (before, _), spread, dilation in axes:
        if spread == 1:
            total *= out[o] * kernel[k]
        else:
            # spread - 1 zeros are inserted between two inputs.
            total *= sum(
                (i * stride + j * dilation - before) % spread == 0
                for i in range(out[o])
                for j in range(kernel[k])
            )
    return total


def _merge(options: Sequence[_Source], which: _Source | None) -> _Source:
    """The carry of a loop, the output of a condition: its bits are the values'."""
    if which is None:
        return _join(options, keep=True)
    joined = _join([which, *options], keep=True)
    return joined._replace(bits=max(s.bits for s in options))


def _repeat(uses: list[Use], length: int) -> list[Use]:
    return [use._replace(macs=use.macs * length) for use in uses]


def _branches(found: list[list[Use]]) -> list[Use]:
    largest = max(found, key=lambda uses: sum(use.macs for use in uses))
    others = [use for uses in found if uses is not largest for use in uses]
    return largest + [use._replace(macs=0) for use in others if use.params]


def _join(sources: Iterable[_Source], keep: bool = False) -> _Source:
    """The source of a function of several; `keep` retains the bits of activations."""
    sources = list(sources)
    data = any(s.data for s in sources)
    if not data:
        return _Source(frozenset[str]().union(*(s.params for s in sources)))
    # Nearly all parameters flow into an activation, so they are dropped.
    bits = max(s.bits for s in sources if s.data) if keep else FLOAT
    return _Source(data=True, bits=bits)


_FACTS = trace.Facts(_CONSTANT, _equation, _merge, _repeat, _branches)
