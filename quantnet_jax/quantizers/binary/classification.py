"""Binarizing by classification: a small network sorts weights into two classes."""

import jax
import jax.numpy as jnp

from quantnet_jax.core.combine import straight_through, uniform_levels
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import Quantizer, factory, no_penalty
from quantnet_jax.core.surrogates import clip_slope, with_slope
from quantnet_jax.quantizers.options import Width
from quantnet_jax.quantizers.subnet import EXACT

gated = with_slope(lambda z: jnp.clip(z, -1.0, 1.0), clip_slope)


@factory
def binarizing_by_classification(*, width: Width = 100) -> Quantizer:
    """Binarizing by classification: the class of a weight, by an MLP, is its sign.

    Forward: u = w - mean per output channel; logits (z0, z1) = B tanh(A u + a) + b;
      the value is c (z1 >= z0 ? +1 : -1), c = mean |w| of the channel, held
      constant.
    Backward: the incoming gradient times c goes to z1, and with the other sign to
      z0, each where |z| <= 1; from there exactly, to the weights and to the
      network.
    Learned: A, a, B, b; meant to be shared by all layers (share='model'). They
      start such that z1 = -z0 is close to u, so that the class is the sign.

    Reference: He et al., Binarizing by Classification, arXiv 2205.07433;
    reconstruction (ours) of the start and of the signs of the gradient (the published
    code copies one gradient to both logits, which moves no border between them).
    Deviations: start, signs of the gradient.

    Args:
      width: hidden units, at least 1.

    Raises:
      ValueError: if `width` is not positive.
    """

    def init(key, w):
        a = jax.random.normal(key, (1, width), jnp.float32)
        column = a.T / jnp.sum(a * a)
        return {
            "A": a,
            "a": jnp.zeros(width, jnp.float32),
            "B": jnp.concatenate([-column, column], axis=1),
            "b": jnp.zeros(2, jnp.float32),
        }

    def logits(qparams, w):
        u = (w - _channel_mean(w)).reshape(-1, 1)
        h = jnp.matmul(u, qparams["A"], precision=EXACT) + qparams["a"][None]
        z = jnp.matmul(jnp.tanh(h), qparams["B"], precision=EXACT) + qparams["b"][None]
        return z[:, 0].reshape(w.shape), z[:, 1].reshape(w.shape)

    def soft(qparams, w, *, step, key=None):
        z0, z1 = logits(qparams, w)
        scale = jax.lax.stop_gradient(_channel_mean(jnp.abs(w)))
        return scale * (gated(z1) - gated(z0))

    def hard(qparams, w):
        z0, z1 = logits(qparams, w)
        codes = (z1 >= z0).astype(jnp.uint8)
        return QTensor(codes, uniform_levels(1), _channel_mean(jnp.abs(w)))

    return straight_through(Quantizer(init, soft, hard, no_penalty))


def _channel_mean(w: jax.Array) -> jax.Array:
    return jnp.mean(w, axis=tuple(range(w.ndim - 1)), keepdims=True)
