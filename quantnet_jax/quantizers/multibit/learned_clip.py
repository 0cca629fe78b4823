"""A learned clip with even levels, as FQSR's networks have them; for weights.

Wang et al., Fully Quantized Image Super-Resolution Networks, arXiv 2011.14265; the
formulas are those of its published code.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Choice
from quantnet_jax.core.combine import straight_through, uniform_levels
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    as_schedule,
    factory,
    no_penalty,
)
from quantnet_jax.core.surrogates import round_ste, with_slope
from quantnet_jax.quantizers.options import ManyBits, Weight

SMALLEST = 1e-8
"""Lower bound of a learned clip; its gradient below is that at this value, so that it
can grow again."""

Calibrates = Annotated[str, Choice(("both", "clip"))]


@factory
def learned_clip(
    *,
    bits: ManyBits = 4,
    calibration: Weight = 0.0,
    calibrates: Calibrates = "both",
) -> Quantizer:
    """2^bits evenly spaced values from -c to c, a learned clip.

    Forward: c (2 r((clip(w / c, -1, 1) + 1) / 2) - 1), r(v) = round(n v) / n,
      n = 2^bits - 1, halves up.
    Backward: for w, 1 where |w| <= c, else 0; for c, (forward - w) / c there, 1 above,
      -1 below.
    Learned: c, one per tensor, starting from max |w|.
    Reference: Wang et al., FQSR, arXiv 2011.14265.
    Deviations: c is kept positive by a lower bound (there |c|); no warm-up: the largest
      weight is known.

    Penalty: calibration(step) mean |w - forward|; its gradient is for c, and unless it
      `calibrates` the clip alone, for w.

    Args:
      bits: 2 to 8.
      calibration: weight of the penalty, or a schedule; 0.3 in the published code.
      calibrates: 'both', or the 'clip' alone.
    """
    n, levels, weight = 2**bits - 1, uniform_levels(bits), as_schedule(calibration)

    def init(key, w):
        return PerTensor(jnp.maximum(jnp.max(jnp.abs(w)), SMALLEST))

    def hard(qparams, w):
        c = jnp.maximum(qparams.value, SMALLEST)
        return QTensor(encode(w / c, levels), levels, c)

    q = straight_through(
        Quantizer(
            init,
            lambda qparams, w, *, step, key=None: clipped(qparams.value, w, n, -1.0),
            hard,
            no_penalty,
        )
    )

    def penalty(qparams, w, *, step):
        w = jax.lax.stop_gradient(w) if calibrates == "clip" else w
        distance = jnp.mean(jnp.abs(w - q.soft(qparams, w, step=step)))
        return jnp.asarray(weight(step) * distance, jnp.float32)

    return q if calibration == 0.0 else q._replace(penalty=penalty)


def clipped(c: jax.Array, x: jax.Array, n: int, low: float) -> jax.Array:
    """x between low c and c, rounded to one of n + 1 even levels.

    Backward: for x, 1 in between, else 0; for c, (forward - x) / c in between, 1 above,
      low below.

    Args:
      c: float32 scalar.
      x: of any shape.
      n: steps between the levels.
      low: 0.0 or -1.0.
    """
    c = with_slope(lambda c: jnp.maximum(c, SMALLEST), jnp.ones_like)(c)
    inside = (x >= low * c) & (x <= c)
    # Nothing far outside is divided: 0 times an overflow is not a number.
    part = jnp.where(inside, x, 0.0) / c
    if low:
        rounded = 2.0 * round_ste((part + 1.0) / 2.0 * n) / n - 1.0
    else:
        rounded = round_ste(part * n) / n
    return jnp.where(inside, c * rounded, jnp.where(x > c, c, low * c))
