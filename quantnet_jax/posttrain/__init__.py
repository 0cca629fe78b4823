"""Post-training quantization: a trained float network in, `QTensor` leaves out.

`quantnet_jax.posttrain(apply, params, batches, rules)` quantizes a network; the methods
that rules may name are here.
"""

import sys
import types
from typing import Any

from quantnet_jax.posttrain.driver import Layer, posttrain
from quantnet_jax.posttrain.methods.ausn import apot, ausn, power_of_two, shift_and_add
from quantnet_jax.posttrain.methods.bitat import bitat
from quantnet_jax.posttrain.methods.error_feedback import error_feedback
from quantnet_jax.posttrain.methods.gpfq import gpfq, gpfq_samples
from quantnet_jax.posttrain.methods.rtn import rtn, uniform
from quantnet_jax.posttrain.methods.solver import Grams, Solver, grams, relative_error

__all__ = [
    "METHODS",
    "Grams",
    "Layer",
    "Solver",
    "apot",
    "ausn",
    "bitat",
    "error_feedback",
    "gpfq",
    "gpfq_samples",
    "grams",
    "posttrain",
    "power_of_two",
    "relative_error",
    "rtn",
    "shift_and_add",
    "uniform",
]

METHODS = {
    "rtn": rtn,
    "uniform": uniform,
    "power_of_two": power_of_two,
    "apot": apot,
    "ausn": ausn,
    "gpfq": gpfq,
    "error_feedback": error_feedback,
    "bitat": bitat,
}
"""Name -> factory of a `Solver`."""


class _Callable(types.ModuleType):
    """So that the room can be called by its own name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return posttrain(*args, **options)


sys.modules[__name__].__class__ = _Callable
