"""Schedules as plain data: which items a specification has, and what each may be.

`quantnet_jax.core.schedules.from_spec` describes and makes them.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from quantnet_jax.common.names import did_you_mean, nearest, show, unknown

Kind = Literal["value", "fraction", "other"]
OPTAX = "optax:"
ENDS = ("end", "schedule", "start", "until")
PIECES = ("boundaries", "schedule", "start")
NAMES = {"exponential": ENDS, "linear": ENDS, "piecewise": PIECES}
"""Kind of schedule -> the keys of its specification."""


def parse(key: str, spec: Mapping[str, Any]) -> dict[str, tuple[Kind, Any]]:
    """Checks the form of a specification.

    Args:
      key: of the option, for messages.
      spec: the data.

    Returns:
      {item: (what it is, value)}: items such as 'start' and 'boundaries[0][1]' are each
      a 'value' of the schedule, a 'fraction' of training, or something 'other'.

    Raises:
      ValueError: one line that names the item.
    """
    kind = spec.get("schedule")
    if isinstance(kind, str) and kind.startswith(OPTAX):
        return _parse_optax(key, kind, spec)
    names = NAMES.get(kind, ENDS) if isinstance(kind, str) else ENDS
    for name in spec:
        if name not in names:
            raise ValueError(unknown(f"{key}.{name}", names))
    if "schedule" in spec and (not isinstance(kind, str) or kind not in NAMES):
        near = nearest(kind, [*NAMES, f"{OPTAX}NAME"])
        raise ValueError(f"{key}.schedule={show(kind)}{near}")
    if missing := [name for name in names if name not in spec]:
        raise ValueError(f"{key}.{missing[0]} is missing: a schedule has {names}")
    found: dict[str, tuple[Kind, Any]] = {"start": ("value", spec["start"])}
    if names is PIECES:
        return found | _parse_boundaries(key, spec["boundaries"])
    found["end"] = ("value", spec["end"])
    found["until"] = ("fraction", spec["until"])
    return found


def _parse_boundaries(key: str, rows: Any) -> dict[str, tuple[Kind, Any]]:
    if not isinstance(rows, list | tuple) or not rows:
        text = "expected ((fraction of training, value), ...)"
        raise ValueError(f"{key}.boundaries={show(rows)}, {text}")
    found: dict[str, tuple[Kind, Any]] = {}
    before = 0.0
    for number, row in enumerate(rows):
        item = f"boundaries[{number}]"
        pair = isinstance(row, list | tuple) and len(row) == 2
        if not pair or not all(type(x) in (int, float) for x in row):
            text = "expected (fraction of training, value)"
            raise ValueError(f"{key}.{item}={show(row)}, {text}")
        if not row[0] > before:
            text = "expected fractions in ascending order"
            raise ValueError(f"{key}.{item}={show(row)}, {text}")
        before = row[0]
        found |= {f"{item}[0]": ("fraction", row[0]), f"{item}[1]": ("value", row[1])}
    return found


def _parse_optax(key: str, name: str, spec: Mapping) -> dict[str, tuple[Kind, Any]]:
    known = inspect.signature(find(name, f"{key}.schedule")).parameters
    options = {k: v for k, v in spec.items() if k != "schedule"}
    for option in options:
        if option not in known:
            near = did_you_mean(option, known)
            raise ValueError(f"{key}.{option}: {name!r} has no such argument{near}")
    for option, parameter in known.items():
        if option not in options and parameter.default is parameter.empty:
            raise ValueError(f"{key}.{option} is missing: {name!r} needs it")
    return {
        option: ("fraction" if is_steps(option) else "other", value)
        for option, value in options.items()
        if not (is_steps(option) and value == 0)  # such as no warm-up
    }


def of_optax() -> dict[str, Any]:
    """{name: function} of the schedules of optax: a number over the steps of a run."""
    module = importlib.import_module("optax.schedules")
    found = {x: getattr(module, x) for x in dir(module) if not x.startswith("_")}
    ends = ("_schedule", "_decay")
    return {x: f for x, f in found.items() if x.endswith(ends) and callable(f)}


def find(name: str, key: str = "schedule") -> Callable[..., Callable]:
    """The function of optax that 'optax:NAME' names.

    Raises:
      ValueError: optax is not installed, or has no schedule of that name.
    """
    try:
        known = of_optax()
    except ImportError as e:
        raise ValueError(f"{key}={show(name)} needs the package optax: {e}") from None
    word = name.removeprefix(OPTAX)
    if word not in known:
        raise ValueError(f"{key}={show(name)}{nearest(word, known)}")
    return known[word]


def is_steps(option: str) -> bool:
    """Whether an argument of a schedule of optax counts steps."""
    return option.endswith("steps") or option == "transition_begin"
