"""What benchmarks and measurements share: interleaved timing, idle check, records."""

import argparse
import os
import pathlib
import random
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from quantnet_jax.experiments import results
from quantnet_jax.logging.provenance import provenance

ROOT = pathlib.Path(__file__).resolve().parents[1]
WARM_UP = 3
"""Rounds that are not counted."""


def parser(
    name: str, doc: str | None, repeats: int, load: float
) -> argparse.ArgumentParser:
    """The options that every program has; `name` is that of its module."""
    made = argparse.ArgumentParser(
        prog=f"python -m {name}", description=str(doc).splitlines()[0]
    )
    made.set_defaults(program=name)
    made.add_argument("--repeats", type=int, default=repeats, help="rounds")
    made.add_argument(
        "--max-load", type=float, default=load, help="refuse above this load average"
    )
    made.add_argument("--results", type=pathlib.Path, default=ROOT / results.FOLDER)
    return made


def main(
    args: argparse.Namespace, argv: list[str] | None, measure: Callable, file: str = ""
) -> int:
    """Measures and appends the record to results/FILE.jsonl; the exit code.

    Args:
      args: of `parser`.
      argv: the words that they were parsed from.
      measure: `args -> record`; its ValueErrors are reported in one line.
      file: of the records, that of the module by default.
    """
    before = os.getloadavg()
    try:
        if args.repeats < 2:
            raise ValueError(f"--repeats={args.repeats}, expected at least 2")
        if before[0] > args.max_load:
            raise ValueError(
                f"the machine is busy: load {before[0]:.2f}, expected at most "
                f"--max-load={args.max_load}"
            )
        found = measure(args)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    words = sys.argv[1:] if argv is None else argv
    file = file or args.program.rpartition(".")[2]
    places = [re.sub(r"(^|=)/.*/", r"\1.../", word) for word in words]  # of a machine
    command = shlex.join(["python", "-m", args.program, *places])
    about = provenance()
    about["versions"] |= found.pop("versions", {})
    record = {
        "benchmark": file,
        **found,
        "repeats": args.repeats,
        "command": command,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "load": {"before": before, "after": os.getloadavg()},
        **about,
    }
    results.append(file, record, args.results)
    print(f"appended to {args.results / file}.jsonl")
    return 0


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warm_up: int = WARM_UP,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each call, one of each in a round, in a shuffled order.

    So a change of the machine's load hits all of them.

    Args:
      calls: name -> a call to its end; what it returns as a float, if anything, are the
        seconds, measured by itself.
      repeats: rounds that are counted.
      warm_up: rounds before that are not.
      pause: seconds before each call, in which the threads of the last one sleep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warm_up, repeats):
        for name in random.Random(turn).sample(list(calls), len(calls)):
            time.sleep(pause)
            began = time.perf_counter()
            own = calls[name]()
            took = time.perf_counter() - began
            if turn >= 0:
                seconds[name].append(own if isinstance(own, float) else took)
    return seconds


def summary(seconds: Mapping[str, list[float]], reference: str) -> dict[str, dict]:
    """Median, quartiles, fastest and slowest of each, and its times over a reference.

    'over_float' is of the medians, 'over_float_paired' the median over the rounds.
    """
    rows, base = {}, seconds[reference]
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
        paired = [a / b for a, b in zip(times, base, strict=True)]
        rows[name] = {
            "median": middle,
            "quartiles": [low, high],
            "fastest": min(times),
            "slowest": max(times),
            "over_float": middle / statistics.median(base),
            "over_float_paired": statistics.median(paired),
        }
    return rows


def cpu() -> dict[str, Any]:
    """Name of the processor, and which vector instructions it has."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return {"model": None}
    about = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    about = {key.strip(): value.strip() for key, value in about.items()}
    flags = about.get("flags", "").split()
    wanted = ("avx2", "avx512f", "avx512_vpopcntdq")
    return {"model": about.get("model name")} | {x: x in flags for x in wanted}
