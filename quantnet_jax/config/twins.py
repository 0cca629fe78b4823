"""Configurations of the networks beside a run: its float baseline, its teacher."""

import re
from collections.abc import Iterable

from quantnet_jax.config.keys import Config


def untaught(config: Config) -> Config:
    """The configuration without a teacher, which may not be trained yet."""
    # A ConfigDict made of another one would share its sections.
    twin = config.copy_and_resolve_references()
    twin.teacher, twin.terms = "", ()
    return twin


def float_twin(config: Config, names: Iterable[str]) -> Config:
    """The configuration of the float baseline: compared with, not exported.

    Args:
      config: of the run.
      names: paths of its parameters; rows of `optimizers` that match none but those
        of its quantizers are left out.
    """
    twin = untaught(config)
    twin.float_baseline = twin.export = False
    with twin.ignore_type():  # a schedule may stand there
        twin.sparsity = 0.0
    twin.update(_FLOAT)
    names = [x for x in names if re.fullmatch(r"model/.*(?<!/qparams)", x)]
    twin.optimizers = tuple(
        row
        for row in config.optimizers
        if any(re.fullmatch(row["pattern"], x) for x in names)
    )
    return twin


_FLOAT = {"quantizer": {"name": "identity"}, "rules": (), "activation": {"name": ""}}


def quantizing(config: Config) -> str:
    """What makes a network not float, as in "rules=(...)"; '' if nothing does."""
    for key, wanted in _FLOAT.items():
        value = config[key]
        if isinstance(wanted, dict):
            key, value, wanted = f"{key}.name", value.name, wanted["name"]
        if value != wanted and (value or wanted):  # a list may stand for a tuple
            return f"{key}={value!r}, expected {wanted!r}"
    return ""
