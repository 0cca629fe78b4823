"""Superposed powers of two (AUSN): code layouts, their levels, rounding, the search.

A code of b bits is a sign bit and fields of k_1 ... k_S bits, sum k_s = b - 1. A field
chooses one of its powers of two, or none (its number 0), and the value is

    sign * scale * sum_s 2^-e_s    (nothing for a field whose number is 0)

so a product takes shifts and additions alone, and each field is read as it stands, with
no decoder. The fields share no power: only minus zero, which is never made, says again
what another code says. Layouts of one-bit fields are uniform grids, one field alone is
power-of-two quantization, interleaved fields are APoT (arXiv 1909.13144).

Liu et al., AUSN, arXiv 2007.03903. Its coding and its selection are not public: both
are a reconstruction.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

WIDEST = 4
"""Bits of a field at most."""
SMALLEST = 24
"""The largest exponent: 2^-24 of the largest level is nothing in float32."""
SKETCH = 2048
"""Numbers that stand for a larger tensor in `search`."""
RANGES = 32
EPS = 1e-30


class Layout(NamedTuple):
    """How a code is divided.

    Attributes:
      fields: of each field the exponents e of the powers 2^-e that its numbers 1, 2,
        ... choose, 2^k - 1 for a field of k bits; the first field holds the lowest
        bits of the code.
    """

    fields: tuple[tuple[int, ...], ...]

    @property
    def bits(self) -> int:
        """Of a code, with its sign."""
        return 1 + sum((len(f) + 1).bit_length() - 1 for f in self.fields)


class Found(NamedTuple):
    """What `search` returns, float32 scalars.

    Attributes:
      index: of the layout in `layouts(bits)`, an int32.
      scale: of its levels.
      clip_error: mean over all weights of (|w| - R)^2 where |w| > R, the largest
        level; 0 elsewhere.
      round_error: mean over all weights of (w - Q(w))^2 where |w| <= R; 0 elsewhere.
    """

    index: jax.Array
    scale: jax.Array
    clip_error: jax.Array
    round_error: jax.Array


@functools.cache
def layouts(bits: int) -> tuple[Layout, ...]:
    """All layouts of a width: every division into fields of at most `WIDEST` bits,
    with the powers of one field after those of another, and with the powers in turn.

    Args:
      bits: of a code, 2 to 8.

    Example:
      >>> [x.fields for x in layouts(3)]
      [((0, 1, 2),), ((0,), (1,))]
    """
    if bits not in range(2, 9):
        raise ValueError(f"bits={bits!r}, expected a whole number from 2 to 8")
    found = {}
    for widths in _divisions(bits - 1):
        sizes = [2**k - 1 for k in widths]
        ends = list(itertools.accumulate(sizes, initial=0))
        spans = itertools.pairwise(ends)
        after = tuple(tuple(range(*span)) for span in spans)
        count = len(sizes)
        turns = tuple(
            tuple(s + count * i for i in range(n)) for s, n in enumerate(sizes)
        )
        for fields in (after, turns):
            if max(e for f in fields for e in f) <= SMALLEST:
                found[Layout(fields)] = None
    return tuple(found)


def _divisions(bits: int) -> list[tuple[int, ...]]:
    """Ordered sums of `bits`, the widest parts first."""
    if bits == 0:
        return [()]
    firsts = range(min(bits, WIDEST), 0, -1)
    return [(k, *rest) for k in firsts for rest in _divisions(bits - k)]


def magnitudes(layout: Layout) -> np.ndarray:
    """float32[2^(bits-1)]: the level of each code without its sign bit, exact.

    Example:
      >>> magnitudes(Layout(((0,), (1,)))).tolist()
      [0.0, 1.0, 0.5, 1.5]
    """
    total = np.zeros(1, np.float32)
    for field in layout.fields:
        powers = np.asarray([0.0, *(2.0**-e for e in field)], np.float32)
        total = (powers[:, None] + total).reshape(-1)
    return total


def levels(layout: Layout) -> np.ndarray:
    """float32[2^bits]: the level of each code, the highest bit being the sign."""
    found = magnitudes(layout)
    return np.concatenate([found, -found])


@functools.cache
def tables(bits: int) -> np.ndarray:
    """float32 (layouts, 2^(bits-1)): `magnitudes` of each of `layouts(bits)`."""
    return np.stack([magnitudes(x) for x in layouts(bits)])


@functools.partial(jax.jit, inline=True)
def encode(x: jax.Array, table: jax.Array) -> jax.Array:
    """Codes of the nearest level, halves away from zero.

    A carry from a field into the next is part of it, and ends at the largest level:
    nothing overflows.

    Args:
      x: float32, any shape, in units of the scale.
      table: float32[2^(bits-1)], magnitudes by code.

    Returns:
      uint8 of the shape of `x`.
    """
    order = jnp.argsort(table)
    rising = table[order]
    midpoints = (rising[1:] + rising[:-1]) / 2
    place = jnp.searchsorted(midpoints, jnp.abs(x), side="right")
    code = order[place] + jnp.where((x < 0) & (place > 0), table.size, 0)
    return code.astype(jnp.uint8)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def search(w: jax.Array, bits: int) -> Found:
    """The layout and the scale with the least clipping and rounding error.

        error = mean (|w| - R)^2 [|w| > R] + mean (w - Q(w))^2 [|w| <= R]

    For each layout the largest level R is tried at 32 parts of max |w|, from 0.1 to 1
    by equal factors; the scale of the best one is then fitted by least squares to the
    codes that it makes, a few times. Works under jit, vmap and eval_shape. Of equal
    layouts the first counts, to one part in 10^4.

    Args:
      w: float32, any shape; of more than 2048 weights that many order statistics.
      bits: of a code, 2 to 8.
    """
    size = jnp.sort(jnp.abs(w).reshape(-1))
    if size.size > SKETCH:
        size = size[((np.arange(SKETCH) + 0.5) * size.size / SKETCH).astype(np.int32)]
    largest = jnp.maximum(size[-1], EPS)
    size = size / largest
    rising = jnp.asarray(np.sort(tables(bits), axis=1))
    parts = jnp.asarray(np.geomspace(0.1, 1.0, RANGES), jnp.float32)

    def of_layout(table):
        return jax.vmap(lambda part: jnp.mean(_errors(size, table, part / table[-1])))(
            parts
        )

    errors = jax.lax.map(of_layout, rising)
    best = jnp.min(errors, axis=1)
    index = jnp.argmax(best <= jnp.min(best) * (1 + 1e-4))
    table, scale = rising[index], parts[jnp.argmin(errors[index])] / rising[index, -1]
    for _ in range(4):
        q = _nearest(size / scale, table)
        norm = jnp.sum(q * q)
        scale = jnp.where(norm > 0, jnp.sum(q * size) / jnp.maximum(norm, EPS), scale)
    error, clipped = _errors(size, table, scale), size > scale * table[-1]
    mean = lambda x: jnp.mean(x) * largest**2
    return Found(
        index.astype(jnp.int32),
        scale * largest,
        mean(jnp.where(clipped, error, 0.0)),
        mean(jnp.where(clipped, 0.0, error)),
    )


def _nearest(x: jax.Array, rising: jax.Array) -> jax.Array:
    midpoints = (rising[1:] + rising[:-1]) / 2
    return rising[jnp.searchsorted(midpoints, x, side="right")]


def _errors(size: jax.Array, rising: jax.Array, scale: jax.Array) -> jax.Array:
    return (size - scale * _nearest(size / scale, rising)) ** 2
