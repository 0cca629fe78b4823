"""DoReFa, PACT and LSQ for activations: one range from 0 on for a tensor.

They take the input (N, H, W, C) of a layer (any shape with the examples on the first
axis). All are straight-through: soft and hard values are equal bit for bit.
"""

import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.activations.quantizer import (
    ActivationQuantizer,
    guard,
    steps,
    uniform,
)
from quantnet_jax.common.limits import Number
from quantnet_jax.core.quantizer import factory, no_params
from quantnet_jax.core.surrogates import round_ste, with_slope
from quantnet_jax.quantizers.options import Bits


@factory
def dorefa_activation(*, bits: Bits = 2) -> ActivationQuantizer:
    """DoReFa: 2^bits evenly spaced values from 0 to 1.

    Forward: round(n clip(x, 0, 1)) / n, n = 2^bits - 1, halves up.
    Backward: 1 where 0 <= x <= 1, else 0.
    Learned: none.

    Reference: Zhou et al., DoReFa-Net, arXiv 1606.06160, section
    2.4.

    Args:
      bits: 1 to 8.
    """
    n = steps(bits)
    inside = lambda x: ((x >= 0.0) & (x <= 1.0)).astype(x.dtype)
    surrogate = with_slope(lambda x: jnp.clip(x, 0.0, 1.0), inside)
    return uniform(
        bits,
        init=no_params,
        position=lambda qparams, x: x * n,
        scale=lambda qparams: jnp.asarray(1.0 / n, jnp.float32),
        surrogate=lambda qparams, x, *, step, key=None: surrogate(x),
    )


@factory
def pact_activation(
    *, bits: Bits = 2, start: Annotated[float, Number(1e-6, 1e6)] = 6.0
) -> ActivationQuantizer:
    """PACT: 2^bits evenly spaced values from 0 to a learned clip a.

    Forward: a round(n clip(x / a, 0, 1)) / n, n = 2^bits - 1, halves up.
    Backward: for x, 1 where 0 <= x <= a, else 0;
      for a, 1 where x > a, else 0.
    Learned: a, one per tensor, from `start`.
    Reference: Choi et al., PACT, arXiv 1805.06085, equations 1 to 3.
    Deviations: no weight decay of a.

    Args:
      bits: 1 to 8.
      start: of a, positive.

    Raises:
      ValueError: for a value that is not in its range.
    """
    n = steps(bits)
    guarded = with_slope(guard, jnp.ones_like)

    def surrogate(qparams, x, *, step, key=None):
        a = guarded(qparams)
        return jnp.where(x > a, a, jnp.where(x >= 0.0, x, 0.0))

    return uniform(
        bits,
        init=lambda key, x: jnp.asarray(start, jnp.float32),
        position=lambda qparams, x: jnp.clip(x / guard(qparams), 0.0, 1.0) * n,
        scale=lambda qparams: guard(qparams) / n,
        surrogate=surrogate,
    )


@factory
def lsq_activation(*, bits: Bits = 2) -> ActivationQuantizer:
    """LSQ, unsigned: 2^bits multiples, from 0 on, of a learned step s.

    Forward: s round(clip(x / s, 0, Q)), Q = 2^bits - 1, halves up.
    Backward: for x, 1 where 0 <= x <= Q s, else 0;
      for s, round(x / s) - x / s there, 0 below, Q above, all times 1 / sqrt(N Q),
      where N is the number of activations of one example (H W C: it does not change
      with the batch).
    Learned: s, one per tensor, from 2 mean |x| / sqrt(Q), or 1 if all of x is zero.

    Reference: Esser et al., Learned Step Size Quantization, arXiv 1902.08153,
    equations 1 to 3, section 2.

    Args:
      bits: 1 to 8.
    """
    return learned_step_activation(bits, lambda x, step: round_ste(x))


def learned_step_activation(
    bits: int, rounding: Callable[..., jax.Array]
) -> ActivationQuantizer:
    """`lsq_activation`, with another derivative in place of 1 where it rounds.

    Args:
      bits: 1 to 8.
      rounding: `(x, step) -> array like x`: rounds half up, differentiable.
    """
    n = steps(bits)

    def init(key, x):
        mean = jnp.mean(jnp.abs(x))
        return jnp.where(mean > 0.0, 2.0 * mean / math.sqrt(n), 1.0)

    def surrogate(qparams, x, *, step, key=None):
        shrink = 1.0 / math.sqrt(n * max(1, x.size // x.shape[0]))
        s = with_slope(guard, lambda s: jnp.full_like(s, shrink))(qparams)
        inside = (x >= 0.0) & (x <= n * s)
        # No activation far outside is divided: 0 times an overflow is not a number.
        rounded = s * rounding(jnp.where(inside, x, 0.0) / s, step)
        return jnp.where(x > n * s, n * s, rounded)

    return uniform(
        bits,
        init=init,
        position=lambda qparams, x: x / guard(qparams),
        scale=guard,
        surrogate=surrogate,
    )
