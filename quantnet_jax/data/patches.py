"""Random crops of images and of their targets, with the symmetries of the square."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
_PURPOSE = 0x5B1  # domain-separation constant for fold_in


def draw(
    position: Array, *, seed: int, free: tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Random corners and symmetries, for each example.

    Args:
      position: uint32 [B], positions in the training stream.
      seed: 0 <= seed < 2**32.
      free: by how many pixels the image is higher and wider than a crop.

    Returns:
      (top, left, turn): int32 [B], each at most `free`, and int32 [B] of 0 to 7.
    """
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _PURPOSE)

    def one(p):
        # 32 bits modulo the number of corners: the bias is below 1e-6.
        bits = jax.random.bits(jax.random.fold_in(key, p), (3,), jnp.uint32)
        sizes = jnp.asarray([free[0] + 1, free[1] + 1, 8], jnp.uint32)
        return (bits % sizes).astype(jnp.int32)

    found = jax.vmap(one)(position)
    return found[:, 0], found[:, 1], found[:, 2]


def crops(
    image: Array, row: Array, top: Array, left: Array, turn: Array, size: int
) -> Array:
    """The squares of `size` pixels at some corners, each turned as given.

    Args:
      image: [N, H, W, C].
      row: int32 [B], rows of `image`.
      top, left: int32 [B], corners.
      turn: int32 [B]; bit 0 transposes, bit 1 reverses rows, bit 2 columns, in this
        order.
      size: of a crop.

    Returns:
      [B, size, size, C].
    """
    zero = jnp.zeros((), jnp.int32)

    def one(row, top, left):
        corner = (row, top, left, zero)
        return lax.dynamic_slice(image, corner, (1, size, size, image.shape[-1]))[0]

    x = jax.vmap(one)(row, top, left)
    turns = (lambda x: x.swapaxes(1, 2), lambda x: x[:, ::-1], lambda x: x[:, :, ::-1])
    for bit, turned in enumerate(turns):
        chosen = (turn >> bit & 1 == 1)[:, None, None, None]
        x = jnp.where(chosen, turned(x), x)
    return x
