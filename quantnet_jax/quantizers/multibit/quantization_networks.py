"""Quantization Networks: a sum of sigmoids that a temperature turns into steps."""

import itertools
from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    as_schedule,
    factory,
    no_penalty,
)
from quantnet_jax.quantizers.options import Sharpness

LEVELS = {
    1: (-1.0, 1.0),
    2: (-1.0, 0.0, 1.0),
    3: (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0),
}
"""The paper's tables: binary, ternary, and signed powers of two."""


@factory
def quantization_networks(
    *,
    bits: Annotated[int, Number(1, 3, whole=True)] = 1,
    sharpness: Sharpness = 10.0,
) -> Quantizer:
    """Quantization Networks: weights through a sum of sigmoids.

    Forward: y = a (sum_i s_i sigmoid(T (b w - c_i)) - o), s_i the gaps between the
      levels, o half their sum, T = sharpness(step). Deployed: unit steps in place
      of the sigmoids, a zero argument counting as a step.
    Backward: exact autodiff. Soft tends to hard as T grows.
    Learned: a and b, one per tensor, starting from b = 5/4 p / max |w| (p the
      largest level) and a = 1 / b. The boundaries c_i are fixed at the start:
      midway between the centres that k-means finds in b w, and 0 for two levels.

    Reference: Yang et al., Quantization Networks, arXiv 1911.09464. Left
    out of the published code: the clamp of the sigmoids' arguments, and, for binary
    weights, a backward pass through sigmoids of temperature 1.
    Deviations: the schedule; exact backward at 1 bit.

    Args:
      bits: 1 (-1, 1), 2 (-1, 0, 1) or 3 (0, and plus and minus 1, 2, 4).
      sharpness: T, positive; a number or a schedule of the step.

    Raises:
      ValueError: if `bits` is another.
    """
    if bits not in LEVELS:
        raise ValueError(f"`bits` is {bits!r}, expected one of {sorted(LEVELS)}")
    temperature = as_schedule(sharpness)
    levels = jnp.asarray(LEVELS[bits], jnp.float32)
    gaps = [high - low for low, high in itertools.pairwise(LEVELS[bits])]

    def init(key, w):
        largest = jnp.max(jnp.abs(w))
        b = 1.25 * LEVELS[bits][-1] / jnp.where(largest > 0, largest, 1.0)
        return PerTensor({"a": 1 / b, "b": b, "c": boundaries(b * w, len(levels))})

    def shifted(qparams, w):
        """b w - c_i for each boundary, as a list; the boundaries get no gradient."""
        p = qparams.value
        c = jax.lax.stop_gradient(p["c"])
        return [p["b"] * w - c[i] for i in range(len(gaps))]

    def soft(qparams, w, *, step, key=None):
        steps = [jax.lax.logistic(temperature(step) * x) for x in shifted(qparams, w)]
        total = sum(s * y for s, y in zip(gaps, steps, strict=True))
        return qparams.value["a"] * (total - sum(gaps) / 2)

    def hard(qparams, w):
        passed = [(x >= 0).astype(jnp.uint8) for x in shifted(qparams, w)]
        codes = jnp.asarray(sum(passed))
        return QTensor(codes, levels, qparams.value["a"])

    return Quantizer(init, soft, hard, no_penalty)


def boundaries(x: jax.Array, count: int, rounds: int = 20) -> jax.Array:
    """Where k-means (Lloyd's rounds, from even quantiles) parts numbers.

    Args:
      x: float32, any shape.
      count: clusters, at least 2.
      rounds: of the algorithm.

    Returns:
      float32[count - 1], rising; zero for two clusters.

    Example:
      >>> x = jnp.asarray([-1.0, -1.0, 0.0, 0.0, 2.0, 2.0])
      >>> boundaries(x, 3).tolist()
      [-0.5, 1.0]
    """
    if count == 2:
        return jnp.zeros(1, jnp.float32)
    x = x.reshape(-1)
    quantiles = (jnp.arange(count, dtype=jnp.float32) + 0.5) / count
    centres = jnp.quantile(x, quantiles)
    for _ in range(rounds):
        cuts = (centres[1:] + centres[:-1]) / 2
        one_hot = jax.nn.one_hot(jnp.searchsorted(cuts, x), count, dtype=jnp.float32)
        sizes = one_hot.sum(0)
        means = (one_hot * x[:, None]).sum(0) / jnp.maximum(sizes, 1.0)
        centres = jnp.where(sizes > 0, means, centres)
    return (centres[1:] + centres[:-1]) / 2
