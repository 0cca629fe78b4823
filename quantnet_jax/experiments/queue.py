"""Runs what is missing of a study: resumable, each piece a process on its own cores.

A piece whose record is there is not run again; one that diverged has a record too. With
a budget of seconds no piece is begun that cannot end in time, as far as finished pieces
tell; one that is still running then is asked to save its state, and resumes next time.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

from quantnet_jax.distributed.preemption import RESUME_ME
from quantnet_jax.experiments import grid, results
from quantnet_jax.experiments.pieces import (
    Options,
    estimate,
    say,
    train_piece,
    workdir,
)
from quantnet_jax.experiments.study import FLOAT, Records, Run, Study

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Of GLIBC_TUNABLES on Linux: memory in huge pages, for faster steps on CPUs."""
LOOK = 0.2
"""Seconds between two looks at the processes."""


# What is left -------------------------------------------------------------------------
def wanted(study: Study, records: Records, only: Iterable[str]) -> list[Run]:
    """The plan, or of it the rows of `only` and those that they need."""
    rows, left = set(), list(only)
    while left:  # a row that one starts from may start from another
        rows.add(name := left.pop())
        row = study.rows[name]
        left += {row.like, row.start} - rows - {""}
    needed = lambda r: r.row == FLOAT and r.kind in ("search", "float")
    found = grid.plan(study, records)
    return [r for r in found if not rows or r.row in rows or needed(r)]


def ready(name: str, study: Study, records: Records, options: Options) -> list[Run]:
    """Pieces without a record that can begin now, the most valuable ones first.

    A float network whose checkpoint is gone is trained again when a run needs it.
    """
    found: list[Run] = []
    for run in wanted(study, records, options.only):
        if grid.record_of(records, run) or run.initialization is None:
            continue
        source = grid.needs(study, records, run)
        if source and not (workdir(name, source, options) / "result.json").exists():
            if not grid.record_of(records, source) or not source.initialization:
                continue  # it is in the plan itself
            run = source
        if run not in found:
            found.append(run)
    return found


def listing(name: str, study: Study, options: Options) -> list[str]:
    """A line for each run, and what the budget would bring."""
    records = results.of_study(name, study, options.results)
    jobs = options.jobs or study.jobs
    lines, left, unknown = [f"{name}: {study.title}"], 0.0, 0
    for run in wanted(study, records, options.only):
        how, seconds = "after the search", estimate(records, run, options.device)
        if run.initialization is not None:
            how = f"{run.initialization.name}, lr {run.learning_rate:g}, "
            how += f"{run.epochs:g} epochs"
        done = grid.record_of(records, run)
        if not done:
            left, unknown = left + (seconds or 0.0), unknown + (seconds is None)
            how += f", about {seconds:.0f} s" if seconds else ""
        lines.append(f"  {'done' if done else 'missing':8s}{run.label:44s}{how}")
    lines.append(
        f"left: about {left / jobs / 3600:.1f} hours; {unknown} of unknown length"
    )
    if options.seconds is not None:
        times = [(r.label, estimate(records, r, options.device))
                 for r in ready(name, study, records, options)]  # fmt: skip
        budget, fits = options.seconds * jobs, []
        for label, seconds in times:
            if seconds is not None and seconds <= min(budget, options.seconds):
                budget -= seconds
                fits.append(label)
        if times and times[0][1] is None:
            fits = [times[0][0]]  # which tells how long the others take
        lines.append(f"in {options.seconds:g} s: {', '.join(fits) or 'nothing fits'}")
    return lines


def expected(
    name: str, study: Study, options: Options, assumed: float
) -> Iterator[tuple[Run, float]]:
    """What can begin now or next, with its seconds.

    Args:
      name: of the study.
      study: what is run.
      options: of this machine.
      assumed: seconds of a run that nothing tells the length of.
    """
    records = results.of_study(name, study, options.results)
    for run in wanted(study, records, options.only):
        if not grid.record_of(records, run):
            yield run, estimate(records, run, options.device) or assumed


def mislabelled(name: str, study: Study, options: Options) -> Iterator[str]:
    """One line for each record that other settings than the present ones made."""
    records = results.of_study(name, study, options.results)
    for run in wanted(study, records, options.only):
        record = grid.record_of(records, run)
        if record and run.initialization:
            now = results.settings(study.configure(study, run))
            skipped = {"init_from", "dtype"}  # of the machine
            now = {k: v for k, v in now.items() if k not in skipped}
            if keys := results.changed(record, now, study.rows[run.row]):
                yield f"{name}: {run.label} was run with another {', '.join(keys)}"


