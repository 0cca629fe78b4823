"""Cluster-promoting quantization, and DropBits, which learns the width (CPQ)."""

from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number
from quantnet_jax.core.combine import straight_through
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    as_schedule,
    factory,
    no_penalty,
)
from quantnet_jax.quantizers.multibit.relaxed import (
    GridBits,
    grid,
    instead,
    odds,
    start,
)
from quantnet_jax.quantizers.options import Sharpness, Weight

MaskedBits = Annotated[int, Number(3, 4, whole=True)]
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
"""Of the hard concrete distribution (arXiv 1712.01312)."""
KEPT_AT_FIRST = 2.0
ONE = 1 - 2**-24


def chosen(r: jax.Array, index: jax.Array, points: jax.Array) -> jax.Array:
    """The multi-class straight-through: value g_i, gradient g_i dr_i + dg_i, i chosen.

    Args:
      r: probabilities, (..., L).
      index: int, (...).
      points: g, float32[L].
    """
    point = points[index]
    own = jnp.take_along_axis(r, index[..., None], axis=-1)[..., 0]
    return jax.lax.stop_gradient(point) * own + point


@factory
def cpq(*, bits: GridBits = 2) -> Quantizer:
    """Cluster-promoting quantization, 2 to 4 bits: weights gather at grid points.

    Forward: the nearest point g_i of the grid a {-2^(bits-1), ..., 2^(bits-1) - 1} + b,
      which is the likeliest one under RQ's noise of scale sigma.
    Backward: g_i dr_i, r_i the probability of the chosen point alone (multi-class
      straight-through: dL/dr_i = dL/dy_i for y the one-hot choice, 0 for the others),
      for w, a, b and sigma; and 1 for g_i, through it for a and b. dr_i / dw is 0 on
      the point and largest between two: weights there stay.
    Learned: log a, b and log sigma, one per tensor, as in `rq`.

    Reference: Lee et al., Cluster-Promoting Quantization, arXiv 2109.02100; base: RQ,
    arXiv 1810.01875. The estimator's formula was not read in the paper: a
    reconstruction.
    Deviations: as in `rq`; no schedule.

    Args:
      bits: 2 to 4.
    """

    def hard(qparams, w):
        points = grid(qparams.value, bits).points
        return QTensor(encode(w, points), points, jnp.ones((), jnp.float32))

    def surrogate(qparams, w, *, step, key=None):
        g = grid(qparams.value, bits)
        return chosen(odds(w, g), encode(w, g.points).astype(jnp.int32), g.points)

    init = lambda key, w: PerTensor(start(w, bits))
    return straight_through(Quantizer(init, surrogate, hard, no_penalty))


@factory
def dropbits(
    *, bits: MaskedBits = 4, sharpness: Sharpness = 1.0, weight: Weight = 0.0
) -> Quantizer:
    """CPQ with DropBits: grid points are dropped bit by bit, the width is learned.

    Forward: as `cpq`, over the points that masks leave: r_i M_i / sum_j r_j M_j, by
      noise of 2^(dropped bits) sigma, as wide as the grid that is left. Point a k + b
      has M = m_1 ... m_v for k an odd multiple of 2^(bits - 2 - v), and 1 for multiples
      of 2^(bits-2): without m_v the grid is that of one bit less, down to 2. m =
      clip(1.2 sigmoid((l + ln u - ln(1 - u)) / (2/3)) - 0.1, 0, 1), u uniform, l =
      sharpness(step) log a the logit (hard concrete; u = 1/2 without a key).
      Deployed: bits with log a <= 0, and those below, are dropped; the levels of
      dropped points are equal to their neighbours', which packing leaves out.
    Backward: as in `cpq`, through M for log a. The penalty is weight(step) times the
      sum of P(m > 0) = sigmoid(log a - 2/3 ln(0.1 / 1.1)).
    Learned: as in `cpq`, and log a of each of the lower bits - 2 bits, starting from 2.

    Reference: Lee et al., arXiv 2109.02100 and 1911.12990. Which points go together
    was not read in the papers: a reconstruction.
    Deviations: the pattern of the masks, the width of the noise, the sharpness, 2 bits
    at least.

    Args:
      bits: at most, 3 or 4.
      sharpness: positive; a number or a schedule of the step: at its end masks are
        decided.
      weight: of the penalty, from 0 on; a number or a schedule of the step.
    """
    sharpness, price = as_schedule(sharpness), as_schedule(weight)
    count = bits - 2
    whole = [k - 2 ** (bits - 1) for k in range(2**bits)]
    # How many masks must be on for a point to be there.
    needed = jnp.asarray(
        [next(v for v in range(count + 1) if k % 2 ** (count - v) == 0) for k in whole]
    )

    def init(key, w):
        kept = jnp.full((count,), KEPT_AT_FIRST, jnp.float32)
        return PerTensor(start(w, bits) | {"kept": kept})

    def soft(qparams, w, *, step, key=None):
        g, logit = grid(qparams.value, bits), sharpness(step) * qparams.value["kept"]
        if key is not None:
            u = jnp.clip(
                jax.random.uniform(key, (count,), jnp.float32), 1e-6, ONE - 1e-6
            )
            logit = logit + jnp.log(u) - jnp.log(1.0 - u)
        m = (HIGH - LOW) * jax.lax.logistic(logit / TEMPERATURE) + LOW
        m = jnp.where(m <= 0.0, 0.0, jnp.where(m >= 1.0, 1.0, m))
        on = jnp.cumprod(m)
        masks = jnp.concatenate([jnp.ones((1,), jnp.float32), on])[needed]
        # The noise is that of the points that are left: from one to the next.
        wider = 2.0 ** jnp.sum((on <= 0.0).astype(jnp.float32))
        r = odds(w, g._replace(noise=wider * g.noise))
        r = r * masks.reshape((1,) * w.ndim + (-1,))
        r = r / jnp.sum(r, axis=-1, keepdims=True)
        index = jnp.argmax(r, axis=-1)
        return instead(chosen(r, index, g.points), g.points[index])

    def hard(qparams, w):
        points = grid(qparams.value, bits).points
        on = jnp.cumprod((qparams.value["kept"] > 0.0).astype(jnp.int32))
        step = 2 ** (count - jnp.sum(on))
        levels = points[jnp.arange(2**bits) // step * step]
        return QTensor(encode(w, levels), levels, jnp.ones((), jnp.float32))

    def penalty(qparams, w, *, step):
        shift = TEMPERATURE * jnp.log(jnp.float32(-LOW / HIGH))
        on = jax.lax.logistic(qparams.value["kept"] - shift)
        return jnp.asarray(price(step) * jnp.sum(on), jnp.float32)

    return Quantizer(init, soft, hard, penalty)
