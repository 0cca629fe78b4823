"""Trains QuantNet and its baselines on CIFAR by published protocols; makes the tables.

    python benchmarks/cifar100.py run --folder=FOLDER     # what suits this machine
    python benchmarks/cifar100.py run --protocol small --folder=FOLDER --only quantnet
    python benchmarks/cifar100.py list --protocol small   # all runs in order
    python benchmarks/cifar100.py table                   # writes docs/results.md

FOLDER holds the binary version of the data set. Without --protocol an accelerator gets
the full protocols and a CPU the small ones. Each run leaves one JSON under
results/cifar100/PROTOCOL/; the same command goes on where it was interrupted, inside a
run too. The folders of the runs, whose checkpoints are needed for warm starts and for
the zoo, are under --work.

With --folder no run needs TFDS, Grain or TensorFlow. What has to be there beside jax,
flax, optax and orbax-checkpoint are three small packages: absl-py, ml_collections and
safetensors.
"""

import argparse
import functools
import pathlib
import shutil
import statistics
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as a script it finds only benchmarks/

from absl import logging  # noqa: E402

from benchmarks import cifar100_page, cifar100_plan, protocols, runs  # noqa: E402
from benchmarks.cifar100_plan import Run  # noqa: E402
from benchmarks.protocols import PROTOCOLS, Protocol  # noqa: E402

