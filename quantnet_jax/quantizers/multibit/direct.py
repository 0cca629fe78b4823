"""Direct Quantization: the trained variables are quantized weights."""

from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number, Scheduled
from quantnet_jax.core.combine import straight_through, uniform_levels
from quantnet_jax.core.qtensor import QTensor, dequantize, encode
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    ScalarOrSchedule,
    as_schedule,
    factory,
    no_penalty,
)
from quantnet_jax.quantizers.multibit.uniform import rms
from quantnet_jax.quantizers.options import FewBits

EPS = 1e-12
REACH = {1: 0.8, 2: 1.5, 3: 2.0, 4: 2.5}
"""Of a normal distribution's levels, in deviations."""


@factory
def direct(
    *,
    bits: FewBits = 2,
    residual: Annotated[ScalarOrSchedule, Scheduled(Number(0, 1))] = 1.0,
) -> Quantizer:
    """Direct Quantization: learned levels, weights that live on them, 1 to 4 bits.

    Forward: the nearest of 2^bits levels l_1 < ... < l_L of the output channel.
    Backward: for l_k the sum of the gradients of all weights that have it, which is
      exact; for w 1. After each update w <- l(w) + residual(step) (w - l(w)): a weight
      is its level, and what it has collected on the way to another; with residual 0
      it is its level.
    Learned: the levels, one table per output channel, starting evenly spaced, at what
      suits a normal distribution of the channel's root mean square.

    Reference: Hoang et al., Direct Quantization, arXiv 2012.13762. Its objective is not
    public: a reconstruction.
    Deviations: the residual, levels free instead of a basis.

    Args:
      bits: 1 to 4.
      residual: from 0 to 1; a number or a schedule of the step, 0 at the end. With r a
        weight collects at most 1 / (1 - r) updates, so that below 1 few change level.
    """
    residual = as_schedule(residual)

    def init(key, w):
        size = jax.vmap(rms, in_axes=-1)(w) + EPS
        return PerTensor(REACH[bits] * size[:, None] * uniform_levels(bits)[None])

    def hard(qparams, w):
        levels = jnp.sort(qparams.value, axis=-1)
        codes = jax.vmap(encode, in_axes=(-1, 0), out_axes=-1)(w, levels)
        return QTensor(codes, levels, jnp.ones((), jnp.float32))

    def surrogate(qparams, w, *, step, key=None):
        return dequantize(hard(qparams, w)) + w - jax.lax.stop_gradient(w)

    def project(qparams, w, *, step):
        level = dequantize(hard(qparams, w))
        return qparams, level + residual(step) * (w - level)

    quantizer = Quantizer(init, surrogate, hard, no_penalty, project=project)
    return straight_through(quantizer)
