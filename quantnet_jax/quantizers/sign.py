"""Tanh steps between levels: self-binarizing weights, and the end of QuantNet."""

import jax.numpy as jnp

from quantnet_jax.core.combine import chain, uniform_levels
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.core.quantizer import (
    Quantizer,
    as_schedule,
    factory,
    no_params,
    no_penalty,
)
from quantnet_jax.core.regularizers import binarization_distance
from quantnet_jax.quantizers.options import Bits, FewBits, Norm, Sharpness, Weight
from quantnet_jax.quantizers.subnet import normalize

RANGES = {1: 1.0, 2: 1.494, 3: 2.051, 4: 2.514}
"""Largest level, in standard deviations, of the best uniform quantizer of a normal
variable (its optimal steps are 0.9957, 0.5860 and 0.3352). At 1 bit only the sign
counts."""


@factory
def staircase(
    *, bits: Bits = 1, sharpness: Sharpness = 1.0, penalty: Weight = 0.0
) -> Quantizer:
    """2^bits - 1 tanh steps between evenly spaced levels of [-1, 1].

    With n = 2^bits - 1, thresholds t_i halfway between the levels, and sharpness v:
    soft(w) = mean_i tanh(n v (w - t_i)), which at 1 bit is tanh(v w); hard(w) is the
    nearest level. Backward: exact autodiff. At `w == 0` the hard value of a binary
    member is +1. As v grows, soft tends to hard wherever w is off the thresholds; as
    v -> 0 it becomes linear in w. Penalty: weight * mean over weights of
    sum_i (1 - tanh^2(n v (w - t_i))), the mean of 1 - b^2 at 1 bit.
    """
    n = 2**bits - 1
    sharpness, weight = as_schedule(sharpness), as_schedule(penalty)

    def steps(w, step):
        """List of the n soft signs; a list, so that no array of them all is formed."""
        v = n * sharpness(step)
        return [jnp.tanh(v * (w - (2 * i + 1 - n) / n)) for i in range(n)]

    def soft(qparams, w, *, step, key=None):
        return sum(steps(w, step)) / n

    def hard(qparams, w):
        levels = uniform_levels(bits)
        return QTensor(encode(w, levels), levels, jnp.ones((), jnp.float32))

    def distance(qparams, w, *, step):
        return weight(step) * sum(binarization_distance(b) for b in steps(w, step))

    return Quantizer(no_params, soft, hard, distance if penalty else no_penalty)


@factory
def tanh_sign(
    *,
    bits: FewBits = 1,
    sharpness: Sharpness = 1.0,
    penalty: Weight = 0.0,
    norm: Norm = "rms",
) -> Quantizer:
    """Self-binarizing weights: QuantNet without its sub-network.

    Forward: tanh(v c), c = w normalized per output channel, v = sharpness(step);
      the staircase of 2^bits - 1 such steps for more bits. Deployed as sign(c),
      with sign(0) = +1.
    Backward: exact autodiff. Soft tends to hard as v grows.
    Learned: none.
    Penalty: mean of 1 - b^2, times its weight.

    Reference: Lahoud et al., Self-Binarizing Networks, arXiv 1902.00730; the
    normalization and the penalty are ours, so that the one difference from `quantnet`
    is the sub-network.
    Deviations: normalization, penalty.

    Args:
      bits: 1 to 4.
      sharpness: v, positive; a number or a schedule of the step.
      penalty: weight of the penalty, non-negative; a number or a schedule.
      norm: 'rms', 'standard' or 'none'.
    """
    return chain(
        normalize(norm, divisor=RANGES[bits]),
        staircase(bits=bits, sharpness=sharpness, penalty=penalty),
    )
