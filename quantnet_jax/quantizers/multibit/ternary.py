"""Ternary weights, trained straight through: TWN and BitNet b1.58."""

from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number
from quantnet_jax.core.combine import straight_through
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import Quantizer, factory, no_params, no_penalty
from quantnet_jax.quantizers.options import Per

EPS = 1e-12


def _ternary(hard) -> Quantizer:
    soft = lambda qparams, w, *, step, key=None: w
    return straight_through(Quantizer(no_params, soft, hard, no_penalty))


def _encoded(codes: jax.Array, scale: jax.Array) -> QTensor:
    levels = jnp.asarray([-1.0, 0.0, 1.0], jnp.float32)
    return QTensor(codes.astype(jnp.uint8), levels, scale)


@factory
def twn(*, threshold: Annotated[float, Number(0, 1e6)] = 0.7) -> Quantizer:
    """TWN: weights below a threshold become zero, the others +a or -a.

    Forward: with d = threshold * mean |w| of the tensor, a sign(w) where |w| > d,
      else 0; a = mean of |w| over those.
    Backward: 1.
    Learned: none.

    Reference: Li et al., Ternary Weight Networks, arXiv 1605.04711 (0.7
    approximates the best d for a normal or uniform distribution).

    Args:
      threshold: at least 0.

    Raises:
      ValueError: if `threshold` is negative.
    """

    def hard(qparams, w):
        size = jnp.abs(w)
        kept = size > threshold * jnp.mean(size)
        count = jnp.maximum(jnp.sum(kept.astype(jnp.float32)), 1.0)
        scale = jnp.sum(jnp.where(kept, size, 0.0)) / count
        return _encoded(jnp.where(kept, jnp.where(w > 0, 2, 0), 1), scale)

    return _ternary(hard)


@factory
def bitnet(*, per: Per = "tensor") -> Quantizer:
    """BitNet b1.58: weights are rounded to -1, 0 or 1 times their mean size.

    Forward: a clip(round(w / (a + eps)), -1, 1), a = mean |w|, halves to even: zero
      where |w| <= a / 2. `w == 0` stays 0.
    Backward: 1. Soft equals hard exactly.
    Learned: none.

    Reference: Ma et al., BitNet b1.58, arXiv 2402.17764 (the weights; activations are
    quantized apart from them). Its eps is not stated, ours is 1e-12.

    Args:
      per: 'tensor' (as in the paper) or 'channel' (a for every output channel).

    Example:
      >>> w = jnp.asarray([[0.9], [-0.1], [-0.5]])
      >>> qt = bitnet().hard((), w)
      >>> qt.codes[:, 0].tolist(), qt.levels.tolist(), qt.scale.round(2).tolist()
      ([2, 1, 0], [-1.0, 0.0, 1.0], [[0.5]])
    """

    def hard(qparams, w):
        axes = tuple(range(w.ndim - 1)) if per == "channel" else None
        scale = jnp.mean(jnp.abs(w), axis=axes, keepdims=True)
        return _encoded(jnp.clip(jnp.round(w / (scale + EPS)), -1.0, 1.0) + 1.0, scale)

    return _ternary(hard)
