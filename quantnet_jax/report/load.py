"""Reads run folders, and averages the runs of each method."""

import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from quantnet_jax.common.files import as_path, in_bucket
from quantnet_jax.common.names import dotted
from quantnet_jax.logging.records import METRICS_FILE
from quantnet_jax.logging.scores import PLAIN, SCORES, Unit, unit_of

_SECTIONS = {"method": "quantizer"}


class Run(NamedTuple):
    """What the page shows of one run; every field may be incomplete."""

    name: str
    config: dict[str, Any]
    result: dict[str, Any]  # empty while the run is in progress
    records: dict[str, list[dict[str, Any]]]  # kind -> records by step
    exhibits: dict[str, Any] = {}  # sizes, kernels, predictions; of finished runs

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
        """Returns the final value of `key`, or that of the last evaluation."""
        value = self._latest(key)
        return float(value) if isinstance(value, int | float) else None

    def gap(self) -> float | None:
        """Returns by how much the hard weights are worse than the soft ones."""
        return gap(self._latest, self.unit)

    @property
    def unit(self) -> Unit:
        """The unit of the primary metric; a plain number if not recorded."""
        for record in (self.result, *reversed(self.records["eval"])):
            if isinstance(metric := record.get("metric"), Mapping):
                return unit_of(metric)
        return PLAIN

    def _latest(self, key: str) -> Any:
        value = self.result.get(key)
        if value is None and self.records["eval"]:
            value = self.records["eval"][-1].get(key)
        return value


def gap(get: Callable[[str], Any], unit: Unit) -> float | None:
    """The recorded gap, or that of the recorded soft and hard scores."""
    recorded, soft, hard = map(get, ("gap", "soft", "hard"))
    if finite(recorded):
        return recorded
    return unit.gap(soft, hard) if finite(soft) and finite(hard) else None


def finite(value: Any) -> bool:
    """Whether a value that was read from a file is a number to show."""
    return isinstance(value, int | float) and math.isfinite(value)


def common_unit(runs: Sequence[Run]) -> Unit:
    """The unit of all runs that have scores, `PLAIN` if they differ."""
    units = {run.unit for run in runs if run.result or run.records["eval"]}
    return units.pop() if len(units) == 1 else PLAIN


def load_run(workdir: str | os.PathLike[str]) -> Run:
    """Reads config.json, metrics.jsonl and, once it is there, result.json.

    Raises:
      FileNotFoundError: the folder or its metrics.jsonl is missing.
      ValueError: config.json or result.json is not a JSON object.
    """
    folder = as_path(workdir)
    folder = folder if in_bucket(workdir) else folder.absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"workdir {os.fspath(workdir)!r} is not a folder")
    path = folder / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"workdir {os.fspath(workdir)!r} has no {METRICS_FILE}; give the --workdir"
            " of a training run"
        )
    records: dict[str, list[dict[str, Any]]] = {"train": [], "eval": [], "layers": []}
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            continue  # damaged, or the line that a running training is just writing
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.get(str(record.get("kind")), []).append(record)
    records["layers"] = [
        r for r in records["layers"] if isinstance(r.get("layers"), dict)
    ]
    for lines in records.values():
        lines.sort(key=lambda record: record["step"])
    return Run(
        name=folder.name,
        config=_read_object(folder / "config.json"),
        result=_read_object(folder / "result.json"),
        records=records,
        exhibits=_read_object(folder / "exhibits.json"),
    )


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """{config key: its value in each run, as text} of the keys that differ."""
    flat = [dotted(run.config) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    shown = {key: [str(one.get(key, "–")) for one in flat] for key in keys}
    return {key: values for key, values in shown.items() if len(set(values)) > 1}


def _read_object(path: Any) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error})") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"{str(path)!r} holds {kind}, expected an object")
    return value


class Group(NamedTuple):
    """Finished runs of one method; scores are (mean, sample standard deviation)."""

    caption: str
    runs: int
    scores: dict[str, tuple[float, float | None]]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Returns mean and deviation over the finished runs of each method.

    Runs that differ in metric, data, model or steps are not averaged: what differs
    among the given runs becomes part of the caption.
    """
    finished = [run for run in runs if run.result]
    mixed = [
        key
        for key in ("metric", "data", "model", "steps")
        if len({run.info(key) for run in finished}) > 1
    ]
    members: dict[str, list[Run]] = {}
    for run in finished:
        parts = [f"{key} {run.info(key)}" for key in mixed]
        caption = " · ".join([run.info("method") or "unknown", *parts])
        members.setdefault(caption, []).append(run)
    groups = []
    for caption, group in members.items():
        scores = {}
        for key in (*SCORES, "gap"):
            values = [r.gap() if key == "gap" else r.score(key) for r in group]
            known = [v for v in values if v is not None]
            if known:
                spread = statistics.stdev(known) if len(known) > 1 else None
                scores[key] = (statistics.fmean(known), spread)
        groups.append(Group(caption, len(group), scores))
    return groups
