"""LQ-Nets: levels spanned by a basis that alternation fits to the weights."""

import itertools
from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number
from quantnet_jax.core.combine import straight_through
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.core.quantizer import PerTensor, Quantizer, factory, no_penalty
from quantnet_jax.quantizers.options import FewBits

RIDGE = 1e-6


@factory
def lq_nets(
    *, bits: FewBits = 2, momentum: Annotated[float, Number(0, 1, below=True)] = 0.9
) -> Quantizer:
    """LQ-Nets' weights: per output channel the levels v . e, e in {-1, 1}^bits.

    Forward: the nearest level (the upper one of two; at one bit sign(0) = +1).
    Backward: 1. After each update the basis moves, v <- m v + (1 - m) v*, to the
      least-squares fit v* = (B^T B)^-1 B^T w of the present codes B; it gets no
      gradient. Neither the fit nor the next choice of codes can raise the squared
      error.
    Learned: v, `bits` numbers per output channel, by alternation; at first v_j =
      0.6745 r 2^j / 2^(bits-1), r the root mean square of the channel.

    Reference: Zhang et al., LQ-Nets, arXiv 1807.10029. The paper starts
    from the r of its initialization, sqrt(2 / n); where B^T B is singular the basis
    stays (a ridge of 1e-6 towards v, ours).
    Deviations: start from the weights' own size; a ridge.

    Args:
      bits: 1 to 4.
      momentum: m, in [0, 1).

    Raises:
      ValueError: for a value outside its range.
    """
    signs = jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=bits)), jnp.float32)

    def init(key, w):
        rms = jnp.sqrt(jnp.mean(w * w, axis=tuple(range(w.ndim - 1))))
        powers = 2.0 ** (jnp.arange(bits, dtype=jnp.float32) - (bits - 1))
        return PerTensor(0.6745 * rms[:, None] * powers[None])

    def table(qparams):
        """Levels (C, L), rising, and the signs (C, L, bits) that make them."""
        levels = jnp.einsum("cj,lj->cl", qparams.value, signs, precision="highest")
        order = jnp.argsort(levels, axis=-1)
        return jnp.take_along_axis(levels, order, axis=-1), signs[order]

    def hard(qparams, w):
        levels, _ = table(qparams)
        codes = jax.vmap(encode, in_axes=(-1, 0), out_axes=-1)(w, levels)
        return QTensor(codes, levels, jnp.ones((), jnp.float32))

    def soft(qparams, w, *, step, key=None):
        return w

    def project(qparams, w, *, step):
        codes, (_, made_of) = hard(qparams, w).codes, table(qparams)

        def fit(v, codes, made_of, x):
            b = made_of[codes.reshape(-1)]
            gram = jnp.einsum("nj,nk->jk", b, b, precision="highest") / x.size
            right = jnp.einsum("nj,n->j", b, x.reshape(-1), precision="highest")
            ridge = RIDGE * jnp.eye(bits, dtype=jnp.float32)
            return jnp.linalg.solve(gram + ridge, right / x.size + RIDGE * v)

        best = jax.vmap(fit, (0, -1, 0, -1))(qparams.value, codes, made_of, w)
        return PerTensor(momentum * qparams.value + (1 - momentum) * best), w

    quantizer = Quantizer(init, soft, hard, no_penalty, project=project)
    return straight_through(quantizer)
