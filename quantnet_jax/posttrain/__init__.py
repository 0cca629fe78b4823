"""Post-training quantization: a trained float network in, `QTensor` leaves out.

`quantnet_jax.posttrain(apply, params, batches, rules)` quantizes a network; the methods
that rules may name are here.
"""

from typing import Any

from quantnet_jax.common import calls
from quantnet_jax.common.limits import check_options
from quantnet_jax.common.modules import make_callable
from quantnet_jax.common.names import nearest, show
from quantnet_jax.posttrain.driver import Layer, posttrain
from quantnet_jax.posttrain.methods.ausn import apot, ausn, power_of_two, shift_and_add
from quantnet_jax.posttrain.methods.bitat import bitat
from quantnet_jax.posttrain.methods.error_feedback import error_feedback
from quantnet_jax.posttrain.methods.gpfq import gpfq
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
    "create",
    "error_feedback",
    "gpfq",
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


def create(method: str, **options: Any) -> Solver:
    """Makes a method from plain data, as the command line does.

    Args:
      method: a key of `METHODS`, alone or as a written call.
      **options: arguments of the factory, in place of those of the call.

    Raises:
      ValueError: one line: an unknown name or option, or an impossible value.

    Example:
      >>> create("gpfq(bits=4, per='tensor')")
      gpfq(bits=4, per='tensor')
    """
    name, given = calls.parse("method", method)
    if name not in METHODS:
        raise ValueError(f"method={show(name)}{nearest(name, METHODS)}")
    given |= options
    check_options(f"{name}.", METHODS[name], given)
    return METHODS[name](**given)


make_callable(__name__, posttrain)
