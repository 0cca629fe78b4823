"""ProxQuant: float weights that a proximal step pulls to -1 and +1."""

import jax.numpy as jnp

from quantnet_jax.core.quantizer import (
    Quantizer,
    as_schedule,
    factory,
    no_params,
    no_penalty,
)
from quantnet_jax.core.surrogates import sign
from quantnet_jax.quantizers.binary.ste import hard_sign
from quantnet_jax.quantizers.options import Weight


@factory
def proxquant(*, strength: Weight = 1e-3) -> Quantizer:
    """ProxQuant's binary weights: a proximal step, no forward map.

    Forward: w itself; deployed as sign(w), sign(0) = +1.
    Backward: exact, 1. After each update the proximal map of l R(w), R(w) = sum
      min(|w - 1|, |w + 1|), l = strength(step): w <- sign(w) (1 + sign(|w| - 1)
      max(||w| - 1| - l, 0)), which brings every weight nearer to its sign by l, or
      onto it. Soft tends to hard as the strength grows.
    Learned: none.

    Reference: Bai et al., ProxQuant, arXiv 1810.00861

    Args:
      strength: l, at least 0; a number or a schedule of the step.
    """
    strength = as_schedule(strength)

    def soft(qparams, w, *, step, key=None):
        return w

    def project(qparams, w, *, step):
        # Written as a step towards the sign: a tiny weight keeps the one it has.
        pull, far = strength(step), sign(w) - w
        moved = w + jnp.sign(far) * pull
        return qparams, jnp.where(jnp.abs(far) <= pull, sign(w), moved)

    return Quantizer(no_params, soft, hard_sign, no_penalty, project=project)
