"""XNOR-popcount convolution and matmul: products of signs as bit counts.

A word holds the signs of 32 channels, bit 1 for +1. Two words that differ in d bits
have the product 32 - 2 d, so that a layer with binary weights and binary activations
takes one XOR and one count for 32 multiplications. All sums are integers: they equal
those of the float convolution of the signs bit for bit. Binary products by XNOR and bit
counts: Rastegari et al., XNOR-Net, arXiv 1603.05279, section 3.2.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.ops import popcount_xla
from quantnet_jax.ops.products import Padding, check_floating, window

BITS = 32


def pack_signs(x: jax.Array) -> jax.Array:
    """Signs of the last axis in words; zero counts as +1, NaN as -1.

    Args:
      x: floating (..., C).

    Returns:
      uint32[..., ceil(C / 32)]; channel c is bit c % 32 of word c // 32, the bits
      behind the last channel are 0.

    Example:
      >>> pack_signs(jnp.asarray([1.0, -2.0, 0.0, -0.5])).tolist()
      [5]
    """
    bits = jnp.pad(x >= 0, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % BITS)])
    sizes = (*x.shape[:-1], bits.shape[-1] // BITS, BITS)
    bits = bits.reshape(sizes).astype(jnp.uint32)
    place = jnp.arange(BITS, dtype=jnp.uint32).reshape((1,) * (bits.ndim - 1) + (-1,))
    return jnp.sum(bits << place, axis=-1, dtype=jnp.uint32)


def pack_kernel(codes: jax.Array | np.ndarray) -> np.ndarray:
    """Binary codes in words along the input channels, the last axis but one.

    In NumPy, so that nothing is compiled for each shape; not for use inside jit.

    Args:
      codes: uint8[..., Cin, Cout], 1 for +1 and 0 for -1: the codes of a QTensor with
        levels (-1, +1), HWIO for a convolution.

    Returns:
      uint32[..., ceil(Cin / 32), Cout]; the bits behind the last channel are 0, as
      those of `pack_signs`, and cancel.

    Example:
      >>> pack_kernel(np.asarray([[1], [0], [1]], np.uint8)).tolist()
      [[5]]
    """
    bits = np.swapaxes(np.asarray(codes) != 0, -1, -2)
    bits = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % BITS)])
    words = np.packbits(np.ascontiguousarray(bits), axis=-1, bitorder="little")
    return np.swapaxes(words.view("<u4"), -1, -2).astype(np.uint32, order="C")


def pack_qtensor(qt: QTensor) -> tuple[np.ndarray, jax.Array]:
    """Words and scales of binary weights. Not for use inside jit (it reads values).

    Args:
      qt: (..., Cin, Cout), levels (-1, +1), a scale that differs only between output
        channels.

    Returns:
      (words of `pack_kernel`, float32[Cout]).

    Raises:
      ValueError: for other levels or scales.
    """
    if qt.levels.shape != (2,) or qt.levels.tolist() != [-1.0, 1.0]:
        raise ValueError(
            f"`levels` of shape {qt.levels.shape} are {np.asarray(qt.levels)}, "
            "expected [-1, 1]"
        )
    if any(size != 1 for size in qt.scale.shape[:-1]):
        raise ValueError(
            f"`scale` has shape {qt.scale.shape}, expected one number for each output "
            f"channel of {qt.shape}"
        )
    scale = jnp.broadcast_to(qt.scale.reshape(-1), qt.shape[-1:])
    return pack_kernel(qt.codes), scale


def binary_conv2d(
    x: jax.Array,
    words: jax.Array,
    *,
    scale: jax.Array | None = None,
    strides: int | Sequence[int] = (1, 1),
    padding: Padding = "SAME",
) -> jax.Array:
    """Convolution of the signs of `x` with binary weights.

    Equals `ops.conv2d(sign(x), qt)` bit for bit in float32, where sign(0) = +1
    and padding is zero, for the QTensor behind `words` and `scale`. There are no groups
    and no gradient.

    Args:
      x: floating (N, H, W, Cin).
      words: uint32[kh, kw, ceil(Cin / 32), Cout] of `pack_kernel`.
      scale: float32[Cout] that multiplies the sums, or None.
      strides: one positive integer, or one for height and one for width.
      padding: 'SAME', 'VALID', or ((top, bottom), (left, right)).

    Returns:
      (N, H', W', Cout): int32 sums, or with a scale their products in the dtype of `x`.

    Raises:
      ValueError: if shapes, dtypes, strides or padding do not fit.

    Example:
      >>> from quantnet_jax.core.qtensor import encode
      >>> levels = jnp.asarray([-1.0, 1.0])
      >>> latent = jax.random.normal(jax.random.key(0), (3, 3, 64, 8))
      >>> qt = QTensor(encode(latent, levels), levels, jnp.full((1, 1, 1, 8), 0.5))
      >>> words, scale = pack_qtensor(qt)
      >>> x = jax.random.normal(jax.random.key(1), (1, 7, 7, 64))
      >>> y = binary_conv2d(x, words, scale=scale, padding=((1, 1), (1, 1)))
      >>> y.shape, words.shape, str(words.dtype)
      ((1, 7, 7, 8), (3, 3, 2, 8), 'uint32')
    """
    _check(x, words, scale, 4)
    kh, kw, _, channels = words.shape
    steps, pads = _window(x.shape[1:3], (kh, kw), strides, padding)
    inside = [
        _inside(*numbers)
        for numbers in zip(x.shape[1:3], (kh, kw), steps, pads, strict=True)
    ]
    windows = list(_windows(pack_signs(x), inside, steps, pads))
    flat = words.reshape(-1, channels)
    different = popcount_xla.count(windows, flat, inside)
    rows, columns = inside
    # Products that are there at each pixel; those with the padding are zero.
    valid = np.outer(rows.sum(1), columns.sum(1)).astype(np.int32) * x.shape[-1]
    sums = jnp.asarray(valid, jnp.int32)[None, :, :, None] - 2 * different
    if scale is None:
        return sums
    return (sums.astype(jnp.float32) * scale[None, None, None]).astype(x.dtype)


def binary_dense(
    x: jax.Array,
    words: jax.Array,
    *,
    scale: jax.Array | None = None,
) -> jax.Array:
    """Matrix product of the signs of `x` with binary weights; see `binary_conv2d`.

    Args:
      x: floating (..., Cin).
      words: uint32[ceil(Cin / 32), Cout] of `pack_kernel`.
      scale: float32[Cout] that multiplies the sums, or None.

    Returns:
      (..., Cout): int32 sums, or with a scale their products in the dtype of `x`.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> words = pack_kernel(np.asarray([[1], [0], [1]], np.uint8))
      >>> binary_dense(jnp.asarray([[0.5, 3.0, 0.0]]), jnp.asarray(words)).tolist()
      [[1]]
    """
    _check(x, words, scale, 2)
    y = binary_conv2d(
        x.reshape(math.prod(x.shape[:-1]), 1, 1, x.shape[-1]),
        words[None, None],
        scale=scale,
    )
    return y.reshape(*x.shape[:-1], words.shape[-1])


def _inside(size: int, kernel: int, step: int, pads: Sequence[int]) -> np.ndarray:
    """bool[outputs, kernel]: whether an output's tap falls on the image, one axis."""
    count = (size + sum(pads) - kernel) // step + 1
    at = np.arange(count)[:, None] * step + np.arange(kernel) - pads[0]
    return (at >= 0) & (at < size)


