"""Tasks: what a batch is, its loss and its metrics, as pure functions.

A task is added by a file with a factory and a row in `TASKS`; terms of the loss that
need more than outputs and targets are in `quantnet_jax.tasks.terms`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from quantnet_jax.core.limits import (
    Choice,
    Number,
    check,
    limits_of,
    show,
    unknown,
)
from quantnet_jax.tasks.base import Metric, Source, Task
from quantnet_jax.tasks.classification import classification, describe_classes
from quantnet_jax.tasks.reconstruction import reconstruction
from quantnet_jax.tasks.terms import NEED_TEACHER, TERMS

__all__ = [
    "DESCRIBE",
    "TASKS",
    "Metric",
    "Source",
    "Task",
    "check_terms",
    "classification",
    "defaults",
    "describe_range",
    "reconstruction",
]

TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification,
    "reconstruction": reconstruction,
}
"""Name in a configuration -> `factory(source, **options)`."""

DESCRIBE: dict[str, Callable[..., tuple[dict[str, Any], list[str]]]] = {
    "classification": describe_classes,
}
"""Name of a task -> `(outputs, info, top) -> (JSON data, lines of text)`: what the
outputs for one example mean; `describe_range` for a task that is not here."""


def describe_range(outputs: Any, info: Mapping[str, Any], top: int) -> tuple:
    """Shape and range of the outputs for one example; see `DESCRIBE`."""
    del info, top
    low, high = float(outputs.min()), float(outputs.max())
    data = {"shape": list(outputs.shape), "min": low, "max": high}
    size = " x ".join(map(str, outputs.shape))
    return data, [f"{size} outputs from {low:.4g} to {high:.4g}"]


def defaults(factory: Callable) -> dict[str, Any]:
    """{option: default} of a factory of a task or a term."""
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def check_terms(rows: Any, teacher: str) -> None:
    """Refuses rows of `config.terms` that are no terms.

    Args:
      rows: of mappings with 'name', perhaps 'weight', and options of the term.
      teacher: value of `config.teacher`.

    Raises:
      ValueError: one line that names the row, such as 'terms[0].target'.
    """
    for number, row in enumerate(rows):
        key = f"terms[{number}]"
        if not isinstance(row, Mapping):
            raise ValueError(f"{key}={show(row)}, expected a mapping with 'name'")
        check(f"{key}.name", row.get("name"), Choice(tuple(TERMS)))
        known = {"name": Choice(tuple(TERMS)), "weight": Number(0, 1e6)}
        known |= limits_of(TERMS[row["name"]])
        for option, value in row.items():
            if option not in known:
                raise ValueError(unknown(f"{key}.{option}", known))
            check(f"{key}.{option}", value, known[option])
        if row["name"] in NEED_TEACHER and not teacher:
            raise ValueError(
                f"{key}.name={row['name']!r} needs teacher=WORKDIR of a float run"
            )
