"""Codes of 1 to 8 bits in bytes, and back."""

import functools
import math

import jax
import jax.numpy as jnp

__all__ = ["pack", "unpack"]


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Packs codes into bytes.

    Code i (in row-major order) takes the bits i*bits ... (i+1)*bits-1 of the stream,
    least significant first; bit b of the stream is bit b%8 of byte b//8.

    Args:
      codes: uint8, any shape, values below 2**bits.
      bits: 1 to 8.

    Returns:
      uint8[ceil(codes.size * bits / 8)]; the last byte is filled with zeros.

    Raises:
      ValueError: if `bits` is not in 1..8.

    Example:
      >>> pack(jnp.asarray([1, 0, 1, 1], jnp.uint8), 1).tolist()
      [13]
    """
    _check_bits(bits)
    return _pack(codes, bits)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _pack(codes: jax.Array, bits: int) -> jax.Array:
    planes = codes.reshape(-1, 1) >> jnp.arange(bits, dtype=jnp.uint8)[None]
    return jnp.packbits((planes & jnp.uint8(1)).reshape(-1), bitorder="little")


def unpack(packed: jax.Array, bits: int, shape: tuple[int, ...]) -> jax.Array:
    """Inverse of `pack`: uint8 codes of `shape` from uint8 bytes.

    Raises:
      ValueError: if `bits` is not in 1..8 or the byte count does not fit `shape`.
    """
    _check_bits(bits)
    size = math.prod(shape)
    expected = -(-size * bits // 8)
    if packed.shape != (expected,):
        raise ValueError(
            f"`packed` has shape {packed.shape}; {size} codes of {bits} bits take "
            f"({expected},)"
        )
    return _unpack(packed, bits, tuple(shape))


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _unpack(packed: jax.Array, bits: int, shape: tuple[int, ...]) -> jax.Array:
    size = math.prod(shape)
    stream = jnp.unpackbits(packed, bitorder="little")[: size * bits]
    weights = jnp.left_shift(jnp.uint8(1), jnp.arange(bits, dtype=jnp.uint8))
    codes = (stream.reshape(-1, bits) * weights[None]).sum(-1, dtype=jnp.uint8)
    return codes.reshape(shape)


def _check_bits(bits: int) -> None:
    if bits not in range(1, 9):
        raise ValueError(f"`bits` is {bits!r}, expected an integer from 1 to 8")
