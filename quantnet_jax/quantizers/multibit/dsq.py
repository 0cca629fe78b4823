"""DSQ: a chain of tanh steps whose shape, and range, are learned."""

import jax
import jax.numpy as jnp

from quantnet_jax.core.combine import straight_through
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    as_schedule,
    factory,
    no_penalty,
)
from quantnet_jax.core.surrogates import identity_slope, sign, with_slope
from quantnet_jax.quantizers.multibit.uniform import rms
from quantnet_jax.quantizers.options import Bits, Sharpness

EPS = 1e-12
sign_of_phi = with_slope(sign, identity_slope)


@factory
def dsq(*, bits: Bits = 2) -> Quantizer:
    """DSQ with a hard forward pass: rounding, with the slope of its tanh steps.

    Forward: the nearest of the 2^bits evenly spaced levels of [l, u] (the upper one
      of two).
    Backward: exact for `dsq_soft` at sharpness 1, its phi replaced by sgn(phi) with
      slope 1.
    Learned: as in `dsq_soft`.

    Reference: Gong et al., DSQ, arXiv 1908.05033, the form with sgn.

    Args:
      bits: 1 to 8.
    """
    return straight_through(_quantizer(bits, as_schedule(1.0), sign_of_phi))


@factory
def dsq_soft(*, bits: Bits = 2, sharpness: Sharpness = 1.0) -> Quantizer:
    """DSQ with a soft forward pass.

    Forward: w is clipped to [l, u], which n = 2^bits - 1 intervals of width D
      divide. In interval i of centre m_i, phi = s tanh(v k (w - m_i)), k = log(2 /
      alpha - 1) / D, s such that phi is +-1 at the edges (1 / (1 - alpha) at v =
      1), and the value is l + D (i + (phi + 1) / 2). Deployed: sgn(phi) in place of
      phi.
    Backward: exact. Soft tends to hard as v = sharpness(step) grows.
    Learned: alpha in (0, 0.5), starting from 0.2; l and u, starting from the range
      that suits a normal distribution. One of each per tensor.

    Reference: Gong et al., DSQ, arXiv 1908.05033. The sharpness v is ours:
    the paper leaves it to alpha to close the gap.
    Deviations: the sharpness schedule.

    Args:
      bits: 1 to 8.
      sharpness: v, positive; a number or a schedule of the step.
    """
    return _quantizer(bits, as_schedule(sharpness), lambda phi: phi)


def _quantizer(bits: int, sharpness, activation) -> Quantizer:
    n = 2**bits - 1

    def init(key, w):
        # A normal variable's best binary levels are at its mean |w| = 0.8 rms.
        reach = {1: 0.8, 2: 1.5, 3: 2.0}.get(bits, 2.5) * rms(w) + EPS
        return PerTensor(
            {"alpha": jnp.log(jnp.float32(2 / 3)), "l": -reach, "u": reach}
        )

    def position(qparams, w):
        """Where w lies, in intervals from l; and the width of one."""
        low, high = qparams.value["l"], qparams.value["u"]
        width = jnp.maximum(high - low, EPS) / n
        # From the middle, so that zero is exactly half way if l = -u.
        return (w - (low + high) / 2) / width + n / 2, width

    def soft(qparams, w, *, step, key=None):
        x, width = position(qparams, w)
        alpha = 0.5 * jax.lax.logistic(qparams.value["alpha"])
        slope = sharpness(step) * jnp.log(2.0 / alpha - 1.0)
        # Not jnp.clip, which halves the gradient on the edge.
        clipped = jax.lax.stop_gradient(jnp.clip(x, 0.0, n))
        x = jnp.where(x == clipped, x, clipped)
        i = jnp.clip(jnp.floor(jax.lax.stop_gradient(x)), 0.0, n - 1)
        phi = jnp.tanh(slope * (x - i - 0.5)) / jnp.tanh(slope / 2)
        return qparams.value["l"] + width * (i + (activation(phi) + 1.0) / 2)

    def hard(qparams, w):
        x, width = position(qparams, w)
        steps = jnp.arange(n + 1, dtype=jnp.float32)
        levels = qparams.value["l"] + width * steps
        return QTensor(encode(x, steps), levels, jnp.ones((), jnp.float32))

    return Quantizer(init, soft, hard, no_penalty)
