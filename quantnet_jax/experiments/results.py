"""The records of studies and benchmarks: `results/NAME.jsonl`, one line a run."""

import fcntl
import json
import pathlib
from typing import Any

from quantnet_jax.experiments.study import Record, Records, Row, Study
from quantnet_jax.logging import records

FOLDER = pathlib.Path("results")
PATHS = ("data.folder", "teacher")
"""Config keys that say where something lies, not what a result depends on."""


def read(name: str, folder: pathlib.Path = FOLDER) -> list[dict[str, Any]]:
    """All records of a file, in order; [] without one. A torn last line is no record.

    Raises:
      ValueError: another line is no JSON.
    """
    path = folder / f"{name}.jsonl"
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as e:
            if number < len(lines) or line.endswith("\n"):
                raise ValueError(f"{path} line {number} is no record: {e}") from None
    return found


def append(name: str, record: dict[str, Any], folder: pathlib.Path = FOLDER) -> None:
    """Adds a record, in one piece whoever else is writing, after a torn line too."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps(records.jsonable(record), ensure_ascii=False) + "\n"
    with open(folder / f"{name}.jsonl", "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.write(line.encode())


def of_study(name: str, study: Study, folder: pathlib.Path) -> Records:
    """{label: last record} of a study, and of the search that it relies on."""
    found = {r["label"]: r for r in read(name, folder)}
    if study.search_from:
        others = read(study.search_from, folder)
        found |= {r["label"]: r for r in others if r["kind"] == "search"}
    return found


def settings(config: Any, names: dict[str, str] | None = None) -> dict[str, Any]:
    """What a result depends on, by dotted key: no paths, no unused quantizers.

    Args:
      config: of a run.
      names: what stands for a key whose value is a path, such as 'init_from'.
    """
    tree = json.loads(config.to_json())
    flat: dict[str, Any] = {}

    def visit(prefix, node):
        used = node.get("name")
        for key, value in node.items():
            if not isinstance(value, dict):
                flat[prefix + key] = value
            elif used is None or key == used:
                visit(f"{prefix}{key}.", value)

    visit("", tree)
    return {k: v for k, v in flat.items() if k not in PATHS} | (names or {})


def changed(record: dict, wanted: dict[str, Any], row: Row) -> list[str]:
    """Keys in which a record and what is wanted now differ.

    A key that only one of them has is new, or gone, in the code; but what the row
    changes has to be there.
    """
    old = record["settings"]
    keys = {k for k in wanted if k in old or k in row.changes}
    return sorted(k for k in keys if k not in old or old[k] != wanted[k])


def seconds_of(record: Record) -> float:
    """Wall time of a run, compilation included where that was recorded."""
    return max(record.get("wall", 0.0), record["seconds"])
