"""Kills training at random moments and compares its end with that of an untouched run.

    python -m tests.integration.chaos --kills 100      # appends to results/chaos.jsonl

A supervisor runs `train.py` on one CPU device, kills it by SIGKILL in the first seconds
of its process (a third of the kills waits until a checkpoint is being written), or asks
it to stop by SIGTERM, and starts it again until the run is at its end. Then parameters,
optimizer, log and result have to be those of a run that nobody touched, to the last
bit; and the next run begins, until the kills are used up. Arguments after `--` go to
`train.py`, in place of `--config.checkpoint_every=50`.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ["JAX_PLATFORMS"] = "cpu"  # the supervisor keeps off the accelerator

from quantnet_jax import config as config_lib  # noqa: E402
from quantnet_jax.distributed.preemption import RESUME_ME  # noqa: E402
from quantnet_jax.experiments import results  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402
from tests.integration.leftovers import (  # noqa: E402
    differences,
    logged,
    saved,
    text,
    unfinished,
)

COUNTS = (
    *("kills", "kills_in_start_up", "kills_in_training", "kills_while_writing"),
    *("kills_after_training", "terms", "terms_saved"),
    *("lost_checkpoints", "steps_repeated"),
)
PATIENCE = 900  # seconds of one process after which something must be wrong
LOOK = 0.003  # seconds between two looks at the folder of checkpoints


class Kill(NamedTuple):
    """What is done to one process of the training program.

    Attributes:
      signal: SIGKILL, or SIGTERM, which asks it to save and stop.
      delay: seconds after the start before which nothing is done.
      after: '' for then, 'writing' or 'saved' for once this process writes its next
        checkpoint, or has written one.
    """

    signal: signal.Signals
    delay: float = 0.0
    after: str = ""


class Tally:
    """Counts over all processes of runs of `steps` steps, and what was wrong."""

    def __init__(self, steps: int):
        self.steps = steps
        self.counts = collections.Counter()
        self.errors: list[str] = []


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.chaos",
        description=str(__doc__).splitlines()[0],
    )
    option = parser.add_argument
    option("--kills", type=int, default=100, help="by SIGKILL")
    option("--seed", type=int, default=0, help="of the moments")
    option("--window", type=float, default=2.0, help="of moments, in start-up times")
    option("--workdir", help="a new folder; default a temporary one")
    option("rest", nargs="*", metavar="OPTION", help="of train.py")
    args = parser.parse_args(argv)
    if args.kills < 1:
        parser.error(f"--kills={args.kills}, expected at least 1")
    args.rest = args.rest or ["--config.checkpoint_every=50"]
    result = torture(args)
    words = sys.argv[1:] if argv is None else argv
    result["command"] = shlex.join(["python", "-m", "tests.integration.chaos", *words])
    results.append("chaos", result, ROOT / results.FOLDER)
    for name in COUNTS:
        print(f"{name.replace('_', ' '):24}{result[name]:6}")
    print("identical to the untouched run" if result["identical"] else result["errors"])
    return 0 if result["identical"] else 1


def torture(args) -> dict:
    """The record of all kills."""
    folder = pathlib.Path(args.workdir or tempfile.mkdtemp(prefix="chaos_"))
    began, reference = time.monotonic(), folder / "reference"
    if start(args.rest, reference).wait():  # compiles all programs
        raise RuntimeError(f"train.py failed, see {reference}.log")
    took, startup = time.monotonic() - began, time_to_train(args.rest, folder / "probe")
    tally, runs = Tally(json.loads((reference / "result.json").read_text())["steps"]), 0
    kills = plan(args.kills, args.seed, args.window * startup, tally)
    while tally.counts["kills"] < args.kills and not tally.errors:
        runs += 1
        workdir = folder / f"run{runs}"
        suffer(args.rest, workdir, kills, tally)
        if not tally.errors:
            tally.errors += differences(workdir, reference)
        print(f"{workdir.name} is at its end: {dict(tally.counts)}", flush=True)
    config = config_lib.load(reference)
    return {
        "benchmark": "training killed at random moments",
        "arguments": args.rest,
        "network": config_lib.model_options(config),
        "steps": tally.steps,
        "batch_size": config.batch_size,
        "checkpoint_every": config.checkpoint_every,
        "seed": args.seed,
        "runs": runs,
        **{name: tally.counts[name] for name in COUNTS},
        "identical": not tally.errors,
        "errors": tally.errors,
        "start_up_seconds": startup,
        "window_seconds": args.window * startup,
        "untouched_seconds": took,
        "seconds": time.monotonic() - began,
        "cores": len(os.sched_getaffinity(0)),
        **provenance(),
    }


def plan(kills: int, seed: int, window: float, tally: Tally) -> Iterator[Kill]:
    """Moments, uniform over `window` seconds, until there were enough kills."""
    rng = random.Random(seed)
    kinds = ((signal.SIGKILL, ""), (signal.SIGKILL, "writing"), (signal.SIGTERM, ""))
    while tally.counts["kills"] < kills:
        ((sent, after),) = rng.choices(kinds, (6, 3, 1))
        yield Kill(sent, rng.uniform(0, window), after)


# Processes ----------------------------------------------------------------------------
def start(rest: list[str], workdir: pathlib.Path) -> subprocess.Popen:
    """Starts the training program; what it prints is added to `workdir`.log."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
    }
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{workdir}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *rest, f"--workdir={workdir}"],
            env=environment,
            stdout=log,
            stderr=log,
        )


