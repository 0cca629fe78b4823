"""One piece of a study: how long it will take, its training, its record."""

import contextlib
import importlib
import io
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from typing import Any, NamedTuple

import jax

from quantnet_jax import config as config_lib
from quantnet_jax.common import command
from quantnet_jax.distributed.preemption import RESUME_ME
from quantnet_jax.experiments import grid, results
from quantnet_jax.experiments.study import Record, Records, Run, Study
from quantnet_jax.logging import records as run_records
from quantnet_jax.logging.step_log import Diverged

CURVE = ("step", "epoch", "soft", "hard", "hard_bn", "gap", "gap_bn", "flips")
"""What is recorded of each evaluation."""
DEVICE = (
    "from quantnet_jax.distributed import hosts as h;"
    "print(h.backend(), h.describe_devices(), sep='\\n')"
)


class Options(NamedTuple):
    """How a study is run on this machine.

    Attributes:
      folder: of the dataset's files.
      results, work: folders of the records, and of the runs with their checkpoints.
      dtype: of the network, '' for that of the configuration.
      only: rows, () for all.
      jobs: pieces at a time, 0 for the study's number.
      seconds: budget, None for none.
      device: that a piece runs on, as its record names it; '' for any.
      scale: of the length of every run, 1 but for rehearsals.
    """

    folder: str = ""
    results: pathlib.Path = results.FOLDER
    work: pathlib.Path = pathlib.Path("runs")
    dtype: str = ""
    only: tuple[str, ...] = ()
    jobs: int = 0
    seconds: float | None = None
    device: str = ""
    scale: float = 1.0


def workdir(name: str, run: Run, options: Options) -> pathlib.Path:
    """Folder of a run, in which it resumes."""
    return options.work / name / run.label


def train_piece(name: str, study: Study, run: Run, options: Options) -> bool:
    """Trains one piece in this process and appends its record; whether it has one.

    Raises:
      SystemExit: with `RESUME_ME`, if it was asked to stop.
    """
    records = results.of_study(name, study, options.results)
    source, names = grid.needs(study, records, run), {}
    init_from = ""
    if source is not None:
        init_from = str(workdir(name, source, options))
        names = {"init_from": source.label}
    config = study.configure(
        study, run, folder=options.folder, init_from=init_from, dtype=options.dtype
    )
    began, folder = time.monotonic(), workdir(name, run, options)
    made = _trained(config, run.label, folder)
    if made is None:
        return False
    assert run.initialization is not None
    command = f"python -m quantnet_jax.experiments one {name} --run={run.label}"
    record = {
        "study": name,
        "label": run.label,
        "kind": run.kind,
        "row": run.row,
        "initialization": run.initialization.name,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "epochs": float(config.epochs),
        "command": command,
        **made,
        "settings": results.settings(config, names),
        "wall": time.monotonic() - began,  # with compilation
        "cores": len(os.sched_getaffinity(0)),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    results.append(name, record, options.results)
    if run.kind == "search":  # whose checkpoints nobody needs
        shutil.rmtree(folder, ignore_errors=True)
    shown = "diverged" if "diverged" in made else f"hard {made['hard']:.4f}"
    if "hard_bn" in made:  # of networks with running statistics
        shown = f"hard + BN {made['hard_bn']:.4f}"
    print(f"{run.label}: {shown} ({record['wall']:.0f} s)", flush=True)
    return True


def _trained(config: Any, label: str, folder: pathlib.Path) -> Record | None:
    """What a run gives, with its 'curve'; None, and a word on stderr, if it broke."""
    train = importlib.import_module("quantnet_jax.run")  # a room above
    try:
        config_lib.check_same_run(config, folder)
    except ValueError:  # of another configuration
        shutil.rmtree(folder)
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            result = train.train(config, folder)
        return result | curve(folder)
    except SystemExit as e:
        if e.code == RESUME_ME:
            raise
        say(f"error: {label}: {e.code}")
    except Diverged as e:
        return {"diverged": True, "message": str(e)}
    except command.MENDABLE as e:
        say(f"error: {label}: {command.describe(e)}")
    except Exception:  # of one method; the others go on
        say(f"error: {label}\n{traceback.format_exc()}")
    finally:
        jax.clear_caches()  # each run compiles its own programs
    return None


def curve(folder: pathlib.Path) -> dict[str, list[dict]]:
    """{'curve': the evaluations of a run}; {} if there was but one."""
    path = folder / run_records.METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    evaluations = [r for r in map(json.loads, lines) if r["kind"] == "eval"]
    found = [{k: r[k] for k in CURVE if k in r} for r in evaluations]
    return {"curve": found} if len(found) > 1 else {}


def estimate(records: Records, run: Run, device: str = "") -> float | None:
    """Seconds of a piece, from finished ones on the device; None before the first.

    The longest one of the same row and length; else by the epochs of its row; else by
    the median epoch.
    """
    done = [r for r in records.values() if not r.get("diverged")]
    done = [r for r in done if r["device"] == device or not device]
    own = [r for r in done if r["row"] == run.row]
    pace = lambda r: results.seconds_of(r) / r["epochs"]
    if same := [results.seconds_of(r) for r in own if r["epochs"] == run.epochs]:
        return max(same)
    if not done or run.epochs is None:
        return None
    return run.epochs * (
        max(map(pace, own)) if own else statistics.median(map(pace, done))
    )


def machine() -> tuple[str, str]:
    """(backend, device), from a process that does not keep the device's memory."""
    words = [sys.executable, "-c", DEVICE]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    backend, device = done.stdout.splitlines()[-2:]
    return backend, device


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
