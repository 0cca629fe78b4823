"""AUSN in training: superposed powers of two, in the layout that suits each layer."""

import jax
import jax.numpy as jnp

from quantnet_jax.core import superposed
from quantnet_jax.core.combine import straight_through
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import PerTensor, Quantizer, factory, no_penalty
from quantnet_jax.core.surrogates import identity_slope, with_slope
from quantnet_jax.quantizers.multibit.uniform import scale_gradient
from quantnet_jax.quantizers.options import ManyBits

EPS = 1e-12


@factory
def ausn(*, bits: ManyBits = 4) -> Quantizer:
    """AUSN: sums of powers of two times a learned scale, 2 to 8 bits.

    Forward: r q(w / r), q the nearest level (halves away from zero, the largest one
      beyond) of the layout that `quantnet_jax.core.superposed.search` found for the
      weights at the start of training.
    Backward: for w 1 where |w| <= r M, M the largest level, else 0; for r q(w / r) -
      w / r there, -M or M outside, times 1 / sqrt(N M), N numbers in the tensor.
    Learned: r, one per tensor, starting from the search; beside it the number of the
      layout, which does not move.

    Reference: Liu et al., AUSN, arXiv 2007.03903. Coding and selection are not public:
    a reconstruction; the gradient of r is that of LSQ (arXiv 1902.08153).
    Deviations: coding, selection, the learned scale.

    Args:
      bits: of a code, with its sign, 2 to 8.
    """

    def init(key, w):
        found = superposed.search(w, bits)
        scale = jnp.maximum(found.scale, EPS)
        return PerTensor({"layout": found.index.astype(jnp.float32), "scale": scale})

    def parts(qparams):
        tables = jnp.asarray(superposed.tables(bits))
        index = jnp.round(jax.lax.stop_gradient(qparams.value["layout"]))
        index = jnp.clip(index, 0, tables.shape[0] - 1).astype(jnp.int32)
        return tables[index], jnp.maximum(qparams.value["scale"], EPS)

    def hard(qparams, w):
        table, scale = parts(qparams)
        levels = jnp.concatenate([table, -table])
        return QTensor(superposed.encode(w / scale, table), levels, scale)

    def surrogate(qparams, w, *, step, key=None):
        table, scale = parts(qparams)
        top = jnp.max(table)
        scale = scale_gradient(scale, w.size**-0.5) / jnp.sqrt(top)
        scale = scale + jax.lax.stop_gradient(parts(qparams)[1] - scale)
        levels = jnp.concatenate([table, -table])
        nearest = with_slope(
            lambda x: levels[superposed.encode(x, table)], identity_slope
        )
        x = w / scale
        clipped = jax.lax.stop_gradient(jnp.clip(x, -top, top))
        return scale * nearest(jnp.where(x == clipped, x, clipped))

    return straight_through(Quantizer(init, surrogate, hard, no_penalty))
