"""BitNet b1.58: ternary weights of the size of the mean weight."""

import jax.numpy as jnp

from quantnet_jax.core.combine import straight_through
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import Quantizer, factory, no_params, no_penalty
from quantnet_jax.quantizers.options import Per

EPS = 1e-12


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
        codes = jnp.clip(jnp.round(w / (scale + EPS)), -1.0, 1.0) + 1.0
        levels = jnp.asarray([-1.0, 0.0, 1.0], jnp.float32)
        return QTensor(codes.astype(jnp.uint8), levels, scale)

    def soft(qparams, w, *, step, key=None):
        return w

    return straight_through(Quantizer(no_params, soft, hard, no_penalty))
