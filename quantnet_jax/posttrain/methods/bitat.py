"""BiTAT's solver: binary weights, the most important inputs first, errors fed back."""

from typing import Annotated

import jax.numpy as jnp

from quantnet_jax.common.limits import Number
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.posttrain.methods import solver
from quantnet_jax.posttrain.methods.error_feedback import Damping, feed_back
from quantnet_jax.posttrain.methods.solver import Grams, Scalars, Solver, dot
from quantnet_jax.quantizers.options import Share

Sweeps = Annotated[int, Number(0, 100, whole=True)]
SCALARS: Scalars = tuple(0.5 + 0.1 * i for i in range(11))


@solver.method
def bitat(
    *,
    scalars: Scalars = SCALARS,
    damping: Damping = 0.01,
    share: Share = 1.0,
    sweeps: Sweeps = 2,
) -> Solver:
    """BiTAT: binarizes inputs in the order of their importance, with error feedback.

    Forward: H = Xq^T Xq = V diag(h) V^T, the importance of input j is the sum of h_i
      V_ji^2 over the leading directions i; b_j = sign(w_j), sign(0) = +1, in descending
      order, after each of which the rest makes up for the error as in
      `error_feedback`; then in `sweeps` more rounds each sign is chosen again, all
      others given; the scale of a unit is that of least output error for its b.
    Backward: none, a method for trained weights.
    Learned: none. The scale before the last fit is mean |w| times one of `scalars`.

    Reference: Park et al., BiTAT, arXiv 2207.01394, a reconstruction of its
    quantization with error feedback; the training around it is not here.

    Args:
      scalars: scales to try, in units of mean |w|.
      damping: added to h, in units of its mean.
      share: of the sum of h that the leading directions have.
      sweeps: rounds after the first, 0 to 100.
    """
    levels = solver.symmetric_levels(1)

    def solve(w, grams: Grams, key) -> QTensor:
        del key
        h, v = jnp.linalg.eigh(grams.quantized)
        h = jnp.maximum(h, 0.0)
        shift = damping * jnp.mean(h)
        shift = jnp.where(shift > 0.0, shift, 1.0)
        before = jnp.cumsum(h[::-1])[::-1] - h  # of larger ones
        leading = jnp.where(before < share * jnp.sum(h), h, 0.0)
        order = jnp.argsort(-dot(v**2, leading[:, None])[:, 0])
        hessian = dot(v * (h + shift)[None], v.T)
        mixed = grams.mixed + shift * jnp.eye(len(w), dtype=w.dtype)
        best = dot(v, dot(v.T, dot(mixed, w)) / (h + shift)[:, None])

        diagonal = jnp.diagonal(hessian)[:, None]
        goal, factor = dot(hessian, best) / diagonal, hessian / diagonal

        def run(scale):
            codes = feed_back(best, hessian, order, levels, scale).codes
            for _ in range(sweeps):
                code_of = lambda z, t: encode(z, levels)
                value_of = lambda codes: levels[codes] * scale[0]
                start = levels[codes] * scale
                codes = solver.in_order(goal, factor, code_of, value_of, start)
            b = levels[codes]
            size = jnp.sum(b * dot(grams.quantized, b), 0, keepdims=True)
            along = jnp.sum(b * dot(grams.mixed, w), 0, keepdims=True)
            fitted = along / jnp.where(size > 0.0, size, 1.0)
            return QTensor(codes, levels, jnp.where(fitted > 0.0, fitted, scale))

        base = jnp.mean(jnp.abs(best), axis=0, keepdims=True)
        base = jnp.where(base > 0.0, base, 1.0)
        return solver.best_scale(run, base, scalars, w, grams)

    return Solver(solve)
