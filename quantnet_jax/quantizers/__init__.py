"""From names to quantizers of weights: `create`, and what it knows.

To add a quantizer: write its file with a factory, and add one row to
`quantnet_jax.quantizers.members`. One of your own needs neither: 'module:factory' is a
name, too.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, cast

from quantnet_jax.common import calls
from quantnet_jax.common.limits import check_options, defaults_of, limits_of, passes
from quantnet_jax.common.names import nearest, reason, show
from quantnet_jax.core import schedules
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.quantizers.members import MEMBERS, Member

__all__ = [
    "MEMBERS",
    "Member",
    "create",
    "find",
    "make",
    "names",
    "options",
]

OWN = re.compile(r"([\w.]+):(\w+)(?:\(.*\))?")


def names() -> list[str]:
    """Names that `create` knows, sorted."""
    return sorted(MEMBERS)


def find(
    name: str, members: Mapping[str, Member] = MEMBERS
) -> tuple[Member, dict[str, Any]]:
    """The row of a name, and the options that stand in the name itself.

    Args:
      name: a key of `members`; for weights also 'module:factory', perhaps with options,
        as in 'my_module:my_quantizer(bits=2)': a factory in a module of your own, which
        is imported from the current folder or wherever Python finds it.
      members: `MEMBERS`, or another list. Activation quantizers are named in files that
        ship, and a file must not decide what is imported: only keys count there.

    Raises:
      ValueError: one line: an unknown name, with the nearest one, or what is wrong with
        the module.
    """
    if name in members:
        return members[name], {}
    own = OWN.fullmatch(name) if members is MEMBERS else None
    if not own:
        known = [*sorted(members), *(["module:factory"] if members is MEMBERS else [])]
        raise ValueError(f"unknown quantizer {name!r}{nearest(name, known)}")
    _, given = calls.parse("quantizer", name)
    module, attribute = own.groups()
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
        if not callable(factory):
            raise ValueError("expected a function that returns a Quantizer")
        parameters = inspect.signature(factory).parameters.values()
        if loose := [x.name for x in parameters if x.kind is x.POSITIONAL_OR_KEYWORD]:
            raise ValueError(f"{loose[0]!r} must be keyword-only: (*, {loose[0]}, ...)")
        limits_of(factory)
    except (Exception, SystemExit) as e:  # whatever somebody's own may raise
        raise ValueError(f"quantizer={show(name)}: {reason(e)}") from None
    return Member(cast(Any, factory), "soft"), given


def options(name: str, members: Mapping[str, Member] = MEMBERS) -> dict[str, Any]:
    """The options of a run and their defaults, schedules as plain data; a copy."""
    member, given = find(name, members)
    return defaults_of(member.factory) | _copy(member.recipe) | given


def create(name: str, *, total_steps: int = 1, **options: Any) -> Quantizer:
    """Makes a quantizer from plain data; the one place where a name becomes functions.

    Args:
      name: one of `names()`, or 'module:factory'; see `find`.
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
    return make(MEMBERS, name, total_steps, options)


def make(
    members: Mapping[str, Member], name: str, total_steps: int, options: Mapping
) -> Any:
    """`create`, of a given list."""
    member, given = find(name, members)
    given = given | dict(options)
    plain = {k: v for k, v in given.items() if not passes(v)}
    check_options(f"{name}.", member.factory, plain)
    limits = limits_of(member.factory)
    made = {
        k: schedules.resolve(v, total_steps, limits.get(k)) for k, v in given.items()
    }
    if name in members:
        return member.factory(**made)
    wrong = f"quantizer={show(name)}, expected a function that returns a Quantizer"
    try:
        quantizer = member.factory(**made)
    except (Exception, SystemExit) as e:
        raise ValueError(f"{wrong}: {reason(e)}") from None
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"{wrong}: it returned a {type(quantizer).__name__}")
    return quantizer


def _copy(options: Mapping) -> dict:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in options.items()}