# The queue ----------------------------------------------------------------------------
def run(name: str, study: Study, options: Options, *, here: bool = False) -> int:
    """Runs what is missing; the exit code, 0 if the study (or `only`) is complete.

    Args:
      name: of the study.
      study: what is run.
      options: of this machine.
      here: one piece after the other in this process.

    Raises:
      SystemExit: with `RESUME_ME`, after SIGTERM and the end of what was running.
    """
    if wrong := list(mislabelled(name, study, options)):
        say(f"error: {wrong[0]} ({len(wrong)} records); remove it to run it again")
        return 1
    deadline = (
        time.monotonic() + options.seconds if options.seconds is not None else None
    )
    codes: dict[str, int] = {}
    cut: list[str] = []

    def take(running: Iterable[str]) -> Run | None:
        records = results.of_study(name, study, options.results)
        for piece in ready(name, study, records, options):
            if piece.label in codes or piece.label in running:
                continue
            seconds = estimate(records, piece, options.device)
            left = deadline - time.monotonic() if deadline is not None else None
            if left is not None:
                if left <= 0 or (seconds is None and running):
                    return None  # the first one tells how long the others take
                if (seconds or 0) > left:
                    continue
            about = "" if seconds is None else f", about {seconds:.0f} s"
            print(f"{name}: {piece.label}{about}", flush=True)
            return piece
        return None

    if here:
        while piece := take(()):
            codes[piece.label] = 0 if train_piece(name, study, piece, options) else 1
    else:
        jobs = options.jobs or study.jobs
        env = environment(options.work.resolve() / "compiled", study.xla_flags)
        start = lambda piece: command(name, piece, options)
        codes, cut = _processes(take, start, jobs, env, deadline, codes)
    records = results.of_study(name, study, options.results)
    missing = [
        r
        for r in wanted(study, records, options.only)
        if not grid.record_of(records, r)
    ]
    failed = [label for label, code in codes.items() if code and label not in cut]
    if failed:
        say(f"error: {name}: not complete: {', '.join(failed)}")
    elif missing:
        why = "in the time given" if deadline is not None else "could not be begun"
        say(f"{name}: {len(missing)} runs are left, {why}")
    return 1 if failed or missing else 0


def command(name: str, piece: Run, options: Options) -> list[str]:
    """The command line of one piece."""
    words = [sys.executable, "-m", "quantnet_jax.experiments", "one", name]
    words += [f"--run={piece.label}", f"--folder={options.folder}"]
    words += [f"--dtype={options.dtype}"] if options.dtype else []
    words += [f"--scale={options.scale}"] if options.scale != 1.0 else []
    return [*words, f"--results={options.results}", f"--work={options.work}"]


def _processes(take, start, jobs: int, env, deadline, codes):
    """Runs pieces, `jobs` at a time, each on its own share of the cores.

    SIGTERM is passed on to what is running, and nothing is started after it; so is the
    deadline, once. Fills in `codes`: label -> exit code.

    Returns:
      (codes, labels that the deadline cut off).
    """
    cores = sorted(os.sched_getaffinity(0))
    free = [cores[i::jobs] or cores for i in range(jobs)]
    running: dict[str, tuple[subprocess.Popen, list[int]]] = {}
    stopped, cut = False, []

    def stop(*_):
        nonlocal stopped
        stopped = True
        for process, _ in running.values():
            process.terminate()

    old = signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            while free and not stopped and (piece := take(running)):
                share, mine = free.pop(0), os.sched_getaffinity(0)
                # Before the process starts, so that its threads are made for it.
                os.sched_setaffinity(0, share)
                running[piece.label] = subprocess.Popen(start(piece), env=env), share
                os.sched_setaffinity(0, mine)
            if not running:
                break
            time.sleep(LOOK)
            if deadline is not None and time.monotonic() > deadline and not cut:
                cut += running
                for process, _ in running.values():
                    process.terminate()
            for label, (process, share) in list(running.items()):
                if process.poll() is not None:
                    codes[label] = process.returncode
                    free.append(share)
                    del running[label]
    finally:
        signal.signal(signal.SIGTERM, old)
    if stopped:
        say("stopped; the same command resumes")
        sys.exit(RESUME_ME)
    return codes, cut


def environment(cache: pathlib.Path, xla_flags: str = "") -> dict[str, str]:
    """That of a process that trains: with a cache of compiled programs."""
    found = dict(os.environ)
    found.setdefault("JAX_COMPILATION_CACHE_DIR", os.fspath(cache))
    found.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if xla_flags:
        found.setdefault("XLA_FLAGS", xla_flags)
    found.setdefault("GLIBC_TUNABLES", HUGE_PAGES)
    return found
