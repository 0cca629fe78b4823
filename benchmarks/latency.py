"""Times inference of one network in our forms, in onnxruntime and in PyTorch.

    python benchmarks/latency.py    # writes results/latency.json and results/latency.md

ResNet-20 on 32x32 images (`--network=resnet18`: 224x224) with binary inner weights. For
each number of threads one process is bound to as many cores, and all programs take
turns in it: a pause, one call that is not timed, one that is. A program is timed only
after its logits were found equal to those of its reference. What is not installed is
reported as such; PyTorch: `pip install torch==2.13.0`, the table's other peers are
those of requirements.txt. The Larq Compute Engine needs a Python of its own, see
benchmarks/latency_lce.py: `--lce-python=PATH` names it.
"""

import argparse
import json
import os
import pathlib
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/latency.py` finds only benchmarks/

WARM_UP = 5
PAUSE = 0.005
"""Seconds before each turn, in which the threads of the last program fall asleep."""
TOLERANCE = 1e-4
"""Of the largest logit (of 1 if that is less)."""
BAR = 1.15
QUIET = 0.3


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/latency.py", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--network", default="resnet20", help="resnet20 or resnet18")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=40, help="rounds, 30 or more")
    parser.add_argument(
        "--max-load", type=float, default=QUIET, help="refuse above this load average"
    )
    parser.add_argument("--out", default=str(ROOT / "results" / "latency.json"))
    parser.add_argument("--lce-python", help="Python that has the Larq Compute Engine")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    if args.worker is not None:
        return worker(args)
    try:
        check(args)
        result = measure(args, words)
    except (ValueError, subprocess.CalledProcessError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    from benchmarks import latency_page
    from quantnet_jax.logging import records

    result["command"] = shlex.join(["python", "benchmarks/latency.py", *words])
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    records.write_json(out, result)
    page = out.with_suffix(".md")
    page.write_text(latency_page.table(result), encoding="utf-8")
    print(page.read_text(encoding="utf-8"))
    print(f"wrote {out} and {page}")
    return 0


def check(args) -> None:
    """Raises ValueError where nothing can be measured."""
    cores = len(os.sched_getaffinity(0))
    if args.network not in ("resnet20", "resnet18"):
        raise ValueError(f"--network={args.network}, expected resnet20 or resnet18")
    if not all(1 <= n <= cores for n in args.threads):
        raise ValueError(f"--threads {args.threads}, but there are 1 to {cores} cores")
    if args.repeats < 3 or min(args.batches) < 1:
        raise ValueError("--repeats must be 3 or more, --batches positive")
    if args.lce_python and not shutil.which(args.lce_python):
        raise ValueError(f"--lce-python={args.lce_python} is no program")
    check_idle(args.max_load)


def check_idle(max_load: float) -> None:
    """Raises ValueError where others are at work on the machine."""
    load = os.getloadavg()[0]
    if load > max_load:
        raise ValueError(
            f"the machine is busy: load {load:.2f}, expected at most {max_load}; "
            "wait, or raise --max-load, which the result records"
        )


def measure(args, words: list[str]) -> dict:
    """One process for each number of threads; their results together."""
    runs = []
    for threads in args.threads:
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "run.json"
            command = [sys.executable, __file__, *words]
            command += [f"--worker={threads}", f"--out={out}"]
            subprocess.run(command, check=True)
            runs.append(json.loads(out.read_text()))
    about = [run.pop("about") for run in runs][0]
    return {
        "benchmark": "seconds from a uint8 batch in memory to its logits in memory",
        "network": args.network,
        "repeats": args.repeats,
        "warm_up": WARM_UP,
        "pause": PAUSE,
        "tolerance": TOLERANCE,
        "bar": BAR,
        "max_load": args.max_load,
        "runs": runs,
        **about,
    }


def worker(args) -> int:
    """Measures with `args.worker` threads; writes JSON to `args.out`."""
    cores = sorted(os.sched_getaffinity(0))[-args.worker :]
    os.sched_setaffinity(0, cores)  # before XLA counts the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(args.worker))
    import numpy as np

    from benchmarks import latency_engine, latency_rows
    from benchmarks.latency_page import LCE, PEERS
    from quantnet_jax.logging.provenance import provenance

    rows, predictor, signs = latency_rows.ours(args.network)
    rng = np.random.default_rng(0)
    images = lambda n: rng.integers(0, 256, (n, *predictor.shape), np.uint8)
    missing, versions = {}, {}
    if latency_rows.installed("onnx") and latency_rows.installed("onnxruntime"):
        rows |= latency_rows.onnx_rows(predictor, args.worker, images(32))
        versions |= {p: __import__(p).__version__ for p in ("onnx", "onnxruntime")}
    else:
        missing |= {name: "not installed" for name in PEERS[:2]}
    if latency_rows.installed("torch"):
        rows |= latency_rows.torch_rows(predictor, args.worker)
        versions["torch"] = str(__import__("torch").__version__)
    else:
        missing |= {name: "not installed" for name in PEERS[2:]}
    engine = None
    if args.lce_python:
        engine = latency_engine.Engine(args.lce_python, signs, args.worker)
        rows[LCE] = engine.row()
    else:
        missing[LCE] = "not run: see benchmarks/latency_lce.py"
    batches = {}
    for n in args.batches:
        x = images(n)
        agreed = {name: agreement(name, rows, x) for name in rows}
        others = (lambda: engine.ask("processor")) if engine else (lambda: 0.0)
        batches[n] = take_turns(rows, x, args.repeats, others)
        for name, row in batches[n]["rows"].items():
            row["logits"] = agreed[name]
        if engine:
            batches[n]["rows"][LCE]["kernel"] = engine.kernel
    if engine:
        engine.close()
    found = provenance()
    found["versions"] |= versions
    result = {
        "threads": args.worker,
        "batches": batches,
        "missing": missing,
        "about": {
            "rows": {name: row.about for name, row in rows.items()},
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            **found,
        },
    }
    pathlib.Path(args.out).write_text(json.dumps(result))
    return 0


def agreement(name: str, rows: dict, x) -> dict:
    """How logits compare with those of the reference; ValueError if they may not.

    Rounding can carry a sum over the boundary of a sign, so that a network of signs
    passes if half of the images agree, and all others only if all do.
    """
    import numpy as np

    reference = rows[name].reference or "hard"
    got, expected = rows[name].run(x), rows[reference].run(x)
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    error = np.abs(got - expected).max(-1)
    same = float(np.mean(got.argmax(-1) == expected.argmax(-1)))
    differ = int((~(error <= allowed)).sum())
    signs = "W1A1 as floats" in (name, reference)
    if rows[name].reference and differ > (len(x) // 2 if signs else 0):
        raise ValueError(
            f"{name}: logits of {differ} images are not those of {reference}"
        )
    return {
        "reference": rows[name].reference,
        "largest_difference": float(error.max()),
        "images_that_differ": differ,
        "same_class": same,
    }


def take_turns(rows: dict, x, repeats: int, processor=lambda: 0.0) -> dict:
    """Times of all programs in a shuffled order, and what else the machine did.

    Args:
      rows: name -> `latency_rows.Row`.
      x: the batch.
      repeats: rounds.
      processor: seconds of processor time of the processes that we started.
    """
    timers = {name: row.seconds or stopwatch(row.run, x) for name, row in rows.items()}
    for timer in timers.values():
        for _ in range(-(-WARM_UP // 2)):
            timer()
    seconds = {name: [] for name in rows}
    names = list(rows)
    spent = lambda: own_seconds() + processor()
    load, began, busy, own = os.getloadavg(), time.time(), busy_seconds(), spent()
    for turn in range(repeats):
        for name in random.Random(turn).sample(names, len(names)):
            time.sleep(PAUSE)
            seconds[name].append(timers[name]())
    others = (busy_seconds() - busy) - (spent() - own)
    reference = statistics.median(seconds["float"])
    rows = {}
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles(times, n=4)
        paired = [a / b for a, b in zip(times, seconds["float"], strict=True)]
        rows[name] = {
            "median": middle,
            "quartiles": [low, high],
            "fastest": min(times),
            "over_float": middle / reference,
            "over_float_paired": statistics.median(paired),
        }
    capacity = (time.time() - began) * (os.cpu_count() or 1)
    return {
        "rows": rows,
        "load": {"before": load, "after": os.getloadavg()},
        "share_of_other_processes": max(0.0, others / capacity),
    }


def stopwatch(run, x):
    """Runs a program twice; gives the seconds of the second run."""

    def seconds() -> float:
        run(x)
        start = time.perf_counter()
        run(x)
        return time.perf_counter() - start

    return seconds


def busy_seconds() -> float:
    """Processor time of the whole machine; 0 where /proc does not tell."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, soft, *_ = map(
                int, file.readline().split()[1:]
            )
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor time of this process."""
    times = os.times()
    return times.user + times.system


def cpu() -> str:
    """Name of the processor; '' where the system does not tell."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
    return found[0] if found else ""


if __name__ == "__main__":
    sys.exit(main())
