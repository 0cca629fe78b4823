"""Error feedback in the manner of GPTQ: later codes make up for earlier ones."""

from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Choice, Number
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.posttrain.methods import solver
from quantnet_jax.posttrain.methods.solver import Grams, Scalars, Solver, dot
from quantnet_jax.quantizers.options import Bits, Per, Share

Damping = Annotated[float, Number(1e-6, 1e3)]
Order = Annotated[str, Choice(("given", "importance"))]


@solver.method
def error_feedback(
    *,
    bits: Bits = 4,
    scalars: Scalars = solver.GRID,
    quantile: Share = 1.0,
    per: Per = "channel",
    damping: Damping = 0.01,
    order: Order = "given",
    correct: bool = True,
) -> Solver:
    """Rounds input after input; those not yet rounded make up for the error (GPTQ).

    Forward: with H = Xq^T Xq + a I, q_t = Q(w_t), then w_s <- w_s - (w_t - q_t)
      [F^-1]_ts / [F^-1]_tt for s > t, where F is H without the rows and columns before
      t. Levels as in `rtn`.
    Backward: none, a method for trained weights.
    Learned: none. C is that of `scalars` with the least output error.

    Reference: Frantar et al., GPTQ, arXiv 2210.17323, section 3 (optimal brain surgeon,
    arXiv 2208.11580). Computed by the triangular factor H = K^T K, which is the same
    rounding (no inverse is formed).
    Deviations: `correct`; a search for C; all output units share an order.

    Args:
      bits: 1 to 8; 1 has the levels -1 and 1.
      scalars: values of C to try.
      quantile: of |w| over the inputs of a unit, 1.0 for the maximum.
      per: 'channel' (a radius for each output unit) or 'tensor' (their mean).
      damping: a, in units of the mean diagonal of Xq^T Xq.
      order: 'given', or by 'importance': inputs of large power first.
      correct: start from the weights that fit the outputs of the float network best,
        (H)^-1 (Xq^T X + a I) w, in place of w.
    """
    levels = solver.symmetric_levels(bits)

    def solve(w, grams: Grams, key) -> QTensor:
        del key
        hessian, shift = damped(grams.quantized, damping)
        if correct:
            mixed = grams.mixed + shift * jnp.eye(len(w), dtype=w.dtype)
            w_start = jnp.linalg.solve(hessian, dot(mixed, w))
        else:
            w_start = w
        at = jnp.arange(len(w))
        if order == "importance":
            at = jnp.argsort(-jnp.diagonal(hessian))
        run = lambda scale: feed_back(w_start, hessian, at, levels, scale)
        base = solver.radius(w, quantile, per)
        return solver.best_scale(run, base, scalars, w, grams)

    return Solver(solve)


def feed_back(
    w: jax.Array, hessian: jax.Array, order: jax.Array, levels: jax.Array, scale
) -> QTensor:
    """Error feedback over the inputs in a given order.

    Args:
      w: float32 (N, M).
      hessian: float32 (N, N), positive definite.
      order: int (N,), a permutation.
      levels: float32 (L,), ascending.
      scale: float32 (1, M) or (1, 1).
    """
    scale = jnp.broadcast_to(scale, (1, w.shape[1]))
    factor = lower_factor(hessian[order][:, order])
    code_of = lambda z, t: encode(z / scale[0], levels)
    value_of = lambda codes: levels[codes] * scale[0]
    codes = solver.in_order(dot(factor, w[order]), factor, code_of, value_of)
    return QTensor(jnp.zeros_like(codes).at[order].set(codes), levels, scale)


def lower_factor(hessian: jax.Array) -> jax.Array:
    """Unit lower triangular R with H = R^T D R for a diagonal D."""
    reverse = jnp.linalg.cholesky(hessian[::-1, ::-1])
    lower = reverse.T[::-1, ::-1]
    return lower / jnp.diagonal(lower)[:, None]


def damped(gram: jax.Array, damping: float) -> tuple[jax.Array, jax.Array]:
    """(gram + a I, a), a = `damping` times the mean diagonal, positive in any case."""
    shift = damping * jnp.mean(jnp.diagonal(gram))
    shift = jnp.where(shift > 0.0, shift, 1.0)
    return gram + shift * jnp.eye(len(gram), dtype=gram.dtype), shift
