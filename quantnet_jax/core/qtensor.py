"""The deployed tensor: codes, a table of levels, a scale."""

import dataclasses
import functools
import math
from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from quantnet_jax.core.serial import Serializable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor(Serializable):
    """A quantized tensor; the only thing that evaluation, packing and export consume.

    Its value is `levels[codes] * scale`. Invariants (see `validate`): `codes.shape` is
    the shape of the original weights; `levels` has 2 to 256 entries, in ascending order
    unless a method defines a hardware code and orders the table by it; `scale`
    broadcasts to `codes.shape`.

    Attributes:
      codes: uint8, the shape of the weights; an index into `levels`. For a binary
        tensor the code is the bit.
      levels: float32[L], the value of each code; or float32[C, L], one table for each
        of the C output channels (the last axis of the weights); or one more axis than
        the weights, whose leading axes broadcast to theirs.
      scale: float32, broadcastable to `codes.shape` (same rank or scalar).
    """

    codes: jax.Array
    levels: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return self.codes.shape

    @property
    def ndim(self) -> int:
        """Number of axes of the weights."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the values: that of `dequantize(self)`."""
        return jnp.dtype(self.levels.dtype)

    @property
    def bits(self) -> int:
        """Bits that one code takes when packed: ceil(log2(L)), at least 1."""
        return code_bits(self.levels.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form: packed codes, levels and scale, as in a file.

        In memory each code takes a byte.
        """
        tables = math.prod(self.levels.shape) + math.prod(self.scale.shape)
        return -(-self.size * self.bits // 8) + 4 * tables


def code_bits(levels: int) -> int:
    """Bits that distinguish `levels` values (2 -> 1, 3 -> 2, 16 -> 4)."""
    return max(1, math.ceil(math.log2(levels)))


def trim(qt: QTensor) -> QTensor:
    """`qt` without repeated levels, if its codes take fewer bits then; equal values.

    For a quantizer that learns its width: dropped levels repeat their neighbours. Where
    values are not at hand (inside jit, of shapes) nothing is trimmed.

    Example:
      >>> levels = jnp.asarray([-2.0, -2.0, 0.0, 0.0])
      >>> qt = QTensor(jnp.asarray([0, 3], jnp.uint8), levels, jnp.ones(()))
      >>> trim(qt).bits, dequantize(trim(qt)).tolist()
      (1, [-2.0, 0.0])
    """
    unknown = isinstance(qt.levels, Tracer | jax.ShapeDtypeStruct)
    if unknown or qt.levels.ndim != 1:
        return qt
    found, place = np.unique(np.asarray(qt.levels), return_inverse=True)
    if len(found) < 2 or code_bits(len(found)) == qt.bits:
        return qt
    codes = place.astype(np.uint8)[np.asarray(qt.codes)]
    return QTensor(jnp.asarray(codes), jnp.asarray(found), qt.scale)


def is_qtensor(x: object) -> TypeGuard[QTensor]:
    """True for a QTensor; the `is_leaf` of `jax.tree.map` over quantized trees."""
    return isinstance(x, QTensor)


@functools.partial(jax.jit, inline=True)
def encode(x: jax.Array, levels: jax.Array) -> jax.Array:
    """Codes of the nearest level.

    Args:
      x: float32, any shape.
      levels: float32[L], ascending, 2 <= L <= 256.

    Returns:
      uint8 codes of the shape of `x`. On a midpoint the upper level wins, so that
      encode(0, [-1, 1]) is 1: the sign of zero is +1.

    Example:
      >>> encode(jnp.asarray([-0.3, 0.0, 2.0]), jnp.asarray([-1.0, 1.0])).tolist()
      [0, 1, 1]
    """
    midpoints = (levels[1:] + levels[:-1]) / 2
    return jnp.searchsorted(midpoints, x, side="right").astype(jnp.uint8)


def dequantize(qt: QTensor | jax.Array) -> jax.Array:
    """Float32 values of a QTensor; a float array (identity) passes through."""
    return lookup(qt) * qt.scale if isinstance(qt, QTensor) else qt


@functools.partial(jax.jit, inline=True)
def lookup(qt: QTensor) -> jax.Array:
    """Float32 `levels[codes]`: the values of a QTensor before its scale."""
    if qt.levels.ndim == 1:
        return qt.levels[qt.codes]
    if qt.levels.ndim > 2 or len(qt.shape) < 2:
        sizes = qt.levels.shape[:-1]
        at = jnp.indices(qt.shape, sparse=True)
        index = [jnp.minimum(i, n - 1) for i, n in zip(at, sizes, strict=True)]
        return qt.levels[(*index, qt.codes)]
    channels = jnp.arange(qt.shape[-1]).reshape((1,) * (len(qt.shape) - 1) + (-1,))
    return qt.levels[jnp.broadcast_to(channels, qt.shape), qt.codes]


def validate(qt: QTensor, name: str = "tensor") -> QTensor:
    """Returns `qt` if it satisfies the invariants of `QTensor`.

    Checks shapes and dtypes always, and that codes are below the number of levels and
    that floats are finite. Not for use inside jit (it reads values).

    Raises:
      ValueError: naming the tensor, the field, what was found and what is allowed.
    """
    if qt.codes.dtype != jnp.uint8:
        raise ValueError(f"{name}: codes are {qt.codes.dtype}, expected uint8")
    levels = qt.levels.shape
    general = len(levels) == len(qt.shape) + 1 and all(
        n in (1, m) for n, m in zip(levels, qt.shape, strict=False)
    )
    fits = levels[:-1] in ((), qt.shape[-1:]) or general
    if not fits or not 2 <= levels[-1] <= 256:
        raise ValueError(
            f"{name}: levels have shape {levels}, expected (2..256,), "
            f"(channels, 2..256) or (broadcastable, 2..256) for codes of shape "
            f"{qt.shape}"
        )
    for field, x in (("levels", qt.levels), ("scale", qt.scale)):
        if x.dtype != jnp.float32 or not np.isfinite(x).all():
            raise ValueError(f"{name}: {field} must be finite float32, got {x.dtype}")
    fits = qt.scale.ndim in (0, qt.codes.ndim) and all(
        s in (1, c) for s, c in zip(qt.scale.shape, qt.codes.shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name}: scale of shape {qt.scale.shape} does not broadcast to codes of "
            f"shape {qt.codes.shape}"
        )
    if qt.codes.size and int(qt.codes.max()) >= levels[-1]:
        raise ValueError(
            f"{name}: code {int(qt.codes.max())} is outside the table of {levels[-1]}"
        )
    return qt
