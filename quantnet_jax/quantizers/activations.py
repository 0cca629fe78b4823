"""Quantizers of activations: sign, DoReFa, PACT and LSQ, one range per tensor.

They take the input (N, H, W, C) of a layer (any shape with the examples on the first
axis). All are straight-through: soft and hard values are equal bit for bit, so one
function serves training and both evaluations.
"""

import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.core.combine import straight_through, uniform_levels
from quantnet_jax.core.limits import Number
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import Quantizer, factory, no_params, no_penalty
from quantnet_jax.core.surrogates import SLOPES, half_up, round_ste, sign, with_slope
from quantnet_jax.quantizers.options import Bits

SMALLEST = 1e-8
"""What a learned clip or step counts as when it falls below; its gradient is that at
this value, so that it can grow again."""


@factory
def sign_activation(*, slope: str = "clip") -> Quantizer:
    """The sign of the activations.

    Forward: sign(x), sign(0) = +1.
    Backward: `slope` in place of the derivative.
    Learned: none.

    Reference: Hubara et al., Binarized Neural Networks, arXiv
    1602.02830 ('clip'); Liu et al., Bi-Real Net, arXiv 1808.00278 ('approx').

    Args:
      slope: 'clip' (1 where |x| <= 1), 'approx' (2 - 2|x| there), or another one of
        `quantnet_jax.core.surrogates.SLOPES`.

    Raises:
      ValueError: for another slope.
    """
    if slope not in SLOPES:
        raise ValueError(f"`slope` is {slope!r}, expected one of {', '.join(SLOPES)}")
    surrogate = with_slope(sign, SLOPES[slope])

    def hard(qparams, x):
        codes = (x >= 0).astype(jnp.uint8)
        return QTensor(codes, uniform_levels(1), jnp.ones((), jnp.float32))

    return _activation(
        init=no_params,
        value=lambda qparams, x: sign(x),
        hard=hard,
        surrogate=lambda qparams, x, *, step, key=None: surrogate(x),
    )


@factory
def sign_ste() -> Quantizer:
    """The sign of the activations, through a clipped straight-through.

    Forward: sign(x), sign(0) = +1.
    Backward: 1 where |x| <= 1, else 0.
    Learned: none.

    Reference: Hubara et al., Binarized Neural Networks, arXiv
    1602.02830, section 1.3.
    """
    return sign_activation(slope="clip")


@factory
def approx_sign() -> Quantizer:
    """The sign of the activations, with the slope of a piecewise parabola (ApproxSign).

    Forward: sign(x), sign(0) = +1.
    Backward: 2 - 2|x| where |x| <= 1, else 0.
    Learned: none.

    Reference: Liu et al., Bi-Real Net, arXiv 1808.00278, section
    3.3.
    """
    return sign_activation(slope="approx")


@factory
def dorefa_activation(*, bits: Bits = 2) -> Quantizer:
    """DoReFa: 2^bits evenly spaced values from 0 to 1.

    Forward: round(n clip(x, 0, 1)) / n, n = 2^bits - 1, halves up.
    Backward: 1 where 0 <= x <= 1, else 0.
    Learned: none.

    Reference: Zhou et al., DoReFa-Net, arXiv 1606.06160, section
    2.4.

    Args:
      bits: 1 to 8.
    """
    n = _steps(bits)
    inside = lambda x: ((x >= 0.0) & (x <= 1.0)).astype(x.dtype)
    surrogate = with_slope(lambda x: jnp.clip(x, 0.0, 1.0), inside)
    return _uniform(
        bits,
        init=no_params,
        position=lambda qparams, x: x * n,
        scale=lambda qparams: jnp.asarray(1.0 / n, jnp.float32),
        surrogate=lambda qparams, x, *, step, key=None: surrogate(x),
    )


