"""AUSN: superposed powers of two, whose layout is searched for each layer."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.common.limits import Number
from quantnet_jax.core import superposed
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.superposed import Layout
from quantnet_jax.posttrain.methods import solver
from quantnet_jax.posttrain.methods.solver import Scalars, Solver
from quantnet_jax.quantizers.options import ManyBits, Per

PowerBits = Annotated[int, Number(2, 5, whole=True)]


def nearest_of(tables: np.ndarray, scalars: Scalars, per: str) -> Solver:
    """To the nearest value of the table with the least clip plus rounding error.

    Args:
      tables: float32 (layouts, 2^bits), values in the order of the codes.
      scalars: radii to try, in units of the largest |w|.
      per: 'channel' or 'tensor': what has a radius of its own. The table is one.
    """
    orders = np.argsort(tables, axis=1, kind="stable")
    ascending = np.take_along_axis(tables, orders, axis=1)

    def solve(w, grams, key):
        del grams, key
        base, alone = solver.radius(w, 1.0, per), solver.uncorrelated(len(w))

        def attempt(levels):
            run = lambda scale: solver.nearest(w, levels, scale)
            qt = solver.best_scale(run, base / levels[-1], scalars, w, alone)
            # Beyond the radius |w| is clipped, below it rounded: the sum of both.
            return qt, jnp.sum((levels[qt.codes] * qt.scale - w) ** 2)

        tried, errors = jax.lax.map(attempt, jnp.asarray(ascending))
        best = jnp.argmin(errors)
        codes = jnp.asarray(orders.astype(np.uint8))[best][tried.codes[best]]
        return QTensor(codes, jnp.asarray(tables)[best], tried.scale[best])

    return Solver(solve, inputs=False)


@solver.method
def ausn(
    *,
    bits: ManyBits = 4,
    adaptive: bool = True,
    scalars: Scalars = solver.GRID,
    per: Per = "channel",
) -> Solver:
    """AUSN: a sign and several powers of two added up, in the layout that fits a layer.

    Forward: the nearest of s r (c + sum over the fields of 0 or 2^-e), see
      `quantnet_jax.core.superposed`; c is 0, or half the smallest power, so that no
      code is lost to a second zero. What exceeds the largest value becomes it: a carry
      saturates. Layout, c and r are those with the least clip error, sum of
      (|w| - R)^2 where |w| > R, plus rounding error, sum of (w - Q(w))^2 elsewhere;
      among the layouts are powers of two (one field) and uniform steps (each field of
      one bit).
    Backward: none, a method for trained weights.
    Learned: none.
    Reference: Liu et al., AUSN, arXiv 2007.03903, a reconstruction: layouts and rule
    of selection are ours.

    Args:
      bits: 2 to 8, one of them the sign.
      adaptive: search the layout for each layer; False: two fields of equal width, or
        nearly, and c = 0.
      scalars: radii to try, in units of the largest |w| of a unit.
      per: 'channel' (a radius for each output unit) or 'tensor'.
    """
    if not adaptive:
        return nearest_of(
            tables(_fields((bits // 2, bits - 1 - bits // 2))), scalars, per
        )
    found = superposed.layouts(bits)
    return nearest_of(tables(*found, constant=(False, True)), scalars, per)


@solver.method
def power_of_two(
    *, bits: PowerBits = 4, scalars: Scalars = solver.GRID, per: Per = "channel"
) -> Solver:
    """Round to nearest, levels 0 and +-2^-k: a product is a shift.

    Forward: the nearest of C r {0, +-2^-k}, k = 0 ... 2^(bits-1) - 2; C and r as in
      `rtn`.
    Backward: none, a method for trained weights.
    Learned: none.
    Reference: Zhou et al., INQ, arXiv 1702.03044 (the levels alone).

    Args:
      bits: 2 to 5.
      scalars: values of C to try.
      per: as in `rtn`.
    """
    return nearest_of(tables(_fields((bits - 1,))), scalars, per)


@solver.method
def apot(
    *, bits: ManyBits = 4, scalars: Scalars = solver.GRID, per: Per = "channel"
) -> Solver:
    """Round to nearest, sums of powers of two in the pattern of APoT.

    Forward: the nearest of C r s (sum of p_i), i < n, with p_i one of 0, 2^-i,
      2^-(i+n), 2^-(i+2n); the last p_i is 0 or 2^-i if bits is even. C and r as in
      `rtn`.
    Backward: none, a method for trained weights.
    Learned: none.
    Reference: Li et al., APoT, arXiv 1909.13144, equation 5 (the levels alone).

    Args:
      bits: 2 to 8.
      scalars: values of C to try.
      per: as in `rtn`.
    """
    pairs, single = divmod(bits - 1, 2)
    n = pairs + single
    widths = (2,) * pairs + (1,) * single
    fields = (tuple(range(i, i + n * (2**k - 1), n)) for i, k in enumerate(widths))
    return nearest_of(tables(Layout(tuple(fields))), scalars, per)


def shift_and_add(
    x: jax.Array, codes: jax.Array, layout: Layout, constant: bool = False
) -> jax.Array:
    """Integers times the values of codes, by shifts and additions alone.

    Args:
      x: int32, such as activations of 8 bits.
      codes: uint8, of the same shape.
      layout: of the codes.
      constant: whether c is half the smallest power, see `ausn`.

    Returns:
      int32, in units of 2^-(the largest exponent), of half of that with `constant`.

    Example:
      >>> x = jnp.full(4, 5, jnp.int32)
      >>> codes = jnp.arange(4, dtype=jnp.uint8)
      >>> shift_and_add(x, codes, Layout(((0, 1, 2),))).tolist()
      [0, 20, 10, 5]
    """
    deepest = _deepest(layout) + constant
    codes, total, place = codes.astype(jnp.int32), jnp.zeros_like(x), 0
    for field in layout.fields:
        width = len(field).bit_length()
        read = (codes >> place) & (2**width - 1)
        for number, exponent in enumerate(field, 1):
            total = total + jnp.where(read == number, x << (deepest - exponent), 0)
        place += width
    total = total + x if constant else total
    return jnp.where(codes >> place == 1, -total, total)


def tables(*found: Layout, constant: tuple[bool, ...] = (False,)) -> np.ndarray:
    """float32 (layouts, 2^bits), normalized by nothing: sums of powers of two."""
    rows = []
    for layout in found:
        for given in constant:
            c = 2.0 ** -(_deepest(layout) + 1) if given else 0.0
            size = superposed.magnitudes(layout) + np.float32(c)
            rows.append(np.concatenate([size, -size]))
    return np.stack(rows)


def _fields(widths: tuple[int, ...]) -> Layout:
    """Fields of these bits whose exponents follow each other, from 0 on."""
    fields, start = [], 0
    for width in filter(None, widths):
        fields.append(tuple(range(start, start + 2**width - 1)))
        start += 2**width - 1
    return Layout(tuple(fields))


def _deepest(layout: Layout) -> int:
    return max(map(max, layout.fields))
