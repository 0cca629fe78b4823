"""Convolution and dense products as pure functions on float arrays and QTensors."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax.core.qtensor import QTensor, dequantize, lookup
from quantnet_jax.ops import cpu_conv

Weights = jax.Array | QTensor
Strides = int | Sequence[int]
Padding = str | Sequence[Sequence[int]]


def conv2d(
    x: jax.Array,
    w: Weights,
    *,
    strides: Strides = (1, 1),
    padding: Padding = "SAME",
    groups: int = 1,
    precision: Any = None,
) -> jax.Array:
    """Two-dimensional convolution with float or quantized weights.

    The product is computed in the dtype of `x` (accelerators accumulate bfloat16
    products in float32). A QTensor whose scale differs only between output channels
    is convolved as its bare levels, and the output is multiplied by the scale: the
    inner loop then sees +1 and -1 alone. Any other QTensor is dequantized first.

    Args:
      x: floating (N, H, W, Cin).
      w: float array or QTensor (kh, kw, Cin / groups, Cout); cast to the dtype of `x`.
      strides: one positive integer, or one for height and one for width.
      padding: 'SAME', 'VALID', or ((top, bottom), (left, right)).
      groups: divides Cin and Cout; group g of the output sees group g of the input.
      precision: as in `jax.lax.conv_general_dilated`.

    Returns:
      (N, H', W', Cout) in the dtype of `x`.

    Raises:
      ValueError: if ranks, channels, groups, strides or padding do not fit.

    Example:
      >>> conv2d(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 8)), strides=2).shape
      (1, 2, 2, 8)
    """
    _check_conv(x, w, groups)
    strides, padding = window(strides, padding)

    def product(x: jax.Array, values: jax.Array) -> jax.Array:
        values = values.astype(x.dtype)
        return cpu_conv.convolve(x, values, strides, padding, groups, precision)

    return _times_scale(product, x, w)


def dense(x: jax.Array, w: Weights, *, precision: Any = None) -> jax.Array:
    """Matrix product over the last axis of `x` with float or quantized weights.

    Args:
      x: floating (..., Cin).
      w: float array or QTensor (Cin, Cout); cast to the dtype of `x`. A scale per
        output channel is applied to the product, as in `conv2d`.
      precision: as in `jax.numpy.matmul`.

    Returns:
      (..., Cout) in the dtype of `x`.

    Raises:
      ValueError: if ranks or channels do not fit.

    Example:
      >>> dense(jnp.ones((2, 3)), jnp.ones((3, 5))).shape
      (2, 5)
    """
    check_floating(x)
    if x.ndim < 1 or len(w.shape) != 2 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"`x` of shape {x.shape} and `w` of shape {w.shape} do not fit; expected "
            "(..., Cin) and (Cin, Cout)"
        )

    def product(x: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.matmul(x, values.astype(x.dtype), precision=precision)

    return _times_scale(product, x, w)


def _times_scale(product: Any, x: jax.Array, w: Weights) -> jax.Array:
    """`product` with the weights; a scale per output channel is factored out."""
    if not isinstance(w, QTensor):
        return product(x, w)
    if any(size != 1 for size in w.scale.shape[:-1]):
        return product(x, dequantize(w))
    y = product(x, lookup(w))
    # float32, so that a bfloat16 net rounds the scaled product, not the scale.
    scale = w.scale.reshape((1,) * (y.ndim - 1) + (-1,))
    return (y.astype(scale.dtype) * scale).astype(y.dtype)


def check_floating(x: jax.Array) -> None:
    """Raises a ValueError unless `x` is floating."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"`x` has dtype {x.dtype}, expected a floating one")


def _check_conv(x: jax.Array, w: Weights, groups: int) -> None:
    check_floating(x)
    if x.ndim != 4 or len(w.shape) != 4:
        raise ValueError(
            f"`x` of shape {x.shape} and `w` of shape {w.shape}: expected rank 4 each, "
            "(N, H, W, Cin) and (kh, kw, Cin / groups, Cout)"
        )
    fits = groups >= 1 and w.shape[2] * groups == x.shape[3]
    if not fits or w.shape[3] % groups:
        raise ValueError(
            f"`groups` is {groups}: `x` of shape {x.shape} and `w` of shape {w.shape} "
            "do not fit; expected w.shape[2] * groups == x.shape[3] and w.shape[3] "
            "divisible by groups"
        )


def window(
    strides: Strides, padding: Padding
) -> tuple[tuple[int, int], str | list[tuple[int, int]]]:
    """Strides as a pair; padding as 'SAME', 'VALID' or two pairs.

    Raises:
      ValueError: if they are not what `conv2d` takes.
    """
    pair = (strides,) * 2 if isinstance(strides, int) else tuple(strides)
    if len(pair) != 2 or any(s < 1 for s in pair):
        raise ValueError(
            f"`strides` is {strides!r}, expected a positive integer or two of them"
        )
    if padding in ("SAME", "VALID"):
        return pair, str(padding)
    try:
        pads = [(int(before), int(after)) for before, after in padding]
    except (TypeError, ValueError):
        pads = []
    if len(pads) != 2 or min(map(min, pads)) < 0:
        raise ValueError(
            f"`padding` is {padding!r}, expected 'SAME', 'VALID' or "
            "((top, bottom), (left, right))"
        )
    return pair, pads
