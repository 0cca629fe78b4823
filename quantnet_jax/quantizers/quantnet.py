"""QuantNet (arXiv 2009.04626): a sub-network turns float weights into binary ones.

Jia Liu, Tianyu Chen et al., "QuantNet: Learning to Quantize by Learning within Fully
Differentiable Framework", ECCV 2020 Workshops. Reconstruction (ours): the paper's
abstract fixes the properties (a differentiable sub-network outputs the quantized
weights; no straight-through estimator; no learned gradient estimator; any bit width),
not the layers.
"""

from typing import Annotated

import jax

from quantnet_jax.common.limits import Choice
from quantnet_jax.core.combine import (
    add_penalty,
    bit_planes,
    chain,
    learned_scale,
    scale_by_mean_abs,
)
from quantnet_jax.core.quantizer import Quantizer, factory
from quantnet_jax.core.regularizers import orthogonality as orthogonality_distance
from quantnet_jax.quantizers.options import FewBits, Norm, Sharpness, Weight, Width
from quantnet_jax.quantizers.sign import RANGES, staircase
from quantnet_jax.quantizers.subnet import (
    Depth,
    Nonlinearity,
    Unit,
    Window,
    conflict,
    normalize,
    subnet,
)

SCALES = {"none": lambda q: q, "mean_abs": scale_by_mean_abs, "learned": learned_scale}


@factory(together=conflict)
def quantnet(
    *,
    bits: FewBits = 1,
    multibit: Annotated[str, Choice(("staircase", "planes"))] = "staircase",
    unit: Unit = "slice",
    width: Width = 64,
    depth: Depth = 1,
    nonlinearity: Nonlinearity = "tanh",
    skip: bool = True,
    window: Window = 1,
    norm: Norm = "rms",
    sharpness: Sharpness = 1.0,
    penalty: Weight = 0.0,
    orthogonality: Weight = 0.0,
    scale: Annotated[str, Choice(tuple(SCALES))] = "mean_abs",
) -> Quantizer:
    """QuantNet: encode -> compress -> quantize, differentiable from end to end.

    Forward: u = w normalized per output channel; c = normalize(subnet(u)); soft
      value tanh(v c), v = sharpness(step), or a staircase of 2^bits - 1 such steps,
      or `bits` binary planes; times mean |w| per output channel. Deployed: sign(c) or
      the nearest level, times the same; sign(0) = +1. The sub-network is then dropped.
    Backward: exact autodiff through all of it, to the weights and to the
      sub-network; no custom rule anywhere. Soft tends to hard as v grows.
    Learned: the sub-network (starting as the identity if `skip`), and the scale if
      'learned'.
    Penalty: mean of 1 - b^2 over the steps, times its weight.

    Reference: Liu et al., QuantNet, arXiv 2009.04626; reconstruction (ours) of the
    sub-network, the normalization, the schedule and the penalty.
    Deviations: the sub-network, normalization, schedule, penalty.

    Args:
      bits: 1 to 4.
      multibit: for bits > 1: 'staircase' (one sub-network) or 'planes' (one for each
        bit; each sees what the planes above it left over).
      unit, width, depth, nonlinearity, skip, window: see `subnet`.
      norm: of the weights and of the compressed output, see `normalize`.
      sharpness: v, positive; a number or a schedule of the step.
      penalty: weight of the penalty, non-negative; a number or a schedule.
      orthogonality: weight of ||A A^T - I||^2 on the encoder, as above.
      scale: 'mean_abs' or 'learned', per output channel; or 'none', for kernels that a
        normalization follows (the recipe of the training program, whose networks have
        BatchNorm). Without either, outputs grow with the root of the number of inputs.

    Raises:
      ValueError: for a value that is not in its range.

    Example:
      >>> q = quantnet(width=8, sharpness=4.0)
      >>> w = jax.random.normal(jax.random.key(0), (3, 3, 2, 5))
      >>> qparams = q.init(jax.random.key(1), w)
      >>> q.soft(qparams, w, step=0).shape, q.hard(qparams, w).levels.tolist()
      ((3, 3, 2, 5), [-1.0, 1.0])
    """
    net = subnet(
        unit=unit,
        width=width,
        depth=depth,
        nonlinearity=nonlinearity,
        skip=skip,
        window=window,
    )

    def encoded(steps: Quantizer, divisor: float) -> Quantizer:
        q = chain(net, normalize(norm, divisor=divisor), steps)
        if not orthogonality:
            return q
        return add_penalty(q, _encoder_distance, orthogonality)

    if multibit == "planes" and bits > 1:
        binary = encoded(staircase(sharpness=sharpness, penalty=penalty), 1.0)
        quantizer = bit_planes(binary, bits)
        start = normalize(norm, divisor=RANGES[bits])
    else:
        steps = staircase(bits=bits, sharpness=sharpness, penalty=penalty)
        quantizer = encoded(steps, RANGES[bits])
        start = normalize(norm)
    return SCALES[scale](chain(start, quantizer))


def _encoder_distance(qparams: tuple, w: jax.Array, *, step: jax.Array) -> jax.Array:
    """Distance of the encoder of `chain(subnet, ...)` from orthonormal rows."""
    encoder = qparams[0][0]["w"]
    return orthogonality_distance(encoder.reshape(-1, encoder.shape[-1]))
