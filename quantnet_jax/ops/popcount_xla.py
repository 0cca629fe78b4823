"""Counts of the bits in which pixels and weights differ, as loops that XLA compiles."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Inside = Sequence[np.ndarray]
"""bool[H', kh] and bool[W', kw]: whether the taps of an output fall on the image."""

ONES = np.uint32(2**32 - 1)
LARGEST_BLOCK = 36
"""Words that one compiled loop sums at most."""
SMALLEST_BLOCK = 16
"""Below that XLA fuses the cut of a block into the loop that uses it (it duplicates a
computation up to 15 times), and LLVM no longer turns that loop into vectors."""
CACHE = 32768
"""Bytes of weights that one loop runs over for each pixel: a first-level cache."""


def count(windows: Sequence[jax.Array], words: jax.Array, inside: Inside) -> jax.Array:
    """Number of bits in which pixels and weights differ, on the image alone.

    The terms are written out, so that XLA makes one loop of them: over the pixels, and
    inside it over the output channels, which LLVM turns into vectors; the words of a
    pixel stay in registers. A long sum goes block by block, with as many words as the
    cache holds weights for: their second use, at the next pixel, is then fast.

    Args:
      windows: for each tap the words that it sees, uint32 (N, H', W', K).
      words: of the weights, uint32[kh kw K, Cout].
      inside: see `Inside`.

    Returns:
      int32 (N, H', W', Cout).
    """
    total, channels = words.shape
    largest = max(SMALLEST_BLOCK, min(LARGEST_BLOCK, CACHE // (4 * channels)))
    per_tap = windows[0].shape[-1]
    masks = _masks(inside)
    if total <= largest:
        pixels = [w[..., k, None] for w in windows for k in range(per_tap)]
        spread = [mask for mask in masks for _ in range(per_tap)]
        return _terms(pixels, words, spread).astype(jnp.int32)
    size = max(SMALLEST_BLOCK, -(-total // -(-total // largest)))
    pixels = _blocks(jnp.concatenate(windows, axis=-1), size)
    weights = jnp.pad(words, ((0, -total % size), (0, 0))).reshape(-1, size, channels)
    blocks: tuple[jax.Array, ...] = (pixels, weights)
    if any(mask is not None for mask in masks):
        blocks += (_blocks(_all_masks(inside, per_tap), size),)

    def add(count, block):
        each = lambda x: [x[..., k, None] for k in range(size)]
        mask = each(block[2]) if len(block) == 3 else [None] * size
        return count + _terms(each(block[0]), block[1], mask), None

    start = jnp.zeros((*windows[0].shape[:3], channels), jnp.uint32)
    return lax.scan(add, start, blocks)[0].astype(jnp.int32)


def _all_masks(inside: Inside, per_tap: int) -> jax.Array:
    """The masks of every word of every tap, uint32[1, H', W', kh kw per_tap]."""
    rows, columns = inside
    image = rows[:, None, :, None] & columns[None, :, None, :]
    image = np.repeat(image.reshape(1, len(rows), len(columns), -1), per_tap, axis=-1)
    return jnp.asarray(np.where(image, ONES, np.uint32(0)))


def _masks(inside: Inside) -> list[jax.Array | None]:
    """For each tap all ones where it is on the image, else 0; None: it always is.

    uint32[1, H', W', 1], from one vector for each axis.
    """
    rows, columns = (np.where(axis, ONES, np.uint32(0)) for axis in inside)
    return [
        None
        if row.all() and column.all()
        else (jnp.asarray(row)[:, None] & jnp.asarray(column)[None])[None, :, :, None]
        for row in rows.T
        for column in columns.T
    ]


def _terms(pixels, words: jax.Array, masks) -> jax.Array:
    """Sum over k of the bits of (pixels[k] ^ words[k]) & masks[k]."""

    def term(pixel, word, mask):
        different = pixel ^ word[None, None, None]
        return lax.population_count(different if mask is None else different & mask)

    return functools.reduce(
        jnp.add, (term(*x) for x in zip(pixels, words, masks, strict=True))
    )


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """(N, H, W, T) -> (ceil(T / size), N, H, W, size), filled with zeros."""
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -x.shape[-1] % size)))
    return jnp.moveaxis(x.reshape(*x.shape[:3], -1, size), 3, 0)
