"""Rounding to the nearest level of a table, without a look at the inputs."""

from quantnet_jax.core.combine import uniform_levels
from quantnet_jax.posttrain.methods import solver
from quantnet_jax.posttrain.methods.solver import Scalars, Solver
from quantnet_jax.quantizers.options import Bits, Per, Share


def _nearest(levels, scalars: Scalars, quantile: float, per: str) -> Solver:
    """To the nearest level; the radius of least squared error of the weights."""

    def solve(w, grams, key):
        del grams, key
        run = lambda scale: solver.nearest(w, levels, scale)
        base = solver.radius(w, quantile, per)
        return solver.best_scale(run, base, scalars, w, solver.uncorrelated(len(w)))

    return Solver(solve, inputs=False)


@solver.method
def rtn(
    *,
    bits: Bits = 4,
    scalars: Scalars = solver.GRID,
    quantile: Share = 1.0,
    per: Per = "channel",
) -> Solver:
    """Round to nearest, in the alphabet of GPFQ: 2^bits - 1 evenly spaced levels.

    Forward: the nearest of C r {-1 ... 0 ... 1} (1 bit: C r {-1, 1}), r the
      `quantile` of |w|, C that of `scalars` with the least squared error of the
      weights.
    Backward: none, a method for trained weights.
    Learned: none.
    Reference: none, the memoryless baseline (MSQ) of arXiv 2201.11113.

    Args:
      bits: 1 to 8.
      scalars: values of C to try.
      quantile: of |w| over the inputs of a unit, 1.0 for the maximum.
      per: 'channel' (a radius for each output unit) or 'tensor' (their mean).
    """
    return _nearest(solver.symmetric_levels(bits), scalars, quantile, per)


@solver.method
def uniform(
    *, bits: Bits = 4, scalars: Scalars = solver.GRID, per: Per = "channel"
) -> Solver:
    """Round to nearest, all 2^bits evenly spaced levels, none of them zero.

    Forward: the nearest of C r (2 k / (2^bits - 1) - 1), k = 0 ... 2^bits - 1; C and r
      as in `rtn`.
    Backward: none, a method for trained weights.
    Learned: none. Reference: none.

    Args:
      bits: 1 to 8.
      scalars: values of C to try.
      per: as in `rtn`.
    """
    return _nearest(uniform_levels(bits), scalars, 1.0, per)
