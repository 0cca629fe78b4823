"""The configuration of a run: keys and defaults, their check, the command line."""

from quantnet_jax.config.keys import (
    PLACEMENT_KEYS,
    Config,
    base,
    check,
    check_same,
    check_same_run,
    load,
    model_options,
)
from quantnet_jax.config.twins import float_twin, quantizing, untaught

__all__ = [
    "PLACEMENT_KEYS",
    "Config",
    "base",
    "check",
    "check_same",
    "check_same_run",
    "float_twin",
    "load",
    "model_options",
    "quantizing",
    "untaught",
]