@factory
def pact_activation(
    *, bits: Bits = 2, start: Annotated[float, Number(1e-6, 1e6)] = 6.0
) -> Quantizer:
    """PACT: 2^bits evenly spaced values from 0 to a learned clip a.

    Forward: a round(n clip(x / a, 0, 1)) / n, n = 2^bits - 1, halves up.
    Backward: for x, 1 where 0 <= x <= a, else 0; for a, 1 where x > a, else 0.
    Learned: a, one per tensor, from `start`. The weight decay of a in the paper is
      left out. Reference: Choi et al., PACT, arXiv 1805.06085, equations 1 to 3.
    Deviations: no weight decay of a.

    Args:
      bits: 1 to 8.
      start: of a, positive.

    Raises:
      ValueError: for a value that is not in its range.
    """
    n = _steps(bits)
    guarded = with_slope(_guard, jnp.ones_like)

    def surrogate(qparams, x, *, step, key=None):
        a = guarded(qparams)
        return jnp.where(x > a, a, jnp.where(x >= 0.0, x, 0.0))

    return _uniform(
        bits,
        init=lambda key, x: jnp.asarray(start, jnp.float32),
        position=lambda qparams, x: jnp.clip(x / _guard(qparams), 0.0, 1.0) * n,
        scale=lambda qparams: _guard(qparams) / n,
        surrogate=surrogate,
    )


@factory
def lsq_activation(*, bits: Bits = 2) -> Quantizer:
    """LSQ, unsigned: 2^bits multiples, from 0 on, of a learned step s.

    Forward: s round(clip(x / s, 0, Q)), Q = 2^bits - 1, halves up.
    Backward: for x, 1 where 0 <= x <= Q s, else 0; for s, round(x / s) - x / s
      there, 0 below, Q above, all times 1 / sqrt(N Q), where N is the number of
      activations of one example (H W C: it does not change with the batch).
    Learned: s, one per tensor, from 2 mean |x| / sqrt(Q), or 1 if all of x is zero.

    Reference: Esser et al., Learned Step Size Quantization, arXiv 1902.08153,
    equations 1 to 3, section 2.

    Args:
      bits: 1 to 8.
    """
    n = _steps(bits)

    def init(key, x):
        mean = jnp.mean(jnp.abs(x))
        return jnp.where(mean > 0.0, 2.0 * mean / math.sqrt(n), 1.0)

    def surrogate(qparams, x, *, step, key=None):
        shrink = 1.0 / math.sqrt(n * max(1, x.size // x.shape[0]))
        s = with_slope(_guard, lambda s: jnp.full_like(s, shrink))(qparams)
        inside = (x >= 0.0) & (x <= n * s)
        # No activation far outside is divided: 0 times an overflow is not a number.
        rounded = s * round_ste(jnp.where(inside, x, 0.0) / s)
        return jnp.where(x > n * s, n * s, rounded)

    return _uniform(
        bits,
        init=init,
        position=lambda qparams, x: x / _guard(qparams),
        scale=_guard,
        surrogate=surrogate,
    )


def _uniform(
    bits: int, *, init: Callable, position: Callable, scale: Callable, surrogate
) -> Quantizer:
    """Values k scale(qparams), k the integer in 0 ... 2^bits - 1 next to `position`."""
    n = _steps(bits)

    def codes(qparams, x):
        return half_up(jnp.clip(position(qparams, x), 0.0, n))

    def hard(qparams, x):
        levels = jnp.arange(n + 1, dtype=jnp.float32)
        return QTensor(codes(qparams, x).astype(jnp.uint8), levels, scale(qparams))

    return _activation(
        init=init,
        value=lambda qparams, x: codes(qparams, x) * scale(qparams),
        hard=hard,
        surrogate=surrogate,
    )


def _activation(
    *, init: Callable, value: Callable, hard: Callable, surrogate: Callable
) -> Quantizer:
    """Straight-through `hard`; `value` is its dequantized value by plain arithmetic.

    A look-up of every activation in a table is slow on some accelerators.
    """
    q = Quantizer(init=init, soft=surrogate, hard=value, penalty=no_penalty)
    return straight_through(q)._replace(hard=hard)


def _guard(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, SMALLEST)


def _steps(bits: int) -> int:
    """2^bits - 1."""
    return 2**bits - 1
