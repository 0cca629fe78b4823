"""The list of quantizers: law suite, docs table, configs and benchmark read it.

One row makes a quantizer known by name everywhere.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from quantnet_jax.core.base import Quantizer, identity
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import binary_ste, tanh_sign

NONE: Mapping[str, Any] = MappingProxyType({})

# Chosen on the bundled images (results/bundled), not yet on CIFAR or ImageNet.
SHARPNESS = {"schedule": "exponential", "start": 0.3, "end": 10.0, "until": 0.9}
PENALTY = {"schedule": "linear", "start": 0.0, "end": 0.0, "until": 0.9}


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
    ),
}
"""Quantizers of weights."""

ACTIVATIONS: dict[str, Member] = {}
"""Quantizers of activations: straight-through, for the hook of the shipped networks."""
