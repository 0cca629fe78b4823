"""Soft rounding in the backward pass (QGait), for weights."""

from typing import Annotated

from quantnet_jax.common.limits import Number, Scheduled
from quantnet_jax.core.quantizer import (
    Quantizer,
    ScalarOrSchedule,
    as_schedule,
    factory,
)
from quantnet_jax.core.surrogates import soft_round_slope
from quantnet_jax.quantizers.multibit.uniform import learned_step
from quantnet_jax.quantizers.options import ManyBits

Softness = Annotated[ScalarOrSchedule, Scheduled(Number(0, 100))]
"""k of the soft round, 0 for the straight-through."""


@factory
def soft_round(*, bits: ManyBits = 4, k: Softness = 0.0) -> Quantizer:
    """QGait's soft quantizer: rounding, with the slope of a soft round, 2 to 8 bits.

    Forward: s round(clip(w / s, -Qn, Qp)), Qn = 2^(bits-1), Qp = Qn - 1, halves up.
    Backward: for w, inside the clip, r'(w / s), else 0; r(x) = floor(x) + 1/2 +
      tanh(k f) / (2 tanh(k / 2)), f = x - floor(x) - 1/2, so r' = k (1 - tanh^2(k f))
      / (2 tanh(k / 2)), which is 1 for k = 0; for s round(x) - x r'(x) inside, -Qn or
      Qp outside, times 1 / sqrt(N Qp). Two stages: k = 0 at first, then positive.
    Learned: s, one per tensor, as in `lsq`.

    Reference: QGait, arXiv 2405.13859. Its soft quantizer is not public: a
    reconstruction with the tanh steps of DSQ (arXiv 1908.05033) and the learned step
    of LSQ.
    Deviations: the formula, the values of k.

    Args:
      bits: 2 to 8.
      k: from 0 on; a number or a schedule of the step.
    """
    k = as_schedule(k)
    return learned_step(bits, soft_round_slope, lambda step: (k(step),))