def _windows(words: jax.Array, inside, steps, pads) -> Iterator[jax.Array]:
    """For each tap the words that it sees, (N, H', W', K); zeros in the padding."""
    (height, kh), (width, kw) = (axis.shape for axis in inside)
    words = jnp.pad(words, ((0, 0), *pads, (0, 0)))
    for i in range(kh):
        for j in range(kw):
            rows = slice(i, i + steps[0] * (height - 1) + 1, steps[0])
            columns = slice(j, j + steps[1] * (width - 1) + 1, steps[1])
            yield words[:, rows, columns]


def _check(x: jax.Array, words: jax.Array, scale: jax.Array | None, rank: int) -> None:
    expected = "(N, H, W, Cin) and (kh, kw, ceil(Cin / 32), Cout)"
    if rank == 2:
        expected = "(..., Cin) and (ceil(Cin / 32), Cout)"
    fits = x.ndim == 4 if rank == 4 else x.ndim >= 1
    if (
        not fits
        or words.ndim != rank
        or words.shape[-2] != -(-x.shape[-1] // BITS)
        or not x.shape[-1]
    ):
        raise ValueError(
            f"`x` of shape {x.shape} and `words` of shape {words.shape} do not fit; "
            f"expected {expected}"
        )
    check_floating(x)
    if words.dtype != jnp.uint32:
        raise ValueError(f"`words` have dtype {words.dtype}, expected uint32")
    if scale is not None and scale.shape != words.shape[-1:]:
        raise ValueError(
            f"`scale` has shape {scale.shape}, expected {words.shape[-1:]} or None"
        )


def _window(shape, kernel, strides, padding: Padding):
    """Strides and padding as two pairs of integers, and of pairs of them."""
    steps, pads = window(strides, padding)
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(shape, kernel, steps, pads)
    for size, taps, pad in zip(shape, kernel, pads, strict=True):
        if size + sum(pad) < taps:
            raise ValueError(
                f"a kernel of {kernel} does not fit into {tuple(shape)} pixels with "
                f"`padding` {padding!r}"
            )
    return steps, [tuple(map(int, pad)) for pad in pads]
