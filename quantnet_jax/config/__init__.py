"""The configuration of a run: keys and defaults, their check, the command line."""

from quantnet_jax.config.keys import (
    PLACE,
    Config,
    base,
    check,
    check_same_run,
    float_twin,
    load,
    untaught,
)

__all__ = [
    "PLACE",
    "Config",
    "base",
    "check",
    "check_same_run",
    "float_twin",
    "load",
    "untaught",
]
