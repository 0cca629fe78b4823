"""What a run of `train.py` left on disk: checkpoints, records, result."""

import json
import os
import pathlib

import jax
import numpy as np

from quantnet_jax import config as config_lib
from quantnet_jax.checkpoint import manager
from quantnet_jax.logging import records as run_records
from quantnet_jax.training import experiment
from quantnet_jax.trees.paths import flatten

UNFINISHED = "orbax-checkpoint-tmp"  # in the name of a checkpoint that is not complete
TIMES = ("seconds", "step_time", "examples_per_second", "data_wait", "device_memory")


def saved(workdir: pathlib.Path) -> set[int]:
    """Steps of the finished checkpoints."""
    return {int(name) for name, _ in listing(workdir) if name.isdigit()}


def unfinished(workdir: pathlib.Path) -> set[tuple[str, int]]:
    """(name, inode) of the checkpoints that are, or were, being written."""
    return {item for item in listing(workdir) if UNFINISHED in item[0]}


def listing(workdir: pathlib.Path) -> list[tuple[str, int]]:
    """(name, inode) of each checkpoint."""
    try:
        with os.scandir(workdir / manager.FOLDER) as found:
            return [(entry.name, entry.inode()) for entry in found]
    except FileNotFoundError:
        return []


def text(path: str | pathlib.Path) -> str:
    """Of a file, '' without one."""
    try:
        return pathlib.Path(path).read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def records(workdir: pathlib.Path) -> list[dict]:
    """The records of a run without times; an unfinished last line is no record."""
    lines = text(workdir / run_records.METRICS_FILE).splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def logged(workdir: pathlib.Path) -> int:
    """The last step with a record."""
    return max((row["step"] for row in records(workdir)), default=0)


def differences(workdir: pathlib.Path, reference: pathlib.Path) -> list[str]:
    """What two finished runs do not have in common, to the last bit; times aside."""
    found = []
    like = jax.device_get(experiment.build(config_lib.load(reference)).state)
    runs = []
    for folder in (workdir, reference):
        with manager.Checkpoints(folder, read_only=True) as kept:
            states = {step: kept.restore(like, step).state for step in kept.steps()}
            runs.append({k: flatten(v) for k, v in states.items()})
    if runs[0].keys() != runs[1].keys():
        found.append(f"saved steps {sorted(runs[0])}, not {sorted(runs[1])}")
    for step in runs[0].keys() & runs[1].keys():
        for name, a in runs[0][step].items():
            b = runs[1][step][name]
            if a.dtype != b.dtype or np.asarray(a).tobytes() != np.asarray(b).tobytes():
                found.append(f"{name} of step {step} differs")
    if records(workdir) != records(reference):
        found.append(f"{run_records.METRICS_FILE} differs")
    one, two = (json.loads(text(r / "result.json")) for r in (workdir, reference))
    for name in sorted((one.keys() | two.keys()) - set(TIMES)):
        if one.get(name) != two.get(name):
            found.append(f"{name!r} of result.json differs")
    return found
