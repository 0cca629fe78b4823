"""Ternary weight networks: -a, 0 and a."""

from typing import Annotated

import jax.numpy as jnp

from quantnet_jax.common.limits import Number
from quantnet_jax.core.combine import straight_through
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import Quantizer, factory, no_params, no_penalty


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
        codes = jnp.where(kept, jnp.where(w > 0, 2, 0), 1).astype(jnp.uint8)
        return QTensor(codes, jnp.asarray([-1.0, 0.0, 1.0], jnp.float32), scale)

    def soft(qparams, w, *, step, key=None):
        return w

    return straight_through(Quantizer(no_params, soft, hard, no_penalty))
