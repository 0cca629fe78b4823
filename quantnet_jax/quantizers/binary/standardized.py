"""Binary weights of standardized channels: IR-Net, ReCU, AdaBin."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number, Scheduled
from quantnet_jax.core.combine import learned_scale, straight_through, uniform_levels
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import (
    Quantizer,
    ScalarOrSchedule,
    as_schedule,
    factory,
    no_params,
    no_penalty,
)
from quantnet_jax.core.surrogates import ede_slope, sign, with_slope
from quantnet_jax.quantizers.options import Sharpness

EPS = 1e-12

ede_sign = with_slope(sign, ede_slope)
"""`ede_sign(x, t)`: sign(x), whose slope is k t (1 - tanh^2(t x)), k = max(1/t, 1)."""


@factory
def irnet(*, t: Sharpness = 1.0) -> Quantizer:
    """IR-Net: Libra parameter binarization and the error decay estimator.

    Forward: with x = (w - mean) / std per output channel, 2^round(log2 mean|x|)
      times sign(x), sign(0) = +1; the power of two is a shift, and gets no
      gradient.
    Backward: 2^... k t (1 - tanh^2(t x)), k = max(1/t, 1), then through the
      standardization. For small t the slope is 1, for large t that of a sharp tanh.
    Learned: none.

    Reference: Qin et al., IR-Net, arXiv 1909.10788. The standard
    deviation is that of the population (the published code divides by n - 1).

    Args:
      t: positive; a number or a schedule of the step, as a rule exponential from 0.1 to
        10.
    """
    t = as_schedule(t)

    def parts(w):
        mean, std = moments(w)
        x = (w - mean) / std
        size = jnp.mean(jnp.abs(x), axis=_axes(w), keepdims=True)
        power = jnp.round(jnp.log2(jnp.where(size > 0, size, 1.0)))
        return x, jnp.ldexp(jnp.ones_like(size), power.astype(jnp.int32))

    def soft(qparams, w, *, step, key=None):
        x, scale = parts(w)
        return jax.lax.stop_gradient(scale) * ede_sign(x, t(step))

    def hard(qparams, w):
        _, scale = parts(w)
        return QTensor(above_mean(w), uniform_levels(1), scale)

    return straight_through(Quantizer(no_params, soft, hard, no_penalty))


@factory
def adabin(*, t: Sharpness = 1.0) -> Quantizer:
    """AdaBin's weights: two levels per output channel, around its mean.

    Forward: b + a sign((w - b) / a), b = mean and a = standard deviation of the
      output channel.
    Backward: of all of it, the sign's slope being IR-Net's k t (1 - tanh^2(t x)).
    Learned: none (b and a are functions of the weights).

    Reference: Tu et al., AdaBin, arXiv 2208.08084

    Args:
      t: as in `irnet`.
    """
    t = as_schedule(t)

    def soft(qparams, w, *, step, key=None):
        mean, std = moments(w)
        return mean + std * ede_sign((w - mean) / std, t(step))

    def hard(qparams, w):
        mean, std = moments(w)
        # A constant channel is its mean: both levels are, up to the guard of std.
        pair = mean.reshape(-1, 1) + std.reshape(-1, 1) * uniform_levels(1)[None]
        return QTensor(above_mean(w), pair, jnp.ones((), jnp.float32))

    return straight_through(Quantizer(no_params, soft, hard, no_penalty))


Quantile = Annotated[float, Number(0.5, 1, below=True)]


def _descends(*, lowest: float, highest: float, **others: object) -> str:
    if lowest <= highest:
        return ""
    return f"lowest={lowest}, expected at most highest={highest}"


@factory(together=_descends)
def recu(
    *,
    progress: Annotated[ScalarOrSchedule, Scheduled(Number(0, 1))] = 0.0,
    lowest: Quantile = 0.85,
    highest: Quantile = 0.99,
) -> Quantizer:
    """ReCU: the tails of the weight distribution are clamped, so that they can flip.

    Forward: s sign(x), x = 2 sqrt(2) (w - mean) / std per output channel, sign(0) =
      +1.
    Backward: 1 for x where |x| <= Q, else 0, with Q = -mean|x| ln(2 - 2 tau), the
      tau quantile of the tensor under a Laplace distribution, held constant; then
      through the standardization. tau rises from `lowest` to `highest` as A
      e^progress + B.
    Learned: s, one per output channel, its logarithm, starting from mean |w| (the
      paper scales the convolution's output, which is the same product).

    Reference: Xu et al., ReCU, arXiv 2103.12369.

    Args:
      progress: from 0 to 1 over training; a number or a schedule of the step.
      lowest: tau at progress 0, in [0.5, 1).
      highest: tau at progress 1, in [lowest, 1).

    Raises:
      ValueError: for a tau outside its range.
    """
    progress = as_schedule(progress)
    # tau = a e^p + b with tau(0) = lowest, tau(1) = highest.
    a = (highest - lowest) / (math.e - 1)
    b = lowest - a

    def standardized(w):
        mean, std = moments(w)
        return (w - mean) / (std / 8**0.5)

    def soft(qparams, w, *, step, key=None):
        x = standardized(w)
        edge = laplace_quantile(jnp.mean(jnp.abs(x)), a * jnp.exp(progress(step)) + b)
        return jnp.where(jnp.abs(x) <= jax.lax.stop_gradient(edge), x, 0.0)

    def hard(qparams, w):
        return QTensor(above_mean(w), uniform_levels(1), jnp.ones((), jnp.float32))

    return learned_scale(straight_through(Quantizer(no_params, soft, hard, no_penalty)))


def laplace_quantile(mean_abs: jax.Array, tau: jax.Array | float) -> jax.Array:
    """The tau quantile, tau >= 1/2, of a centred Laplace distribution of that E|x|.

    Example:
      >>> round(float(laplace_quantile(jnp.ones(()), 0.85)), 4)
      1.204
    """
    return -mean_abs * jnp.log(2.0 - 2.0 * tau)


def above_mean(w: jax.Array) -> jax.Array:
    """uint8 1 where a weight is at least the mean of its output channel, else 0.

    The sign of w - mean; but compilers may round a difference once or twice, so that
    two compiled programs could differ where it is zero. A comparison has no such room.
    """
    return (w >= jnp.mean(w, axis=_axes(w), keepdims=True)).astype(jnp.uint8)


def moments(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each output channel, dimensions kept.

    The deviation is at least 1e-6, so that constant channels can be divided by it.
    """
    mean = jnp.mean(w, axis=_axes(w), keepdims=True)
    variance = jnp.mean((w - mean) ** 2, axis=_axes(w), keepdims=True)
    return mean, jnp.sqrt(variance + EPS)


def _axes(w: jax.Array) -> tuple[int, ...]:
    return tuple(range(w.ndim - 1))