def time_to_train(rest: list[str], workdir: pathlib.Path) -> float:
    """Seconds from a start until the first record of the training."""
    began, process = time.monotonic(), start(rest, workdir)
    while not logged(workdir) and process.poll() is None:
        time.sleep(LOOK)
    took = time.monotonic() - began
    process.kill()
    if process.wait() not in (0, -signal.SIGKILL):
        raise RuntimeError(f"train.py failed, see {workdir}.log")
    return took


def suffer(
    rest: list[str], workdir: pathlib.Path, kills: Iterator[Kill], tally: Tally
) -> None:
    """One run from its first start to its end, killed until there are no more kills."""
    finished = False
    while not finished and not tally.errors:
        before, leftover = saved(workdir), unfinished(workdir)
        seen, printed = set(before), len(text(f"{workdir}.log"))
        kill, struck = next(kills, None), False
        process, began = start(rest, workdir), time.monotonic()
        while process.poll() is None:
            now = saved(workdir)
            seen |= now
            due = {
                "": True,
                "writing": bool(unfinished(workdir) - leftover),
                "saved": bool(now - before),
            }
            age = time.monotonic() - began
            if kill and not struck and age > kill.delay and due[kill.after]:
                process.send_signal(kill.signal)
                struck = True
            if age > PATIENCE:
                process.kill()
            time.sleep(LOOK)
        code = process.returncode
        finished = code == 0
        ways = {signal.SIGTERM: (-signal.SIGTERM, RESUME_ME)}
        if code and not (
            kill and struck and code in ways.get(kill.signal, (-kill.signal,))
        ):
            tally.errors.append(f"exit code {code} after {age:.0f} s")
        log = text(f"{workdir}.log")[printed:]
        at = re.search(r"^resuming .* at step (\d+)", log, re.M)
        if at and int(at[1]) != max(before, default=0):
            tally.counts["lost_checkpoints"] += 1
            tally.errors.append(f"resumed at {at[1]}, not at the newest of {before}")
        if code:
            writing = bool(unfinished(workdir) - leftover)
            count(workdir, code, before, seen, writing, tally)
        if tally.errors:
            print(f"{tally.errors[-1]}; see {workdir}.log", flush=True)


def count(
    workdir: pathlib.Path,
    code: int,
    before: set[int],
    seen: set[int],
    writing: bool,
    tally: Tally,
) -> None:
    """Books the end of one process.

    Args:
      workdir: of the run.
      code: exit code.
      before, seen: steps that were saved before this process, and before or during it.
      writing: whether it left an unfinished checkpoint.
      tally: gets the counts.
    """
    left, reached, counts = saved(workdir), logged(workdir), tally.counts
    newest, oldest = max(left, default=0), max(before, default=0)
    # The newest two stay, whatever the policy says of the others.
    if lost := set(sorted(seen | left)[-2:]) - left:
        counts["lost_checkpoints"] += len(lost)
        tally.errors.append(f"saved steps {sorted(lost)} are lost")
    counts["steps_repeated"] += max(0, reached - newest)
    if code != -signal.SIGKILL:
        phase = "asked"
        counts["terms"] += 1
        counts["terms_saved"] += code == RESUME_ME
        if code == RESUME_ME and newest <= oldest:
            tally.errors.append(f"SIGTERM after step {oldest} saved none")
    else:
        phase = "in_start_up"
        if writing:
            phase = "while_writing"
        elif newest == tally.steps:
            phase = "after_training"
        elif max(newest, reached) > oldest:
            phase = "in_training"
        counts["kills"] += 1
        counts[f"kills_{phase}"] += 1
    print(
        f"{counts['kills']:4} {workdir.name} {phase}: saved {sorted(left)}", flush=True
    )


if __name__ == "__main__":
    sys.exit(main())
