"""Soft rounding in the backward pass (QGait), for activations."""

from quantnet_jax.activations.quantizer import ActivationQuantizer
from quantnet_jax.activations.uniform import learned_step_activation
from quantnet_jax.core.quantizer import as_schedule, factory
from quantnet_jax.core.surrogates import half_up, soft_round_slope, with_slope
from quantnet_jax.quantizers.multibit.soft_round import Softness
from quantnet_jax.quantizers.options import ManyBits


@factory
def soft_round_activation(
    *, bits: ManyBits = 4, k: Softness = 0.0
) -> ActivationQuantizer:
    """QGait's soft quantizer for activations: `lsq` with the slope of a soft round.

    Forward: s round(clip(x / s, 0, Q)), Q = 2^bits - 1, halves up.
    Backward: for x, r'(x / s) where 0 <= x <= Q s, else 0, with r' = k (1 - tanh^2(k
      f)) / (2 tanh(k / 2)), f = x / s - floor(x / s) - 1/2, 1 for k = 0;
      for s, round(x / s) - x / s r'(x / s) there, 0 below, Q above, all times
      1 / sqrt(N Q), N the number of activations of one example.
    Learned: s, one per tensor, as in `lsq`.

    Reference: QGait, arXiv 2405.13859; a reconstruction, see
    `quantnet_jax.quantizers.multibit.soft_round`.
    Deviations: the formula, the values of k.

    Args:
      bits: 2 to 8.
      k: from 0 on; a number or a schedule of the step.
    """
    k = as_schedule(k)
    rounded = with_slope(half_up, soft_round_slope)
    return learned_step_activation(bits, lambda x, step: rounded(x, k(step)))
