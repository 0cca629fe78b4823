"""From names to quantizers: `create`, `create_activation`, and what they know.

To add a quantizer: write its file with a factory, and add one row to
`quantnet_jax.quantizers.members`.
"""

import inspect
from collections.abc import Mapping

from quantnet_jax.core import schedules
from quantnet_jax.core.limits import nearest
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.quantizers.members import ACTIVATIONS, MEMBERS, Member
from quantnet_jax.quantizers.options import check_options

__all__ = [
    "ACTIVATIONS",
    "MEMBERS",
    "Member",
    "check_options",
    "create",
    "create_activation",
    "names",
    "nearest",
    "recipe",
]


def names() -> list[str]:
    """Names that `create` knows, sorted."""
    return sorted(MEMBERS)


def recipe(name: str) -> dict:
    """Options that a run sets by default, schedules as plain data; a fresh copy."""
    return _copy(MEMBERS[name].recipe)


def create(name: str, *, total_steps: int = 1, **options) -> Quantizer:
    """Makes a quantizer from plain data; the one place where a name becomes functions.

    Args:
      name: one of `names()`.
      total_steps: optimizer steps of the run, to which schedules are stretched.
      **options: arguments of the factory. A mapping stands for a schedule, see
        `quantnet_jax.core.schedules.from_spec`.

    Raises:
      ValueError: unknown name or option, with the nearest known one; or what the
        factory or the schedule refuses.

    Example:
      >>> sharpness = dict(schedule="exponential", start=0.3, end=50.0, until=0.9)
      >>> q = create("tanh_sign", total_steps=100, sharpness=sharpness)
    """
    return _make("quantizer", MEMBERS, name, total_steps, options)


def create_activation(name: str, **options) -> Quantizer:
    """Makes a quantizer of activations; arguments and errors as for `create`.

    Example:
      >>> q = create_activation("dorefa", bits=2)
    """
    return _make("activation quantizer", ACTIVATIONS, name, 1, options)


def _make(
    kind: str,
    members: Mapping[str, Member],
    name: str,
    total_steps: int,
    options: Mapping,
) -> Quantizer:
    if name not in members:
        raise ValueError(f"unknown {kind} {name!r}{nearest(name, sorted(members))}")
    factory = members[name].factory
    known = list(inspect.signature(factory).parameters)
    for key in options:
        if key not in known:
            raise ValueError(
                f"{kind} {name!r} has no option {key!r}{nearest(key, known)}"
            )
    made = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            try:
                value = schedules.from_spec(dict(value), total_steps)
            except ValueError as e:
                raise ValueError(f"{kind} {name!r}, option {key!r}: {e}") from None
        made[key] = value
    return factory(**made)


def _copy(options: Mapping) -> dict:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in options.items()}
