"""Signs of activations, with several surrogate gradients."""

from typing import Annotated

import jax.numpy as jnp

from quantnet_jax.activations.quantizer import (
    ActivationQuantizer,
    straight_through_activation,
)
from quantnet_jax.common.limits import Choice
from quantnet_jax.core.combine import uniform_levels
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import factory, no_params
from quantnet_jax.core.surrogates import SLOPES, sign, with_slope

Slope = Annotated[str, Choice(tuple(SLOPES))]


@factory
def sign_activation(*, slope: Slope = "clip") -> ActivationQuantizer:
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
    surrogate = with_slope(sign, SLOPES[slope])

    def hard(qparams, x):
        codes = (x >= 0).astype(jnp.uint8)
        return QTensor(codes, uniform_levels(1), jnp.ones((), jnp.float32))

    return straight_through_activation(
        init=no_params,
        value=lambda qparams, x: sign(x),
        hard=hard,
        surrogate=lambda qparams, x, *, step, key=None: surrogate(x),
    )


@factory
def sign_ste() -> ActivationQuantizer:
    """The sign of the activations, through a clipped straight-through.

    Forward: sign(x), sign(0) = +1.
    Backward: 1 where |x| <= 1, else 0.
    Learned: none.

    Reference: Hubara et al., Binarized Neural Networks, arXiv
    1602.02830, section 1.3.
    """
    return sign_activation(slope="clip")


@factory
def approx_sign() -> ActivationQuantizer:
    """The sign of the activations, with the slope of a piecewise parabola (ApproxSign).

    Forward: sign(x), sign(0) = +1.
    Backward: 2 - 2|x| where |x| <= 1, else 0.
    Learned: none.

    Reference: Liu et al., Bi-Real Net, arXiv 1808.00278, section
    3.3.
    """
    return sign_activation(slope="approx")


@factory
def rsign(*, slope: Slope = "approx") -> ActivationQuantizer:
    """The sign of the activations beyond a learned threshold of each channel (RSign).

    Forward: sign(x - t), sign(0) = +1.
    Backward: for x, the slope at x - t; for t, minus its sum over the channel.
    Learned: t (C,), the last axis of x, from 0.

    Reference: Liu et al., ReActNet, arXiv 2003.03488, equation 5.

    Args:
      slope: as in `sign_activation`.

    Raises:
      ValueError: for another slope.
    """
    plain = sign_activation(slope=slope)
    moved = lambda t, x: x - t.reshape((1,) * (x.ndim - 1) + (-1,))
    return straight_through_activation(
        init=lambda key, x: jnp.zeros(x.shape[-1:], jnp.float32),
        value=lambda t, x: plain.value((), moved(t, x)),
        hard=lambda t, x: plain.hard((), moved(t, x)),
        surrogate=lambda t, x, *, step, key=None: plain.soft(
            (), moved(t, x), step=step
        ),
    )
