"""A short loan of an accelerator: numerics, times, then the most valuable runs.

Everything that is begun fits in the seconds given, start-up and compilation included,
as far as finished pieces tell. The same command goes on where the last one ended.
"""

import subprocess
import sys
import time
from typing import NamedTuple

from quantnet_jax.experiments import grid, queue, results
from quantnet_jax.experiments.pieces import Options, say
from quantnet_jax.experiments.study import scaled

STUDIES = ("b200", "a56")
"""In this order; their settings are fixed, so that nothing is searched."""
RESERVE = 20.0
"""Seconds at the end in which runs that were cut off save their state."""


class Check(NamedTuple):
    """What each loan runs before the studies.

    Attributes:
      name: in the output.
      command: words after `python -m`.
      rehearsal: words in place of these on a CPU.
      seconds: at most.
    """

    name: str
    command: tuple[str, ...]
    rehearsal: tuple[str, ...]
    seconds: float


MEMBERS = ("quantnet", "tanh_sign", "dorefa", "irnet", "binary_ste")
CHECKS = (
    Check(
        "numerics",
        ("quantnet_jax.testing", *MEMBERS),
        ("quantnet_jax.testing", MEMBERS[0]),
        60.0,
    ),
    Check(
        "step times and memory",
        ("benchmarks.performance", "--points=2"),
        ("benchmarks.performance", "--points=1", "--compile"),
        100.0,
    ),
)


def plan(options: Options, assumed: float) -> list[str]:
    """What the budget would bring, a line each.

    Args:
      options: of this machine, with `seconds`.
      assumed: seconds of a run whose like has not been run on the device.
    """
    assert options.seconds is not None
    left = options.seconds - RESERVE
    lines = []
    for check in CHECKS:
        lines.append(f"  up to {check.seconds:4.0f} s  {check.name}")
        left -= check.seconds
    for name in STUDIES:
        study = scaled(grid.load(name), options.scale)
        for run, seconds in queue.expected(name, study, options, assumed):
            fits = seconds <= left
            left -= seconds if fits else 0.0
            when = f"about {seconds:4.0f} s" if fits else "     later  "
            lines.append(f"  {when}  {name}: {run.label}")
    return lines


def run(options: Options, backend: str) -> int:
    """Runs what fits; the exit code, 1 if something failed.

    Args:
      options: of this machine, with `seconds`.
      backend: 'cpu' for a rehearsal.
    """
    assert options.seconds is not None
    end = time.monotonic() + options.seconds - RESERVE
    code = 0
    for check in CHECKS:
        words = check.rehearsal if backend == "cpu" else check.command
        limit = min(check.seconds, end - time.monotonic())
        code = max(code, _check(check.name, words, limit, options))
    for name in STUDIES:
        left = end - time.monotonic()
        if left <= 0:
            break
        study = scaled(grid.load(name), options.scale)
        queue.run(name, study, options._replace(seconds=left))
        records = results.of_study(name, study, options.results)
        print(f"{name}: {len(records)} runs are recorded", flush=True)
    return code


def _check(name: str, words: tuple[str, ...], limit: float, options: Options) -> int:
    """1 if it failed; one that took too long is cut off and named."""
    print(f"{name}: at most {limit:.0f} s", flush=True)
    command = [sys.executable, "-m", *words]
    if words[0].startswith("benchmarks"):
        command.append(f"--results={options.results}")
    try:
        done = subprocess.run(command, timeout=max(limit, 0.1))
    except subprocess.TimeoutExpired:
        say(f"{name}: cut off after {limit:.0f} s")
        return 0
    if done.returncode:
        say(f"error: {name}: exit status {done.returncode}")
    return int(done.returncode != 0)
