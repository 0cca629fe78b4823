"""Levels of activations fitted by alternation: LQ-Nets, and balanced over channels."""

import itertools
from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.activations.quantizer import (
    SMALLEST,
    ActivationQuantizer,
    straight_through_activation,
)
from quantnet_jax.common.limits import Number
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import factory
from quantnet_jax.quantizers.multibit.uniform import rms
from quantnet_jax.quantizers.options import FewBits

RIDGE = 1e-4


@factory
def lq_activation(
    *,
    bits: FewBits = 2,
    balanced: bool = False,
    momentum: Annotated[float, Number(0, 1, below=True)] = 0.9,
) -> ActivationQuantizer:
    """LQ-Nets' activations, or the channel-balanced ones of Direct Quantization.

    Forward: the nearest level v . e, e in {0, 1}^bits (the upper one of two).
    Backward: 1 where 0 <= x <= sum v, else 0. In each step of training the basis moves,
      v <- m v + (1 - m) v*, v* = argmin sum_c l_c mean (x_c - B_c v)^2 for the present
      codes B: l_c = 1, or with `balanced` 1 / var(x_c), so that no few channels of
      large variance decide alone; it gets no gradient.
    Learned: v, `bits` numbers per tensor, by alternation, starting at 2^j / 2^bits
      times twice the root mean square.

    Reference: Zhang et al., LQ-Nets, arXiv 1807.10029; Hoang et al., Direct
    Quantization, arXiv 2012.13762, whose objective is not public: the weights l_c are a
    reconstruction.
    Deviations: start, a ridge towards the present basis.

    Args:
      bits: 1 to 4.
      balanced: each channel's error in units of its variance.
      momentum: m, in [0, 1).
    """
    parts = jnp.asarray(list(itertools.product((0.0, 1.0), repeat=bits)), jnp.float32)

    def table(v):
        """Rising levels (L,), midpoints (L - 1,), and the parts (L, bits) of levels."""
        levels = jnp.einsum("j,lj->l", jnp.abs(v), parts, precision="highest")
        order = jnp.argsort(levels)
        levels = levels[order]
        return levels, (levels[1:] + levels[:-1]) / 2, parts[order]

    def codes(v, x):
        # As `core.qtensor.encode`, by comparisons: several times as fast for few bits.
        _, midpoints, _ = table(v)
        return sum(
            ((x >= m).astype(jnp.int32) for m in midpoints), jnp.zeros_like(x, int)
        )

    def init(key, x):
        size = rms(x)
        size = jnp.where(size > 0, size, 1.0)
        return 2.0 * size * 2.0 ** (jnp.arange(bits, dtype=jnp.float32) - bits)

    def value(v, x):
        levels, midpoints, _ = table(v)
        total = jnp.full_like(x, levels[0])
        for m, step in zip(midpoints, levels[1:] - levels[:-1], strict=True):
            total = total + jnp.where(x >= m, step, 0.0)
        return total

    def hard(v, x):
        levels, midpoints, _ = table(v)
        # The value at a number of each code: rounded as values are.
        levels = value(v, jnp.concatenate([levels[:1] - 1, midpoints]))
        return QTensor(codes(v, x).astype(jnp.uint8), levels, jnp.ones((), jnp.float32))

    def surrogate(v, x, *, step, key=None):
        top = jax.lax.stop_gradient(jnp.sum(jnp.abs(v)))
        return jnp.where(x > top, top, jnp.where(x >= 0.0, x, 0.0))

    def observe(v, x, *, step):
        axes = tuple(range(x.ndim - 1))
        weight = jnp.ones(x.shape[-1], jnp.float32)
        if balanced:
            variance = jnp.var(x, axis=axes)
            weight = 1.0 / (variance + 1e-6 * jnp.mean(variance) + SMALLEST)
            weight = weight / jnp.mean(weight)
        weight = weight.reshape((1,) * (x.ndim - 1) + (-1,)) / x.size
        _, _, made_of = table(v)
        b = made_of[codes(v, x)].reshape(-1, bits)
        weighted = b * jnp.broadcast_to(weight, x.shape).reshape(-1, 1)
        gram = jnp.einsum("nj,nk->jk", weighted, b, precision="highest")
        right = jnp.einsum("nj,n->j", weighted, x.reshape(-1), precision="highest")
        ridge = RIDGE * jnp.eye(bits, dtype=jnp.float32)
        best = jnp.linalg.solve(gram + ridge, right + RIDGE * jnp.abs(v))
        return (1.0 - momentum) * (jnp.abs(best) - v)

    made = straight_through_activation(
        init=init, value=value, hard=hard, surrogate=surrogate
    )
    return made._replace(observe=observe)
