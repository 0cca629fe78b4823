"""What the options of quantizers may be, as data, and the check of a configuration's.

Factories refuse what they cannot work with themselves; this table is there so that a
configuration is refused before anything is loaded or computed, by the key as its author
wrote it. An option that is not in it is held to the type of its default.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from quantnet_jax.core.limits import (
    Choice,
    Flag,
    Limit,
    Number,
    Scheduled,
    Text,
    check,
    unknown,
)
from quantnet_jax.quantizers.members import ACTIVATIONS, MEMBERS, Member
from quantnet_jax.quantizers.metaquant import FORWARDS, NETWORKS
from quantnet_jax.quantizers.quantnet import SCALES
from quantnet_jax.quantizers.subnet import NONLINEARITIES, UNITS

WIDTH = Number(1, 2**14, whole=True)
"""The largest hidden layer: beyond it a sub-network outweighs all it quantizes."""
SHARPNESS = Scheduled(Number(1e-6, 1e6))
WEIGHT = Scheduled(Number(0, 1e6))

OPTIONS: dict[str, Limit] = {
    "beta": Number(1e-6, 1e6),
    "depth": Number(1, 64, whole=True),
    "forward": Choice(FORWARDS),
    "highest": Number(0.5, 1, below=True),
    "lowest": Number(0.5, 1, below=True),
    "momentum": Number(0, 1, below=True),
    "multibit": Choice(("staircase", "planes")),
    "network": Choice(NETWORKS),
    "nonlinearity": Choice(tuple(NONLINEARITIES)),
    "norm": Choice(("none", "rms", "standard")),
    "orthogonality": WEIGHT,
    "penalty": WEIGHT,
    "per": Choice(("channel", "tensor")),
    "progress": Scheduled(Number(0, 1)),
    "scale": Choice(tuple(SCALES)),
    "sharpness": SHARPNESS,
    "skip": Flag(),
    "start": Number(1e-6, 1e6),
    "strength": WEIGHT,
    "t": SHARPNESS,
    "threshold": Number(0, 1e6),
    "unit": Choice(UNITS),
    "width": WIDTH,
    "window": Number(1, 31, whole=True),
}
"""Option -> what it may be, the same for each quantizer that has it."""


def check_options(section: str, name: str, options: Mapping[str, Any]) -> None:
    """Refuses options that a quantizer does not have or that are out of range.

    Args:
      section: 'quantizer' or 'activation', as in the configuration.
      name: a name of `MEMBERS` or of `ACTIVATIONS`.
      options: of the section `section.name`, schedules as plain data.

    Raises:
      ValueError: one line with the key, such as 'quantizer.quantnet.width'.
    """
    member = {"quantizer": MEMBERS, "activation": ACTIVATIONS}[section][name]
    limits = limits_of(member)
    for option, value in options.items():
        key = f"{section}.{name}.{option}"
        if option not in limits:
            raise ValueError(
                unknown(key, limits)
                if limits
                else f"unknown config key {key!r}; {name!r} has no options"
            )
        limit = limits[option]
        if limit is not None:
            check(key, value, limit)
    get = lambda option: options.get(option, _default(member, option))
    place = f"{section}.{name}"
    if (
        {"unit", "width"} <= limits.keys()
        and get("unit") == "conv"
        and get("width") > 16
    ):
        raise ValueError(
            f"{place}.width={get('width')}, expected at most 16 with {place}.unit="
            "'conv', where it multiplies the number of input channels"
        )
    if "window" in limits and get("window") % 2 == 0:
        raise ValueError(f"{place}.window={get('window')}, expected an odd number")
    if {"lowest", "highest"} <= limits.keys() and get("lowest") > get("highest"):
        raise ValueError(
            f"{place}.lowest={get('lowest')}, expected at most {place}.highest="
            f"{get('highest')}"
        )


def limits_of(member: Member) -> dict[str, Limit | None]:
    """{option: what it may be} of a quantizer; None where nothing is known."""
    found: dict[str, Limit | None] = {}
    for option, parameter in inspect.signature(member.factory).parameters.items():
        kinds = {bool: Flag(), str: Text(), int: Number(whole=True), float: Number()}
        found[option] = OPTIONS.get(option, kinds.get(type(parameter.default)))
        if "Schedule" in str(parameter.annotation) and option not in OPTIONS:
            found[option] = Scheduled(Number())
        if option == "bits" and member.bits:
            found[option] = Number(min(member.bits), max(member.bits), whole=True)
    return found


def _default(member: Member, option: str) -> Any:
    return inspect.signature(member.factory).parameters[option].default
