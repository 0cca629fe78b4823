"""Signs of activations, with several surrogate gradients."""

import jax.numpy as jnp

from quantnet_jax.activations.quantizer import (
    ActivationQuantizer,
    straight_through_activation,
)
from quantnet_jax.core.combine import uniform_levels
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import factory, no_params
from quantnet_jax.core.surrogates import SLOPES, sign, with_slope


@factory
def sign_activation(*, slope: str = "clip") -> ActivationQuantizer:
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
