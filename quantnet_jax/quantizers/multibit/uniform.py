"""Uniform levels with a straight-through rounding: DoReFa, LSQ, PACT's learned clip."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from quantnet_jax.core.combine import (
    scale_by_mean_abs,
    straight_through,
    uniform_levels,
)
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    factory,
    no_params,
    no_penalty,
)
from quantnet_jax.core.surrogates import clip_slope, identity_slope, sign, with_slope
from quantnet_jax.quantizers.binary.ste import sign_ste
from quantnet_jax.quantizers.options import Bits

EPS = 1e-12


@factory
def dorefa(*, bits: Bits = 1) -> Quantizer:
    """DoReFa-Net's weights, 1 to 8 bits.

    Forward: one bit: a sign(w), a = mean |w| of the tensor, sign(0) = +1. More
      bits: with n = 2^bits - 1 and v = tanh(w) / (2 max |tanh w|) + 1/2, the level
      2 round(n v) / n - 1.
    Backward: one bit: 1 (not a). More bits: that of 2 v - 1, rounding left out; the
      maximum is differentiated too.
    Learned: none.

    Reference: Zhou et al., DoReFa-Net, arXiv 1606.06160.

    Args:
      bits: 1 to 8.
    """
    if bits == 1:
        scaled = scale_by_mean_abs(sign_ste("identity"), per="tensor")
        return straight_through(scaled, backward=lambda qparams, w, **kwargs: w)

    def soft(qparams, w, *, step, key=None):
        return tanh_over_max(w)

    def hard(qparams, w):
        levels, x = uniform_levels(bits), tanh_over_max(w)
        return QTensor(encode(x, levels), levels, jnp.ones((), jnp.float32))

    return straight_through(Quantizer(no_params, soft, hard, no_penalty))


@factory
def lsq(*, bits: Bits = 2) -> Quantizer:
    """LSQ: uniform levels whose step is learned, 1 to 8 bits.

    Forward: s round(clip(w / s, -Qn, Qp)), Qn = 2^(bits-1), Qp = Qn - 1; one bit,
      where Qp would be 0: s sign(w), sign(0) = +1.
    Backward: for w 1 where -Qn <= w / s <= Qp (one bit: |w| <= s), else 0; for s
      round(w / s) - w / s inside, -Qn or Qp outside, times 1 / sqrt(N Qp), N
      numbers in the tensor (Qp = 1 at one bit).
    Learned: s, one per tensor, starting from 2 mean |w| / sqrt(Qp) (one bit: mean
      |w|).

    Reference: Esser et al., LSQ, arXiv 1902.08153; the one-bit form is
    ours.
    Deviations: the 1-bit form.

    Args:
      bits: 1 to 8.
    """
    return learned_step(bits)


@factory
def pact(*, bits: Bits = 2) -> Quantizer:
    """PACT's learned clip, for weights: 2^bits levels from -a to a.

    Forward: the nearest of the evenly spaced levels of [-a, a]; one bit: a sign(w),
      sign(0) = +1.
    Backward: for w 1 where |w| <= a, else 0; for a sign(w) where |w| > a, else 0
      (one bit: sign(w) everywhere, the exact derivative of a sign(w)), divided by
      the square root of the number of weights, so that the step of one number that
      all weights share is of the size of theirs.
    Learned: a, one per tensor, starting from 3 standard deviations' worth of
      weights (3 sqrt(mean w^2); one bit: mean |w|).

    Reference: Choi et al., PACT, arXiv 1805.06085, there for activations;
    the symmetric form, its start and the gradient's scale are ours. The paper's decay
    of a is left out.
    Deviations: the symmetric form for weights.

    Args:
      bits: 1 to 8.
    """
    levels = uniform_levels(bits)
    one_bit = with_slope(sign, clip_slope)

    def init(key, w):
        start = jnp.mean(jnp.abs(w)) if bits == 1 else 3.0 * rms(w)
        return PerTensor(start + EPS)

    def clip_value(qparams):
        return jnp.maximum(qparams.value, EPS)

    def backward(qparams, w, *, step, key=None):
        a = scale_gradient(clip_value(qparams), w.size**-0.5)
        if bits == 1:
            # The slope for w is that of a clip(w / a), the slope for a that of a b.
            return a * one_bit(w / jax.lax.stop_gradient(a))
        inside = jnp.abs(w) <= a
        return jnp.where(inside, w, a * sign(w))

    def hard(qparams, w):
        a = clip_value(qparams)
        return QTensor(encode(w / a, levels), levels, a)

    return straight_through(Quantizer(init, backward, hard, no_penalty))


def learned_step(
    bits: int,
    slope: Callable[..., jax.Array] = identity_slope,
    at_step: Callable[[jax.Array], tuple] = lambda step: (),
) -> Quantizer:
    """`lsq`, with another derivative in place of 1 where a number is rounded.

    Args:
      bits: 1 to 8.
      slope: `(x, *args) -> array like x`, of rounding x = w / s.
      at_step: `step -> args`.
    """
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if bits == 1:
        levels = uniform_levels(1)
        lowest, highest, start = -1, 1, 1.0
        nearest = with_slope(sign, slope)
    else:
        levels = jnp.arange(lowest, highest + 1, dtype=jnp.float32)
        start = 2.0 / highest**0.5
        nearest = with_slope(lambda x: levels[encode(x, levels)], slope)

    def init(key, w):
        return PerTensor(start * jnp.mean(jnp.abs(w)) + EPS)

    def step_size(qparams):
        return jnp.maximum(qparams.value, EPS)

    def backward(qparams, w, *, step, key=None):
        s = scale_gradient(step_size(qparams), (w.size * highest) ** -0.5)
        x = w / s
        # Not jnp.clip, which halves the gradient on the edge.
        clipped = jax.lax.stop_gradient(jnp.clip(x, lowest, highest))
        return s * nearest(jnp.where(x == clipped, x, clipped), *at_step(step))

    def hard(qparams, w):
        s = step_size(qparams)
        return QTensor(encode(w / s, levels), levels, s)

    return straight_through(Quantizer(init, backward, hard, no_penalty))


def tanh_over_max(w: jax.Array) -> jax.Array:
    """tanh(w) / max |tanh w|, in [-1, 1]; the maximum is at least 1e-12."""
    t = jnp.tanh(w)
    return t / jnp.maximum(jnp.max(jnp.abs(t)), EPS)


def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """`x`, whose gradient is multiplied by `factor` (LSQ, arXiv 1902.08153)."""
    return with_slope(lambda x: x, lambda x: factor * jnp.ones_like(x))(x)


def rms(w: jax.Array) -> jax.Array:
    """Root mean square of all numbers, whatever their size."""
    # The largest taken out first: squares of tiny and huge weights leave float32.
    largest = jnp.max(jnp.abs(w))
    safe = jnp.where(largest > 0, largest, 1.0)
    return largest * jnp.sqrt(jnp.mean((w / safe) ** 2))
