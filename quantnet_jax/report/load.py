"""Reads run folders and writes one HTML page about them."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from quantnet_jax.report import charts
from quantnet_jax.report import page as report_page


class Run(NamedTuple):
    """What the page shows of one run; every field may be incomplete."""

    name: str
    config: dict[str, Any]
    result: dict[str, Any]  # empty while the run is in progress
    records: dict[str, list[dict[str, Any]]]  # kind -> records by step

    def info(self, key: str) -> str:
        """Returns method, data, model, seed, ... as text, '' where unknown."""
        section = self.config.get(_SECTIONS.get(key, key))
        for value in (self.result.get(key), section, self.config.get(key)):
            if isinstance(value, Mapping):
                value = value.get("name", value.get(key))
            if value is not None and not isinstance(value, Mapping | list):
                return str(value)
        return ""

    def score(self, key: str) -> float | None:
        """Returns the final figure `key`, or that of the last evaluation."""
        value = self.result.get(key)
        if value is None and self.records["eval"]:
            value = self.records["eval"][-1].get(key)
        return float(value) if isinstance(value, int | float) else None

    def gap(self) -> float | None:
        """Returns soft minus hard accuracy as a fraction."""
        soft, hard = self.score("soft"), self.score("hard")
        return None if soft is None or hard is None else soft - hard


_SECTIONS = {"method": "quantizer"}


def load_run(workdir: str | os.PathLike[str]) -> Run:
    """Reads config.json, metrics.jsonl and, once it is there, result.json.

    Raises:
      FileNotFoundError: the folder or its metrics.jsonl is missing.
      ValueError: config.json or result.json is not a JSON object.
    """
    folder = os.path.abspath(workdir)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"workdir {os.fspath(workdir)!r} is not a folder")
    path = os.path.join(folder, "metrics.jsonl")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"workdir {os.fspath(workdir)!r} has no metrics.jsonl; give the --workdir"
            " of a training run"
        )
    records: dict[str, list[dict[str, Any]]] = {"train": [], "eval": [], "layers": []}
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line, parse_constant=lambda _: None)
            except ValueError:
                continue  # the line that a running training is just writing
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.get(str(record.get("kind")), []).append(record)
    records["layers"] = [
        r for r in records["layers"] if isinstance(r.get("layers"), dict)
    ]
    for kept in records.values():
        kept.sort(key=lambda record: record["step"])
    return Run(
        name=os.path.basename(folder),
        config=_read_object(os.path.join(folder, "config.json")),
        result=_read_object(os.path.join(folder, "result.json")),
        records=records,
    )


def _read_object(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        try:
            value = json.load(file, parse_constant=lambda _: None)
        except ValueError as error:
            raise ValueError(f"{path!r} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path!r} holds {type(value).__name__}, expected an object")
    return value


class Group(NamedTuple):
    """Finished runs of one method; scores are (mean, sample deviation) fractions."""

    label: str
    runs: int
    scores: dict[str, tuple[float, float | None]]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Returns mean and deviation over the finished runs of each method.

    Runs that differ in data, model or steps are not averaged: what differs among the
    given runs becomes part of the label.
    """
    finished = [run for run in runs if run.result]
    mixed = [
        key
        for key in ("data", "model", "steps")
        if len({run.info(key) for run in finished}) > 1
    ]
    members: dict[str, list[Run]] = {}
    for run in finished:
        parts = [f"{key} {run.info(key)}" for key in mixed]
        label = " · ".join([run.info("method") or "unknown", *parts])
        members.setdefault(label, []).append(run)
    groups = []
    for label, group in members.items():
        scores = {}
        for key in (*charts.SCORES, "gap"):
            values = [r.gap() if key == "gap" else r.score(key) for r in group]
            known = [v for v in values if v is not None]
            if known:
                spread = statistics.stdev(known) if len(known) > 1 else None
                scores[key] = (statistics.fmean(known), spread)
        groups.append(Group(label, len(group), scores))
    return groups


def write_report(
    workdirs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
) -> str:
    """Writes one self-contained page about the runs and returns its path.

    Args:
      workdirs: folders of runs, in progress or finished.
      out: the page; by default `report.html` in the first folder.

    Raises:
      FileNotFoundError: a folder or its metrics.jsonl is missing.
      ValueError: no folder is given, or a file in it is not JSON.
    """
    if not workdirs:
        raise ValueError("workdirs is empty; give at least one run folder")
    runs = [load_run(workdir) for workdir in workdirs]
    path = os.fspath(out if out else os.path.join(workdirs[0], "report.html"))
    page = report_page.render(_with_distinct_names(runs, workdirs), group_runs(runs))
    temporary = path + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(page)
    os.replace(temporary, path)
    return path


def _with_distinct_names(runs: Sequence[Run], workdirs: Sequence[Any]) -> list[Run]:
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else run._replace(name=os.fspath(folder))
        for run, folder in zip(runs, workdirs, strict=True)
    ]
