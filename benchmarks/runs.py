"""What all queues of training runs share: one run to one JSON, processes on own cores.

A run whose JSON is there is not run again; one with other settings is refused; a run
that diverged is a result. So a queue that was interrupted goes on where it was.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax

import train
from quantnet_jax import config as config_lib
from quantnet_jax.logging import records as run_records

CURVE = ("step", "epoch", "soft", "hard", "hard_bn", "gap", "gap_bn", "flips")
"""What is kept of each evaluation."""
STOPPED = 75
"""Exit code of a training run that saved its state and wants to be started again."""


# One run ------------------------------------------------------------------------------
def run_once(
    config: Any,
    path: pathlib.Path,
    about: Mapping[str, Any],
    *,
    label: str = "",
    workdir: pathlib.Path | None = None,
    needs_workdir: bool = False,
    names: Mapping[str, str] | None = None,
) -> bool:
    """Trains a configuration, unless its result is there; whether it is there now.

    A run that diverged has a result too: {'diverged': True, 'message': ...}.

    Args:
      config: of the run.
      path: of its JSON.
      about: further entries of the JSON.
      label: of the run in messages; the last two parts of `path`.
      workdir: folder of the run, in which a run that was stopped goes on; a temporary
        one if None.
      needs_workdir: train again if the result is there, but not the run's folder.
      names: see `settings`.
    """
    label = label or f"{path.parent.name}/{path.stem}"
    wanted = settings(config, names)
    old = read(path)
    if old is not None:
        if keys := changed(old["settings"], wanted):
            say(f"error: {label} has another {', '.join(keys)}; remove {path} to rerun")
        if keys or not needs_workdir or workdir is None or has_run(workdir):
            return not keys
        say(f"{label}: {workdir} is gone, so it is trained again")
    began = time.monotonic()
    result = attempt(config, label, workdir)
    if result is None:
        return False
    result |= {
        **about,
        "settings": wanted,
        "wall": time.monotonic() - began,  # with compilation
        "cores": len(os.sched_getaffinity(0)),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    run_records.write_json(path, result)
    shown = "diverged" if "diverged" in result else f"hard+BN {result['hard_bn']:.4f}"
    print(f"{label}: {shown} ({result['wall']:.0f} s)", flush=True)
    return True


def attempt(
    config: Any, label: str, workdir: pathlib.Path | None = None
) -> dict[str, Any] | None:
    """The result of a training run; None, with a word on stderr, if it broke.

    It has a 'curve' where the run was evaluated more than once.

    Raises:
      SystemExit: with code `STOPPED`, if the run was told to stop.
    """
    quiet = io.StringIO()
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            _make_room(config, workdir)
        try:
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                result = train.train(config, workdir)
            return result | curve(workdir)
        except SystemExit as e:
            if e.code == STOPPED:
                raise
            if "diverged" in str(e.code):
                return {"diverged": True, "message": str(e.code)}
            say(f"{label}: {e.code}")
        except Exception:  # of one method; the others go on
            say(f"error: {label}\n{traceback.format_exc()}")
        finally:
            jax.clear_caches()  # each run compiles its own programs
    return None


def _make_room(config: Any, workdir: pathlib.Path) -> None:
    """Removes what a run of another configuration left there."""
    try:
        config_lib.check_same_run(config, workdir)
    except ValueError:
        shutil.rmtree(workdir)


def has_run(workdir: pathlib.Path) -> bool:
    """Whether a run came to its end there."""
    return (workdir / "result.json").exists()


def curve(workdir: pathlib.Path) -> dict[str, list[dict]]:
    """{'curve': the evaluations of a run}; {} if there was but one."""
    path = workdir / run_records.METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    found = [
        {key: r[key] for key in CURVE if key in r}
        for r in records
        if r["kind"] == "eval"
    ]
    return {"curve": found} if len(found) > 1 else {}


# Files and settings -------------------------------------------------------------------
def read(path: pathlib.Path) -> dict[str, Any] | None:
    """A result, None where there is none yet."""
    return json.loads(path.read_text()) if path.exists() else None


def settings(config: Any, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a result depends on, by dotted key: no paths, no unused quantizers.

    Args:
      config: of a run.
      names: what stands for a key whose value is a path, such as 'init_from'.
    """
    tree = json.loads(config.to_json())
    for section in ("quantizer", "activation"):
        used = tree[section]["name"]
        tree[section] = {k: v for k, v in tree[section].items() if k in ("name", used)}
    flat = {}

    def visit(prefix, node):
        for key, value in node.items():
            if isinstance(value, dict):
                visit(f"{prefix}{key}.", value)
            else:
                flat[prefix + key] = value

    visit("", tree)
    del flat["data.folder"]
    return flat | dict(names or {})


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys in which results differ; a key that old results lack is new in the code,
    unless it is an option of a quantizer.
    """
    keys = set(old) | {k for k in new if k.startswith(("quantizer.", "activation."))}
    missing = object()
    return sorted(k for k in keys if old.get(k, missing) != new.get(k, missing))


def slug(name: str) -> str:
    """A name as part of a file name."""
    kept = "".join(x if x.isalnum() or x in "._-" else "_" for x in name)
    while "__" in kept:
        kept = kept.replace("__", "_")
    return kept


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


# Processes ----------------------------------------------------------------------------
def run_processes(
    take: Callable[[dict[str, int], set[str]], tuple[str, list[str]] | None],
    jobs: int,
    environment: Mapping[str, str],
) -> dict[str, int]:
    """Runs commands, `jobs` at a time, each on its own share of the cores.

    SIGTERM is passed on to what is running, and nothing is started after it.

    Args:
      take: `(exit codes so far, names under way) -> (name, command)`, or None where
        there is nothing to start before another one ends.
      jobs: at least 1.
      environment: of the commands.

    Returns:
      The exit code of each name.

    Raises:
      SystemExit: with code `STOPPED`, after SIGTERM and the end of what was running.
    """
    cores = sorted(os.sched_getaffinity(0))
    free = [cores[i::jobs] or cores for i in range(jobs)]
    codes: dict[str, int] = {}
    running: dict[str, tuple[subprocess.Popen, list[int]]] = {}
    stopped = False

    def stop(*_):
        nonlocal stopped
        stopped = True
        for process, _ in running.values():
            process.terminate()

    old = signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            while free and not stopped:
                task = take(codes, set(running))
                if task is None:
                    break
                share = free.pop(0)
                # Before the process starts, so that its threads are made for it.
                mine = os.sched_getaffinity(0)
                os.sched_setaffinity(0, share)
                running[task[0]] = subprocess.Popen(task[1], env=environment), share
                os.sched_setaffinity(0, mine)
            if not running:
                break
            time.sleep(0.2)
            for name, (process, _) in list(running.items()):
                if process.poll() is not None:
                    codes[name] = process.returncode
                    free.append(running.pop(name)[1])
    finally:
        signal.signal(signal.SIGTERM, old)
    if stopped:
        say("stopped; the same command goes on")
        sys.exit(STOPPED)
    return codes


def environment(cache: str | os.PathLike, xla_flags: str = "") -> dict[str, str]:
    """That of a process that trains: with a cache of compiled programs."""
    found = dict(os.environ)
    found.setdefault("JAX_COMPILATION_CACHE_DIR", os.fspath(cache))
    found.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if xla_flags:
        found.setdefault("XLA_FLAGS", xla_flags)
    return found
