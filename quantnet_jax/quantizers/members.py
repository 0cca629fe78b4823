"""The list of quantizers: law suite, docs table, configs and benchmark read it.

One row makes a quantizer known by name everywhere.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from quantnet_jax.core.quantizer import Quantizer, identity
from quantnet_jax.quantizers.activations import (
    approx_sign as approx_sign_activation,
)
from quantnet_jax.quantizers.activations import (
    dorefa_activation,
    lsq_activation,
    pact_activation,
)
from quantnet_jax.quantizers.activations import (
    sign_ste as sign_ste_activation,
)
from quantnet_jax.quantizers.classification import binarizing_by_classification
from quantnet_jax.quantizers.dsq import dsq, dsq_soft
from quantnet_jax.quantizers.lq_nets import lq_nets
from quantnet_jax.quantizers.metaquant import metaquant
from quantnet_jax.quantizers.proxquant import proxquant
from quantnet_jax.quantizers.quantization_networks import quantization_networks
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import tanh_sign
from quantnet_jax.quantizers.standardized import adabin, irnet, recu
from quantnet_jax.quantizers.ste import (
    approx_sign,
    binary_ste,
    binaryconnect,
    clipped_ste,
    magnitude_aware,
    swish_sign,
    xnor,
)
from quantnet_jax.quantizers.twn import twn
from quantnet_jax.quantizers.uniform import dorefa, lsq, pact

NONE: Mapping[str, Any] = MappingProxyType({})

# Chosen on the bundled images (docs/results.md), not yet on CIFAR or ImageNet.
SHARPNESS = {"schedule": "exponential", "start": 0.3, "end": 10.0, "until": 0.9}
PENALTY = {"schedule": "linear", "start": 0.0, "end": 0.0, "until": 0.9}


def _rising(start, end, schedule="exponential", until=0.9) -> dict:
    """A schedule as plain data."""
    return {"schedule": schedule, "start": start, "end": end, "until": until}


class Member(NamedTuple):
    """One quantizer of the library and what the law suite may expect of it.

    Attributes:
      factory: keyword-only factory with defaults for everything.
      forward: 'soft' (annealed towards hard), 'hard' (straight-through) or 'float'.
      bits: widths it offers.
      learned: what `qparams` holds, '' for nothing.
      value: the deployed value, in a few words.
      backward: what the gradient is, in a few words.
      reference: of the method.
      ours: what we reconstructed or changed, '' for nothing.
      recipe: options of a run, schedules as plain data.
      variants: label -> options that a benchmark compares, beside the recipe.
      signed: False if the deployed values are never negative (activations).
      idempotent: False if hard(dequantize(hard(w))) may differ from hard(w) though
        nothing is learned (law 9).
      centred: False if zero is not where the sign changes (law 13).
    """

    factory: Callable[..., Quantizer]
    forward: str
    bits: tuple[int, ...]
    learned: str
    value: str
    backward: str
    reference: str
    ours: str = ""
    recipe: Mapping[str, Any] = NONE
    variants: Mapping[str, Mapping[str, Any]] = NONE
    signed: bool = True
    idempotent: bool = True
    centred: bool = True


MEMBERS: dict[str, Member] = {
    "identity": Member(identity, "float", (), "", "w", "exact", "full precision"),
    "quantnet": Member(
        quantnet,
        "soft",
        (1, 2, 3, 4),
        "sub-network",
        "sign(c), c = subnet(w)",
        "exact, of tanh(v c)",
        "arXiv 2009.04626",
        ours="the sub-network, normalization, schedule, penalty",
        recipe={
            "bits": 1,
            "multibit": "staircase",
            "unit": "slice",
            "width": 64,
            "depth": 1,
            "nonlinearity": "tanh",
            "skip": True,
            "norm": "rms",
            "scale": "none",
            "sharpness": SHARPNESS,
            "penalty": PENALTY,
            "orthogonality": 0.0,
        },
    ),
    "tanh_sign": Member(
        tanh_sign,
        "soft",
        (1, 2, 3, 4),
        "",
        "sign(w)",
        "exact, of tanh(v w)",
        "arXiv 1902.00730",
        ours="normalization, penalty",
        recipe={"bits": 1, "norm": "rms", "sharpness": SHARPNESS, "penalty": PENALTY},
    ),
    "binary_ste": Member(
        binary_ste,
        "hard",
        (1,),
        "",
        "a sign(w), a = mean |w|",
        "a 1[|w| <= 1]",
        "arXiv 1603.05279",
        recipe={"per": "channel"},
        variants={"per layer": {"per": "tensor"}},
    ),
    "xnor": Member(
        xnor,
        "hard",
        (1,),
        "",
        "a sign(w), a = mean |w|",
        "a 1[|w| <= 1], and through a",
        "arXiv 1603.05279",
        recipe={"per": "channel"},
        variants={"per layer": {"per": "tensor"}},
    ),
    "binaryconnect": Member(
        binaryconnect,
        "hard",
        (1,),
        "",
        "sign(w), w clipped to [-1, 1] after each update",
        "1",
        "arXiv 1511.00363",
    ),
    "clipped_ste": Member(
        clipped_ste,
        "hard",
        (1,),
        "",
        "sign(w)",
        "1[|w| <= 1]",
        "arXiv 1602.02830",
    ),
    "approx_sign": Member(
        approx_sign,
        "hard",
        (1,),
        "",
        "sign(w)",
        "max(2 - 2|w|, 0)",
        "arXiv 1808.00278",
    ),
    "swish_sign": Member(
        swish_sign,
        "hard",
        (1,),
        "",
        "sign(w)",
        "b (2 - b w tanh(b w / 2)) / (1 + cosh(b w))",
        "arXiv 1812.11800",
        recipe={"beta": 5.0},
    ),
    "magnitude_aware": Member(
        magnitude_aware,
        "hard",
        (1,),
        "",
        "a sign(w), a = mean |w| per channel",
        "a 1[|w| <= 1]",
        "arXiv 1808.00278",
        ours="the same function as binary_ste per channel",
    ),
    "dorefa": Member(
        dorefa,
        "hard",
        (1, 2, 3, 4, 5, 6, 7, 8),
        "",
        "1 bit: a sign(w), a = mean |w|; else uniform levels of tanh(w) / max",
        "1 bit: 1; else of tanh(w) / max",
        "arXiv 1606.06160",
        recipe={"bits": 1},
        variants={"2 bits": {"bits": 2}, "4 bits": {"bits": 4}},
        idempotent=False,
    ),
    "twn": Member(
        twn,
        "hard",
        (2,),
        "",
        "-a, 0, a; 0 where |w| <= 0.7 mean |w|",
        "1",
        "arXiv 1605.04711",
        recipe={"threshold": 0.7},
    ),
    "lsq": Member(
        lsq,
        "hard",
        (1, 2, 3, 4, 5, 6, 7, 8),
        "step, per tensor",
        "s round(w / s), clipped; 1 bit: s sign(w)",
        "1 inside the range; for s the rounding's error",
        "arXiv 1902.08153",
        ours="the 1-bit form",
        recipe={"bits": 1},
        variants={"2 bits": {"bits": 2}, "4 bits": {"bits": 4}},
    ),
    "pact": Member(
        pact,
        "hard",
        (1, 2, 3, 4, 5, 6, 7, 8),
        "clip, per tensor",
        "the nearest of 2^bits levels from -a to a",
        "1[|w| <= a]; for a sign(w) beyond",
        "arXiv 1805.06085",
        ours="the symmetric form for weights",
        recipe={"bits": 1},
        variants={"2 bits": {"bits": 2}},
    ),
    "lq_nets": Member(
        lq_nets,
        "hard",
        (1, 2, 3, 4),
        "basis, per channel, by alternation",
        "the nearest of v . e, e in {-1, 1}^bits",
        "1",
        "arXiv 1807.10029",
        ours="start from the weights' own size; a ridge",
        recipe={"bits": 1, "momentum": 0.9},
        variants={"2 bits": {"bits": 2}},
    ),
    "dsq": Member(
        dsq,
        "hard",
        (1, 2, 3, 4, 5, 6, 7, 8),
        "shape, lower and upper end, per tensor",
        "the nearest of 2^bits levels from l to u",
        "of tanh steps",
        "arXiv 1908.05033",
        recipe={"bits": 1},
        variants={"2 bits": {"bits": 2}},
    ),
    "dsq_soft": Member(
        dsq_soft,
        "soft",
        (1, 2, 3, 4, 5, 6, 7, 8),
        "shape, lower and upper end, per tensor",
        "the nearest of 2^bits levels from l to u",
        "exact, of tanh steps",
        "arXiv 1908.05033",
        ours="the sharpness schedule",
        recipe={"bits": 1, "sharpness": _rising(0.3, 10.0)},
    ),
    "quantization_networks": Member(
        quantization_networks,
        "soft",
        (1, 2, 3),
        "scale in and out, per tensor",
        "a times a level: -1, 1; -1, 0, 1; or 0, +-1, +-2, +-4",
        "exact, of a sum of sigmoids",
        "arXiv 1911.09464",
        ours="the schedule; exact backward at 1 bit",
        recipe={"bits": 1, "sharpness": _rising(1.5, 60.0)},
        variants={"2 bits": {"bits": 2}},
    ),
    "proxquant": Member(
        proxquant,
        "soft",
        (1,),
        "",
        "sign(w), w pulled to -1 and 1 after each update",
        "exact, of w itself",
        "arXiv 1810.00861",
        recipe={"strength": _rising(0.0, 0.02, "linear")},
    ),
    "irnet": Member(
        irnet,
        "hard",
        (1,),
        "",
        "2^n sign(x), x = w standardized",
        "k t (1 - tanh^2(t x))",
        "arXiv 1909.10788",
        recipe={"t": _rising(0.1, 10.0, until=1.0)},
    ),
    "recu": Member(
        recu,
        "hard",
        (1,),
        "scale, per channel",
        "s sign(x), x = w standardized",
        "1 where |x| is below its tau quantile",
        "arXiv 2103.12369",
        recipe={"progress": _rising(0.0, 1.0, "linear", 1.0)},
    ),
    "adabin": Member(
        adabin,
        "hard",
        (1,),
        "",
        "b + a sign(w - b), b mean and a deviation of the channel",
        "k t (1 - tanh^2(t x)), x = (w - b) / a, and through a and b",
        "arXiv 2208.08084",
        recipe={"t": _rising(0.1, 10.0, until=1.0)},
        idempotent=False,
        centred=False,
    ),
    "binarizing_by_classification": Member(
        binarizing_by_classification,
        "hard",
        (1,),
        "classifying network",
        "c times the class of w - mean, c = mean |w|",
        "of the logits, where |z| <= 1",
        "arXiv 2205.07433",
        ours="start, signs of the gradient",
        recipe={"width": 100},
    ),
    "metaquant": Member(
        metaquant,
        "hard",
        (1,),
        "gradient network",
        "a sign(w), a = mean |w|; or sign(w) behind DoReFa's tanh",
        "put out by the network, which learns through the update",
        "NeurIPS 2019 (Chen et al.)",
        ours="start; the LSTM's state",
        recipe={
            "network": "fcgrad",
            "forward": "bwn",
            "width": 100,
            "nonlinearity": "linear",
        },
        variants={
            "MultiFC": {"network": "multifc"},
            "LSTMFC": {"network": "lstmfc"},
            "FCGrad, DoReFa": {"forward": "dorefa"},
        },
    ),
}
"""Quantizers of weights."""

ACTIVATIONS: dict[str, Member] = {
    "sign_ste": Member(
        sign_ste_activation,
        "hard",
        (1,),
        "",
        "sign(x)",
        "1[|x| <= 1]",
        "arXiv 1602.02830",
    ),
    "approx_sign": Member(
        approx_sign_activation,
        "hard",
        (1,),
        "",
        "sign(x)",
        "max(2 - 2|x|, 0)",
        "arXiv 1808.00278",
    ),
    "dorefa": Member(
        dorefa_activation,
        "hard",
        (1, 2, 3, 4, 5, 6, 7, 8),
        "",
        "round(n clip(x, 0, 1)) / n",
        "1[0 <= x <= 1]",
        "arXiv 1606.06160",
        recipe={"bits": 2},
        signed=False,
    ),
    "pact": Member(
        pact_activation,
        "hard",
        (1, 2, 3, 4, 5, 6, 7, 8),
        "clip a",
        "a round(n clip(x / a, 0, 1)) / n",
        "1[0 <= x <= a]; for a: 1[x > a]",
        "arXiv 1805.06085",
        ours="no weight decay of a",
        recipe={"bits": 2, "start": 6.0},
        signed=False,
    ),
    "lsq": Member(
        lsq_activation,
        "hard",
        (1, 2, 3, 4, 5, 6, 7, 8),
        "step s",
        "s round(clip(x / s, 0, n))",
        "1[0 <= x <= n s]; for s: round(x / s) - x / s",
        "arXiv 1902.08153",
        recipe={"bits": 2},
        signed=False,
    ),
}
"""Quantizers of activations: straight-through, for the hook of the shipped networks."""
