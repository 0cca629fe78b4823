"""Tasks: what a batch is, its loss and its metrics, as pure functions.

A task is added by a file with a factory and a row in `TASKS`; terms of the loss that
need more than outputs and targets are in `quantnet_jax.tasks.terms`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from quantnet_jax.common.limits import (
    Choice,
    Number,
    check,
    check_options,
)
from quantnet_jax.common.names import nearest, show
from quantnet_jax.tasks.base import Drawing, Metric, Source, Task
from quantnet_jax.tasks.classification import classification, describe_classes
from quantnet_jax.tasks.few_shot import few_shot
from quantnet_jax.tasks.reconstruction import reconstruction
from quantnet_jax.tasks.retrieval import retrieval
from quantnet_jax.tasks.super_resolution import ENLARGEMENT, super_resolution
from quantnet_jax.tasks.terms import TERMS

__all__ = [
    "DESCRIBE",
    "DRAWINGS",
    "TASKS",
    "Drawing",
    "Metric",
    "Source",
    "Task",
    "check_terms",
    "classification",
    "few_shot",
    "find",
    "describe_range",
    "reconstruction",
    "retrieval",
    "super_resolution",
]

TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification,
    "few_shot": few_shot,
    "reconstruction": reconstruction,
    "retrieval": retrieval,
    "super_resolution": super_resolution,
}
"""Name in a configuration -> `factory(source, **options)`."""

DESCRIBE: dict[str, Callable[..., tuple[dict[str, Any], list[str]]]] = {
    "classification": describe_classes,
}
"""Name of a task -> `(outputs, info, top) -> (JSON data, lines of text)`: what the
outputs for one example mean; `describe_range` for a task that is not here."""


DRAWINGS: dict[str, Drawing] = {"super_resolution": ENLARGEMENT}
"""Name of a task whose networks draw images -> how."""


def describe_range(outputs: Any, info: Mapping[str, Any], top: int) -> tuple:
    """Shape and range of the outputs for one example; see `DESCRIBE`."""
    del info, top
    low, high = float(outputs.min()), float(outputs.max())
    data = {"shape": list(outputs.shape), "min": low, "max": high}
    size = " x ".join(map(str, outputs.shape))
    return data, [f"{size} outputs from {low:.4g} to {high:.4g}"]


def find(name: str) -> Callable[..., Task]:
    """The factory of a name; ValueError with the nearest one if it is unknown."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}{nearest(name, TASKS)}")
    return TASKS[name]


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
        if not isinstance(row, Mapping) or "name" not in row:
            raise ValueError(f"{key}={show(row)}, expected a mapping with 'name'")
        check(f"{key}.name", row["name"], Choice(tuple(TERMS)))
        check(f"{key}.weight", row.get("weight", 1.0), Number(0, 1e6))
        given = {k: v for k, v in row.items() if k not in ("name", "weight")}
        kind = TERMS[row["name"]]
        check_options(f"{key}.", kind.factory, given)
        if kind.teacher and not teacher:
            raise ValueError(
                f"{key}.name={row['name']!r} needs teacher=WORKDIR of a float run"
            )
