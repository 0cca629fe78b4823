"""The list of quantizers: law suite, docs table, configs and benchmark read it.

One row makes a quantizer known by name everywhere.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from quantnet_jax.common.limits import Number, limits_of
from quantnet_jax.core.quantizer import Quantizer, identity
from quantnet_jax.quantizers.binary.bitat import bitat
from quantnet_jax.quantizers.binary.classification import binarizing_by_classification
from quantnet_jax.quantizers.binary.metaquant import metaquant
from quantnet_jax.quantizers.binary.proxquant import proxquant
from quantnet_jax.quantizers.binary.standardized import adabin, irnet, recu
from quantnet_jax.quantizers.binary.ste import (
    approx_sign,
    binary_ste,
    binaryconnect,
    clipped_ste,
    swish_sign,
    xnor,
)
from quantnet_jax.quantizers.multibit.ausn import ausn
from quantnet_jax.quantizers.multibit.cpq import cpq, dropbits
from quantnet_jax.quantizers.multibit.direct import direct
from quantnet_jax.quantizers.multibit.dsq import dsq, dsq_soft
from quantnet_jax.quantizers.multibit.learned_clip import learned_clip
from quantnet_jax.quantizers.multibit.lq_nets import lq_nets
from quantnet_jax.quantizers.multibit.quantization_networks import quantization_networks
from quantnet_jax.quantizers.multibit.relaxed import rq
from quantnet_jax.quantizers.multibit.soft_round import soft_round
from quantnet_jax.quantizers.multibit.ternary import bitnet, twn
from quantnet_jax.quantizers.multibit.uniform import dorefa, lsq, pact
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import tanh_sign

NONE: Mapping[str, Any] = MappingProxyType({})

# Chosen on 20 classes of CIFAR-100 (docs/studies.md, small_schedule): nearly linear for
# long, and hard at the last step alone.
SHARPNESS = {"schedule": "exponential", "start": 0.03, "end": 20.0, "until": 1.0}
PENALTY = {"schedule": "linear", "start": 0.0, "end": 0.0, "until": 0.9}


def _rising(start, end, schedule="exponential", until=0.9) -> dict:
    """A schedule as plain data."""
    return {"schedule": schedule, "start": start, "end": end, "until": until}


# Two stages: straight-through for the first half of a run (QGait).
TWO_STAGES = {"schedule": "piecewise", "start": 0.0, "boundaries": ((0.5, 4.0),)}
# Weights collect until the end: what is retained a step decides how far they can go.
LATE = {"schedule": "piecewise", "start": 1.0, "boundaries": ((0.95, 0.0),)}


class Member(NamedTuple):
    """One quantizer of the library; all else about it stands in its docstring.

    Attributes:
      factory: keyword-only factory with defaults for everything.
      forward: 'soft' (annealed towards hard), 'hard' (straight-through) or 'float'.
      recipe: options of a run that differ from the defaults, schedules as plain data.
      variants: label -> options that a benchmark compares, beside the recipe.
      signed: False if the deployed values are never negative (activations).
      idempotent: False if hard(dequantize(hard(w))) may differ from hard(w) though
        nothing is learned (law 9).
      centred: False if zero is not where the sign changes (law 13).
      fixed_bits: of a code, where it is no option; 0 for float.
    """

    factory: Callable[..., Quantizer]
    forward: str
    recipe: Mapping[str, Any] = NONE
    variants: Mapping[str, Mapping[str, Any]] = NONE
    signed: bool = True
    idempotent: bool = True
    centred: bool = True
    fixed_bits: int = 1

    @property
    def bits(self) -> tuple[int, ...]:
        """Widths that it offers, from the range of its option; () for float."""
        limit = limits_of(self.factory).get("bits")
        if isinstance(limit, Number):
            return tuple(range(int(limit.low), int(limit.high) + 1))
        return (self.fixed_bits,) * bool(self.fixed_bits)


MEMBERS: dict[str, Member] = {
    "identity": Member(identity, "float", fixed_bits=0),
    "quantnet": Member(
        quantnet,
        "soft",
        recipe={"sharpness": SHARPNESS, "penalty": PENALTY, "scale": "none"},
    ),
    "tanh_sign": Member(
        tanh_sign, "soft", recipe={"sharpness": SHARPNESS, "penalty": PENALTY}
    ),
    "binary_ste": Member(binary_ste, "hard", variants={"per layer": {"per": "tensor"}}),
    "xnor": Member(xnor, "hard", variants={"per layer": {"per": "tensor"}}),
    "binaryconnect": Member(binaryconnect, "hard"),
    "clipped_ste": Member(clipped_ste, "hard"),
    "approx_sign": Member(approx_sign, "hard"),
    "swish_sign": Member(swish_sign, "hard"),
    "dorefa": Member(
        dorefa,
        "hard",
        recipe={"bits": 1},
        variants={"2 bits": {"bits": 2}, "4 bits": {"bits": 4}},
        idempotent=False,
    ),
    "twn": Member(twn, "hard", fixed_bits=2),
    "bitnet": Member(bitnet, "hard", idempotent=False, fixed_bits=2),
    "lsq": Member(
        lsq,
        "hard",
        recipe={"bits": 1},
        variants={"2 bits": {"bits": 2}, "4 bits": {"bits": 4}},
    ),
    "pact": Member(pact, "hard", recipe={"bits": 1}, variants={"2 bits": {"bits": 2}}),
    "learned_clip": Member(learned_clip, "hard", variants={"2 bits": {"bits": 2}}),
    "lq_nets": Member(
        lq_nets, "hard", recipe={"bits": 1}, variants={"2 bits": {"bits": 2}}
    ),
    "dsq": Member(dsq, "hard", recipe={"bits": 1}, variants={"2 bits": {"bits": 2}}),
    "dsq_soft": Member(
        dsq_soft, "soft", recipe={"bits": 1, "sharpness": _rising(0.3, 10.0)}
    ),
    "quantization_networks": Member(
        quantization_networks,
        "soft",
        recipe={"bits": 1, "sharpness": _rising(1.5, 60.0)},
        variants={"2 bits": {"bits": 2}},
    ),
    "proxquant": Member(
        proxquant, "soft", recipe={"strength": _rising(0.0, 0.02, "linear")}
    ),
    "irnet": Member(irnet, "hard", recipe={"t": _rising(0.1, 10.0, until=1.0)}),
    "recu": Member(recu, "hard", recipe={"progress": _rising(0.0, 1.0, "linear", 1.0)}),
    "adabin": Member(
        adabin,
        "hard",
        recipe={"t": _rising(0.1, 10.0, until=1.0)},
        idempotent=False,
        centred=False,
    ),
    "binarizing_by_classification": Member(binarizing_by_classification, "hard"),
    "metaquant": Member(
        metaquant,
        "hard",
        variants={
            "MultiFC": {"network": "multifc"},
            "LSTMFC": {"network": "lstmfc"},
            "FCGrad, DoReFa": {"forward": "dorefa"},
        },
    ),
    "soft_round": Member(
        soft_round,
        "hard",
        recipe={"k": TWO_STAGES},
        variants={"from the start": {"k.start": 4.0}},
    ),
    "rq": Member(
        rq,
        "soft",
        recipe={"sharpness": _rising(1.0, 30.0, until=1.0)},
        variants={"RQ-ST": {"straight": True}, "4 bits": {"bits": 4}},
    ),
    "cpq": Member(cpq, "hard", variants={"4 bits": {"bits": 4}}),
    "dropbits": Member(
        dropbits, "soft", recipe={"sharpness": _rising(1.0, 100.0, until=1.0)}
    ),
    "direct": Member(direct, "hard", recipe={"residual": LATE}),
    "ausn": Member(ausn, "hard", variants={"3 bits": {"bits": 3}}),
    "bitat": Member(bitat, "hard"),
}
"""Quantizers of weights."""
