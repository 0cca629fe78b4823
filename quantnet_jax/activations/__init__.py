"""Quantizers of activations by name: `create`, and the list `MEMBERS`.

To add one: write its file with a factory, and add one row here. Any `Quantizer` can sit
at a site of a network, too; see `quantnet_jax.activations.sites`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from quantnet_jax import quantizers
from quantnet_jax.activations.learned_clip import learned_clip
from quantnet_jax.activations.lq import lq_activation
from quantnet_jax.activations.quantizer import ActivationQuantizer, as_activation
from quantnet_jax.activations.signs import (
    approx_sign,
    rsign,
    sign_activation,
    sign_ste,
)
from quantnet_jax.activations.soft_round import soft_round_activation
from quantnet_jax.activations.uniform import (
    dorefa_activation,
    lsq_activation,
    pact_activation,
)
from quantnet_jax.core.schedules import NOMINAL
from quantnet_jax.quantizers import Member
from quantnet_jax.quantizers.members import TWO_STAGES

__all__ = [
    "MEMBERS",
    "ActivationQuantizer",
    "approx_sign",
    "as_activation",
    "at_sites",
    "create",
    "dorefa_activation",
    "find",
    "learned_clip",
    "lq_activation",
    "lsq_activation",
    "options",
    "pact_activation",
    "rsign",
    "sign_activation",
    "sign_ste",
    "soft_round_activation",
]

MEMBERS: dict[str, Member] = {
    "sign_ste": Member(sign_ste, "hard"),
    "approx_sign": Member(approx_sign, "hard"),
    "rsign": Member(rsign, "hard"),
    "dorefa": Member(dorefa_activation, "hard", signed=False),
    "pact": Member(pact_activation, "hard", signed=False),
    "lsq": Member(lsq_activation, "hard", recipe={"bits": 2}, signed=False),
    "learned_clip": Member(learned_clip, "hard", recipe={"warmup": 20}, signed=False),
    "lq_nets": Member(
        lq_activation, "hard", variants={"balanced": {"balanced": True}}, signed=False
    ),
    "soft_round": Member(
        soft_round_activation, "hard", recipe={"k": TWO_STAGES}, signed=False
    ),
}
"""Those that a configuration can name."""


def find(name: str) -> Member:
    """The row of a name; ValueError with the nearest one if there is none."""
    return quantizers.find(name, MEMBERS)[0]


def options(name: str) -> dict[str, Any]:
    """The options of a run and their defaults, schedules as plain data; a copy."""
    return quantizers.options(name, MEMBERS)


def at_sites(
    name: str,
    sites: Iterable[str],
    rules: Iterable[Mapping[str, Any]] = (),
    total_steps: int = NOMINAL,
    **options: Any,
) -> ActivationQuantizer | dict[str, ActivationQuantizer]:
    """The quantizer of all sites of a network; with rules one for each, by site.

    Args:
      name, total_steps, options: as for `create`.
      sites: of the network that are quantized.
      rules: {'site': name, and options that differ there}.

    Example:
      >>> rules = [{"site": "residual", "bits": 8}]
      >>> sorted(at_sites("learned_clip", ("input", "residual"), rules, bits=4))
      ['input', 'residual']
    """
    differ = {rule["site"]: rule for rule in rules}
    if not differ:
        return create(name, total_steps=total_steps, **options)
    made = {}
    for site in sites:
        own = {k: v for k, v in differ.get(site, {}).items() if k != "site"}
        made[site] = create(name, total_steps=total_steps, **options | own)
    return made


def create(name: str, *, total_steps: int = 1, **options: Any) -> ActivationQuantizer:
    """Makes a quantizer of activations; arguments and errors as `quantizers.create`.

    Example:
      >>> q = create("dorefa", bits=2)
    """
    return quantizers.make(MEMBERS, name, total_steps, options)