DATA = ("cifar100", "cifar10")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax has a word on every float network
    if args.action == "one":
        return run_named(args)
    if args.action == "list":
        for name in args.protocol:
            print("\n".join(listing(name, args)))
        return 0
    code = 0
    if args.action in ("run", "row") and not args.dtype and backend() != "cpu":
        args.dtype = "bfloat16"  # what accelerators are fast at
    if args.action != "table":
        do = run_here if args.action == "row" else run_all
        for name in args.protocol:  # also where something of another did not work
            code = max(code, do(name, args))
    for page in cifar100_page.write(args.results, args.page):
        print(f"wrote {page}")
    return code


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/cifar100.py", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument(
        "action",
        choices=("run", "row", "one", "list", "table"),
        help="'row' runs the rows of --only in this process, 'one' the run of --name",
    )
    parser.add_argument("--protocol", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--folder", default="", help="with the files of the data set")
    parser.add_argument("--data", choices=DATA, default=DATA[0])
    parser.add_argument("--only", nargs="+", metavar="ROW", default=[], help="rows")
    parser.add_argument("--jobs", type=int, help="runs at a time")
    parser.add_argument(
        "--dtype", default="", help="of the network; bfloat16 on accelerators"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of all lengths")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "results")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "runs")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs/results.md")
    parser.add_argument("--name", default="", help="of 'one': KIND/NAME, see 'list'")
    args = parser.parse_args(argv)
    if not args.protocol:
        args.protocol = list(PROTOCOLS)
        if args.action in ("run", "row"):
            accelerated = backend() != "cpu"
            args.protocol = list(
                protocols.ON_ACCELERATOR if accelerated else protocols.ON_CPU
            )
    for name in args.protocol:
        if name not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            parser.error(f"--protocol {name!r}: no such protocol, expected {known}")
    known = {row for name in args.protocol for row in PROTOCOLS[name].rows}
    for row in args.only:
        if row not in known:
            parser.error(f"--only {row!r}: no such row, expected {', '.join(known)}")
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs={args.jobs}, expected at least 1")
    if not args.scale > 0:
        parser.error(f"--scale={args.scale}, expected a positive number")
    return args


@functools.cache
def backend() -> str:
    """'cpu', 'gpu' or 'tpu', from a process that does not keep the device's memory."""
    words = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


# Where things are ---------------------------------------------------------------------
def results_of(name: str, args: argparse.Namespace) -> pathlib.Path:
    return args.results / args.data / name


def work_of(name: str, run: Run, args: argparse.Namespace) -> pathlib.Path:
    return args.work / args.data / name / run.kind / run.name


def is_done(name: str, run: Run, args: argparse.Namespace) -> bool:
    return cifar100_plan.result(results_of(name, args), run) is not None


# The queue ----------------------------------------------------------------------------
def wanted(name: str, args: argparse.Namespace) -> list[Run]:
    """The runs of a protocol, those of --only alone, and of the float row they need."""
    found = cifar100_plan.plan(PROTOCOLS[name], results_of(name, args))
    rows = {*args.only, *(PROTOCOLS[name].rows[r].like for r in args.only)}
    needed = lambda r: r.row == protocols.FLOAT and r.kind in ("search", "float")
    return [r for r in found if not rows or r.row in rows or needed(r)]


def next_run(
    name: str, args: argparse.Namespace, codes: dict[str, int], running: set[str]
) -> Run | None:
    """The first run that has no result and lacks nothing; None if there is none now."""
    protocol, results = PROTOCOLS[name], results_of(name, args)
    for run in wanted(name, args):
        if is_done(name, run, args) or run.start is None:
            continue
        source = cifar100_plan.needs(protocol, results, run)
        if source is not None:
            lost = not runs.has_run(work_of(name, source, args))
            if lost and is_done(name, source, args) and source.start:
                run = source  # trained before, elsewhere
            elif lost:
                continue
        if run.label not in running and run.label not in codes:
            return run
    return None


def run_all(name: str, args: argparse.Namespace) -> int:
    """Runs what has no result yet, each run in a process on its own cores."""
    protocol = PROTOCOLS[name]
    jobs = args.jobs or protocol.jobs

    def take(codes, running):
        run = next_run(name, args, codes, running)
        if run is None:
            return None
        print(f"{progress(name, args, jobs)}: {run.label}", flush=True)
        return run.label, command(name, run, args)

    cache = args.work.resolve() / "compiled"
    codes = runs.run_processes(take, jobs, runs.environment(cache, protocol.xla_flags))
    return told(name, args, codes)


def run_here(name: str, args: argparse.Namespace) -> int:
    """The same in this process, one run after the other."""
    codes: dict[str, int] = {}
    while run := next_run(name, args, codes, set()):
        codes[run.label] = run_one(name, run, args)
    return told(name, args, codes)


def told(name: str, args: argparse.Namespace, codes: dict[str, int]) -> int:
    """Says what of a queue is not complete; the exit code."""
    failed = [label for label, code in codes.items() if code]
    missing = [r for r in wanted(name, args) if not is_done(name, r, args)]
    if failed:
        runs.say(f"error: {name}: not complete: {', '.join(failed)}")
    elif missing:
        runs.say(f"error: {name}: {len(missing)} runs could not be begun")
    return 1 if missing or failed else 0


def command(name: str, run: Run, args: argparse.Namespace) -> list[str]:
    """The command line of one run."""
    words = [sys.executable, str(pathlib.Path(__file__).resolve()), "one"]
    words += ["--protocol", name, f"--name={run.label}", f"--folder={args.folder}"]
    words += [f"--data={args.data}", f"--dtype={args.dtype}", f"--scale={args.scale}"]
    folders = {"results": args.results, "work": args.work}
    return words + [f"--{key}={path.resolve()}" for key, path in folders.items()]


def run_named(args: argparse.Namespace) -> int:
    """The run of --name."""
    (name,) = args.protocol
    found = cifar100_plan.plan(PROTOCOLS[name], results_of(name, args))
    for run in found:
        if run.label == args.name and run.start is not None:
            return run_one(name, run, args)
    runs.say(f"error: --name={args.name}: no such run, or not decided yet; see 'list'")
    return 2


def run_one(name: str, run: Run, args: argparse.Namespace) -> int:
    """Trains one run unless it has its result; 0 if there is one now."""
    protocol, results = PROTOCOLS[name], results_of(name, args)
    config = settled(protocol, run, args)
    workdir = work_of(name, run, args)
    source = cifar100_plan.needs(protocol, results, run)
    names = {}
    if source is not None:
        config.init_from = str(work_of(name, source, args))
        names = {"init_from": source.label}
    assert run.start is not None
    kept = run.kind != "search"
    done = runs.run_once(
        config,
        cifar100_plan.path(results, run),
        {"protocol": name, "row": run.row, "start": run.start.name, "rate": run.rate},
        workdir=workdir,
        needs_workdir=kept,
        names=names,
    )
    if done and not kept:
        shutil.rmtree(workdir, ignore_errors=True)
    return 0 if done else 1


def settled(protocol: Protocol, run: Run, args: argparse.Namespace) -> Any:
    """The configuration of a run on the data of the arguments."""
    config = cifar100_plan.configuration(protocol, run)
    config.data.name, config.data.folder = args.data, args.folder
    config.dtype = args.dtype or config.dtype
    if args.scale != 1.0:
        config.epochs *= args.scale
        config.eval_every = min(config.eval_every * args.scale, config.epochs)
    return config


# What is left -------------------------------------------------------------------------
def progress(name: str, args: argparse.Namespace, jobs: int) -> str:
    """'small: 12 of 290 runs, about 3.1 hours left'."""
    found = wanted(name, args)
    done = [r for r in found if is_done(name, r, args)]
    text = f"{name}: {len(done)} of {len(found)} runs"
    hours = hours_left(name, args, jobs)
    return text if hours is None else f"{text}, about {hours:.1f} hours left"


def hours_left(name: str, args: argparse.Namespace, jobs: int) -> float | None:
    """From the median time of an epoch so far; None before the first run."""
    paths = results_of(name, args).glob("*/*.json")
    found = [r for r in map(runs.read, paths) if r and "diverged" not in r]
    if not found:
        return None
    pace = statistics.median(r["seconds"] / r["settings"]["epochs"] for r in found)
    protocol = PROTOCOLS[name]
    longest = max(s.epochs for s in protocol.starts)
    missing = [r for r in wanted(name, args) if not is_done(name, r, args)]
    epochs = sum((r.start.epochs if r.start else longest) * r.scale for r in missing)
    return epochs * args.scale * pace / 3600 / jobs


def listing(name: str, args: argparse.Namespace) -> list[str]:
    """A line for each run: done, missing, or still to be decided by a search."""
    lines = [f"{name}: {PROTOCOLS[name].title}"]
    for run in wanted(name, args):
        state = "done" if is_done(name, run, args) else "missing"
        how = "after the search"
        if run.start is not None:
            epochs = run.start.epochs * run.scale * args.scale
            how = f"{run.start.name}, rate {run.rate:g}, {epochs:g} epochs"
        lines.append(f"  {state:8s}{run.label:44s}{how}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
