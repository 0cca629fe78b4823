"""GPFQ: greedy path-following quantization, one input after the other.

Zhang, Zhou, Saab, Post-training Quantization for Neural Networks with Provable
Guarantees, arXiv 2201.11113; the first version is Lybrand and Saab, JMLR 22 (2021).
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Choice, Number
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.posttrain.methods import solver
from quantnet_jax.posttrain.methods.solver import Grams, Scalars, Solver, dot
from quantnet_jax.quantizers.options import Bits, Per, Share

Mode = Annotated[str, Choice(("nearest", "soft", "hard", "stochastic"))]
Threshold = Annotated[float, Number(0, 100)]


@solver.method
def gpfq(
    *,
    bits: Bits = 4,
    scalars: Scalars = solver.GRID,
    quantile: Share = 1.0,
    per: Per = "channel",
    mode: Mode = "nearest",
    threshold: Threshold = 0.5,
) -> Solver:
    """GPFQ: each code makes up for the error that those before it left in the outputs.

    Forward: u_0 = 0; for t = 1 ... N: v = u_(t-1) + w_t X_t,
      q_t = Q(<Xq_t, v> / |Xq_t|^2), u_t = v - q_t Xq_t; an input that is always zero
      gets Q(0). Q: to the nearest of 2^bits - 1 levels d {-K ... K}, d = C r / K, r the
      `quantile` of |w|. mode='soft': of sign(z) max(|z| - h, 0); 'hard': 0 where
      |z| <= h, else the nearest of K evenly spaced levels from h to C r;
      'stochastic': to one of both neighbours, in the mean z.
    Backward: none, a method for trained weights.
    Learned: none. C is that of `scalars` with the least output error.

    Computed from Gram matrices alone: with G = Xq^T Xq and M = Xq^T X the quotient is
    (sum over s <= t of M_ts w_s - sum over s < t of G_ts q_s) / G_tt.

    Reference: arXiv 2201.11113, equations 4 and 5, section 5 (sparse variants).
    Deviations: K = 2^(bits-1) - 1, so that a code takes `bits` bits (published:
    2^(bits-1), 2^bits + 1 levels); one radius for each output unit (published:
    per='tensor'); a search for C (published: scalars=(1.16,)); h in units of d.

    Args:
      bits: 1 to 8; 1 has the levels -1 and 1.
      scalars: values of C to try.
      quantile: of |w| over the inputs of a unit, 1.0 for the maximum.
      per: 'channel' (a radius for each output unit) or 'tensor' (their mean).
      mode: 'nearest', or sparse by 'soft' or 'hard' threshold, or 'stochastic'.
      threshold: h of the sparse modes; 'hard' needs at least 3 bits, and h <= K.
    """
    if mode == "hard" and bits < 3:
        raise ValueError(f"bits={bits}, expected at least 3 for mode='hard'")
    if mode == "hard" and threshold > (most := 2 ** (bits - 1) - 1):
        text = f"expected at most {most} for mode='hard' and bits={bits}"
        raise ValueError(f"threshold={threshold}, {text}")
    levels = _levels(bits, mode, threshold)

    def solve(w, grams: Grams, key) -> QTensor:
        diagonal = jnp.diagonal(grams.quantized)[:, None]
        seen = diagonal > 0.0
        inverse = jnp.where(seen, 1.0 / jnp.where(seen, diagonal, 1.0), 0.0)
        target = inverse * dot(jnp.tril(grams.mixed), w)
        noise = jax.random.uniform(key, w.shape, w.dtype, -0.5, 0.5)

        def run(scale):
            scale = jnp.broadcast_to(scale, (1, w.shape[1]))
            code_of = lambda z, t: _code(
                z / scale[0], levels, mode, threshold, noise[t]
            )
            value_of = lambda codes: levels[codes] * scale[0]
            factor = inverse * grams.quantized
            codes = solver.in_order(target, factor, code_of, value_of)
            return QTensor(codes, levels, scale)

        base = solver.radius(w, quantile, per)
        return solver.best_scale(run, base, scalars, w, grams)

    return Solver(solve)


def _levels(bits: int, mode: str, threshold: float) -> jax.Array:
    """Levels from -1 to 1, in units of C r."""
    levels = solver.symmetric_levels(bits)
    if mode != "hard":
        return levels
    count = 2 ** (bits - 1) - 1
    positive = jnp.linspace(threshold / count, 1.0, count, dtype=jnp.float32)
    return jnp.concatenate([-positive[::-1], jnp.zeros(1, jnp.float32), positive])


def _code(z, levels, mode: str, threshold: float, noise):
    """Codes of numbers in units of C r; `noise` is uniform in [-1/2, 1/2)."""
    step = levels[-1] - levels[-2] if levels.shape[0] > 2 else 2.0 * levels[-1]
    if mode == "soft":
        h = threshold * step
        z = jnp.sign(z) * jnp.maximum(jnp.abs(z) - h, 0.0)
    elif mode == "hard":
        h = threshold / ((levels.shape[0] - 1) // 2)
        z = jnp.where(jnp.abs(z) <= h, 0.0, z)
    elif mode == "stochastic":
        z = z + step * noise
    return encode(z, levels)
