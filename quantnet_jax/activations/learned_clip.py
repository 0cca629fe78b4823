"""A learned clip that is calibrated first: the quantizer of FQSR.

Wang et al., Fully Quantized Image Super-Resolution Networks, arXiv 2011.14265; the
formulas are those of its published code.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.activations.quantizer import (
    SMALLEST,
    ActivationQuantizer,
    guard,
    steps,
    uniform,
)
from quantnet_jax.common.limits import Number
from quantnet_jax.core.quantizer import as_schedule, factory, no_penalty
from quantnet_jax.quantizers.multibit.learned_clip import Calibrates, clipped
from quantnet_jax.quantizers.options import Bits, Share, Weight

Steps = Annotated[int, Number(0, 2**31 - 1, whole=True)]


@factory
def learned_clip(
    *,
    bits: Bits = 4,
    signed: bool = False,
    warmup: Steps = 0,
    quantile: Share = 1.0,
    calibration: Weight = 0.0,
    calibrates: Calibrates = "both",
) -> ActivationQuantizer:
    """2^bits evenly spaced values up to a learned clip c, calibrated for some steps.

    Forward: c r(clip(x / c, 0, 1)), r(v) = round(n v) / n, n = 2^bits - 1, halves up;
      signed: c (2 r((clip(x / c, -1, 1) + 1) / 2) - 1). In the first `warmup` steps of
      training x itself.
    Backward: for x, 1 where 0 <= x <= c (signed: |x| <= c), else 0;
      for c, (forward - x) / c there, 1 above, 0 below (signed: -1). In the first
      `warmup` steps 1 for x and 0 for c.
    Learned: c, one per tensor. In the first `warmup` steps it is the running mean of
      the `quantile` of |x|; then the gradient moves it.
    Reference: Wang et al., FQSR, arXiv 2011.14265.
    Deviations: c is kept positive by a lower bound (there |c|); the choice of quantile.

    Penalty: calibration(step) mean |x - forward|; its gradient is for c, and unless it
      `calibrates` the clip alone, for x.

    Args:
      bits: 1 to 8.
      signed: values on both sides of zero, for inputs that are not behind a ReLU; zero
        itself is none of them.
      warmup: steps of the calibration; 20 in the published code. Without it c starts
        from the activations that initialize the network.
      quantile: of |x| over a batch; 1.0 for the maximum, as in the published code.
      calibration: weight of the penalty, or a schedule; 0.3 in the published code.
      calibrates: 'both', or the 'clip' alone: then activations do not shrink to make
        the penalty small.
    """
    n, weight = steps(bits), as_schedule(calibration)
    low = -1.0 if signed else 0.0

    def largest(x):
        size = jnp.abs(x)
        found = jnp.max(size) if quantile == 1.0 else jnp.quantile(size, quantile)
        return jnp.asarray(found, jnp.float32)

    def init(key, x):
        found = largest(x)
        return jnp.where(found > SMALLEST, found, 1.0)

    def position(c, x):
        """From 0 to n."""
        part = jnp.clip(x / guard(c), low, 1.0)
        return (part + 1.0) / 2.0 * n if signed else part * n

    def surrogate(c, x, *, step, key=None):
        return clipped(c, x, n, low)

    def observe(c, x, *, step):
        change = lambda: (largest(x) - c) / (jnp.asarray(step, jnp.float32) + 1.0)
        return jax.lax.cond(step < warmup, change, lambda: jnp.zeros_like(c))

    discrete = uniform(
        bits,
        init=init,
        position=position,
        scale=lambda c: guard(c) / n,
        surrogate=surrogate,
        signed=signed,
    )

    def soft(c, x, *, step, key=None):
        y = discrete.soft(c, x, step=step)
        return jnp.where(step < warmup, x, y) if warmup else y

    def penalty(c, x, *, step):
        x = jax.lax.stop_gradient(x) if calibrates == "clip" else x
        distance = jnp.mean(jnp.abs(x - soft(c, x, step=step)))
        return jnp.asarray(weight(step) * distance, jnp.float32)

    return discrete._replace(
        soft=soft,
        penalty=no_penalty if calibration == 0.0 else penalty,
        observe=observe if warmup else None,
    )
