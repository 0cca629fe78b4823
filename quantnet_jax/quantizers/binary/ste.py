"""Binary weights by sign with a stated slope: the straight-through family."""

from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number
from quantnet_jax.core import surrogates
from quantnet_jax.core.combine import (
    scale_by_mean_abs,
    straight_through,
    uniform_levels,
)
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.core.quantizer import Quantizer, factory, no_params, no_penalty
from quantnet_jax.quantizers.options import Per


def hard_sign(qparams, w: jax.Array) -> QTensor:
    """The `hard` of sign(w): levels -1 and +1, scale 1, sign(0) = +1."""
    levels = uniform_levels(1)
    return QTensor(encode(w, levels), levels, jnp.ones((), jnp.float32))


@factory
def sign_ste(slope: str = "clip") -> Quantizer:
    """sign(w), with the derivative defined as one of `surrogates.SLOPES`.

    Raises:
      ValueError: if `slope` is unknown.
    """
    if slope not in surrogates.SLOPES:
        raise ValueError(
            f"`slope` is {slope!r}, expected one of {sorted(surrogates.SLOPES)}"
        )
    return _with_slope(surrogates.SLOPES[slope])


@factory
def binary_ste(*, per: Per = "channel") -> Quantizer:
    """BWN: mean |w| times sign(w), trained through a clipped straight-through.

    Forward: a sign(w), a = mean |w|, sign(0) = +1.
    Backward: a * 1[|w| <= 1], with a held constant. Soft equals hard exactly.
    Learned: none.

    Reference: Rastegari et al., XNOR-Net, arXiv 1603.05279 (a is the least-squares
    optimum); the clipping is that of Hubara et al., arXiv 1602.02830.

    Args:
      per: 'channel' (a for every output channel) or 'tensor'.
    """
    return straight_through(scale_by_mean_abs(sign_ste("clip"), per=per, detach=True))


@factory
def clipped_ste() -> Quantizer:
    """Plain sign with the clipped straight-through gradient.

    Forward: sign(w), sign(0) = +1.
    Backward: 1[|w| <= 1].
    Learned: none.

    Reference: Hubara et al., Binarized Neural Networks, arXiv 1602.02830.
    """
    return sign_ste("clip")


@factory
def approx_sign() -> Quantizer:
    """Plain sign with the gradient of a piecewise parabola.

    Forward: sign(w), sign(0) = +1.
    Backward: max(2 - 2|w|, 0).
    Learned: none.

    Reference: Liu et al., Bi-Real Net, arXiv 1808.00278 (there of activations).
    """
    return sign_ste("approx")


@factory
def swish_sign(*, beta: Annotated[float, Number(1e-6, 1e6)] = 5.0) -> Quantizer:
    """Plain sign with the derivative of SignSwish.

    Forward: sign(w), sign(0) = +1.
    Backward: b (2 - b w tanh(b w / 2)) / (1 + cosh(b w)), which is b at 0 and
      negative beyond |b w| = 2.4.
    Learned: none.

    Reference: Darabi et al., BNN+, arXiv 1812.11800.

    Args:
      beta: positive; how narrow the slope is.

    Raises:
      ValueError: if `beta` is not positive.
    """
    return _with_slope(lambda w: surrogates.swish_slope(w, beta))


@factory
def xnor(*, per: Per = "channel") -> Quantizer:
    """XNOR-Net's binary weights, the scale differentiated too.

    Forward: a sign(w), a = mean |w|, sign(0) = +1.
    Backward: a 1[|w| <= 1] for the sign, and sign(w) / n for the scale (n numbers
      share a): dL/dw_i = a 1[|w_i| <= 1] g_i + sign(w_i) mean_j(g_j sign(w_j)).
    Learned: none.

    Reference: Rastegari et al., XNOR-Net, arXiv 1603.05279; the paper
    prints the diagonal of the second term, 1/n.

    Args:
      per: 'channel' (a for every output channel) or 'tensor'.
    """
    return straight_through(scale_by_mean_abs(sign_ste("clip"), per=per))


@factory
def binaryconnect() -> Quantizer:
    """BinaryConnect: sign, the gradient passed on, the latent weights kept in [-1, 1].

    Forward: sign(w), sign(0) = +1.
    Backward: 1. After each update w <- clip(w, -1, 1).
    Learned: none.

    Reference: Courbariaux et al., BinaryConnect, arXiv 1511.00363
    (deterministic).
    """

    def project(qparams, w, *, step):
        return qparams, jnp.clip(w, -1.0, 1.0)

    return sign_ste("identity")._replace(project=project)


def _with_slope(slope) -> Quantizer:
    fn = surrogates.with_slope(surrogates.sign, slope)

    def soft(qparams, w, *, step, key=None):
        return fn(w)

    return Quantizer(no_params, soft, hard_sign, no_penalty)
