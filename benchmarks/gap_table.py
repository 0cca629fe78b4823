"""Trains the whole family with equal care and makes its table.

    python benchmarks/gap_table.py run      # bundled images, resumable, under an hour
    python benchmarks/gap_table.py time     # seconds of a step, over the float network
    python benchmarks/gap_table.py table    # writes results/gap_table/DATA/README.md
    python benchmarks/gap_table.py run --data=cifar100 --folder=FOLDER   # accelerator

For each row the learning rate is searched on held-out training images (one seed, the
same rates for all rows); the best one is trained on all training images and scored on
the test images with three seeds. Each row is a process of its own, the most important
rows first, and each run leaves one JSON: an interrupted queue goes on where it was.
"""

import argparse
import concurrent.futures
import contextlib
import io
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as a script it finds only benchmarks/

import jax  # noqa: E402

import train  # noqa: E402
from benchmarks import gap_page, gap_rows, step_time  # noqa: E402
from benchmarks.gap_rows import FLOAT  # noqa: E402
from quantnet_jax.training import experiment, metrics  # noqa: E402
from quantnet_jax.training.provenance import provenance  # noqa: E402

RESULTS = ROOT / "results" / "gap_table"


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    code = 0
    if args.action == "row":
        return max(run_row(name, args) for name in args.only)
    if args.action == "run":
        code = run_all(args)
    if args.action == "time":
        measure(args)
    results = args.results / args.data
    results.mkdir(parents=True, exist_ok=True)
    (results / "README.md").write_text(gap_page.page(args.data, results))
    print(f"wrote {results / 'README.md'}")
    return code


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, with the defaults of the data set filled in and checked."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gap_table.py", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument(
        "action",
        choices=("run", "row", "time", "table"),
        help="'row' runs the rows of --only in this process, one after the other",
    )
    parser.add_argument("--data", choices=tuple(gap_rows.SETTINGS), default="bundled")
    parser.add_argument("--folder", default="", help="with the files of the data set")
    parser.add_argument("--jobs", type=int, help="rows at a time")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="rows")
    parser.add_argument("--epochs", type=float, help="of a final run")
    parser.add_argument("--search-epochs", type=float, help="of a run of the search")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder")
    parser.add_argument("--repeats", type=int, default=30, help="of 'time': rounds")
    args = parser.parse_args(argv)
    setting = gap_rows.SETTINGS[args.data]
    for key in ("epochs", "search_epochs", "jobs"):
        if getattr(args, key) is None:
            setattr(args, key, getattr(setting, key))
        if not getattr(args, key) > 0:
            parser.error(
                f"--{key.replace('_', '-')}={getattr(args, key)}, expected > 0"
            )
    known = list(gap_rows.rows())
    for name in args.only:
        if name not in known:
            parser.error(f"--only {name!r}: no such row, expected {', '.join(known)}")
    if args.action == "row" and not args.only:
        parser.error("row: --only names no row")
    return args


# The queue ----------------------------------------------------------------------------
def run_all(args: argparse.Namespace) -> int:
    """Runs what has no result yet, `jobs` rows at a time, each on its own cores."""
    names = args.only or list(gap_rows.rows())
    cores = sorted(os.sched_getaffinity(0))
    free: queue.Queue[list[int]] = queue.Queue()
    for i in range(args.jobs):
        free.put(cores[i :: args.jobs] or cores)

    def one(name: str) -> int:
        share = free.get()
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), "row"]
        command += [f"--data={args.data}", f"--folder={args.folder}"]
        command += [f"--results={args.results.resolve()}"]
        command += [f"--epochs={args.epochs}", f"--search-epochs={args.search_epochs}"]
        try:
            return subprocess.run(
                [*command, "--only", name],
                env=environment,
                preexec_fn=lambda: os.sched_setaffinity(0, share),
            ).returncode
        finally:
            free.put(share)

    with tempfile.TemporaryDirectory() as cache:
        # Evaluation is the same program in every run of a row.
        environment = dict(os.environ)
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        environment.setdefault("XLA_FLAGS", gap_rows.SETTINGS[args.data].xla_flags)
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            codes = dict(zip(names, pool.map(one, names), strict=True))
    failed = [name for name, code in codes.items() if code]
    if failed:
        print(f"error: not complete: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_row(name: str, args: argparse.Namespace) -> int:
    """The search of one row, then its final runs; 0 if all of them have a result."""
    results = args.results / args.data
    hold_out = gap_rows.SETTINGS[args.data].hold_out
    search = {"epochs": args.search_epochs, "data.hold_out": hold_out, "seed": 0}
    for rate, path in gap_page.search_paths(results, name).items():
        run_one(name, args, path, search | {"weights.learning_rate": rate})
    rate = gap_page.best_rate(results, name)
    if rate is None:
        return 1
    final = {"epochs": args.epochs, "weights.learning_rate": rate}
    done = [
        run_one(name, args, path, final | {"seed": seed})
        for seed, path in gap_page.final_paths(results, name).items()
    ]
    return 0 if all(done) else 1


def run_one(
    name: str, args: argparse.Namespace, path: pathlib.Path, changes: dict[str, Any]
) -> bool:
    """One run, unless it has its result; whether there is one of these settings now.

    A run that diverged has a result too: {'diverged': True, 'message': ...}.
    """
    label = f"{path.parent.name}/{path.stem}"
    row = gap_rows.rows()[name]
    config = gap_rows.configuration(row, args.data, args.folder)
    config.update_from_flattened_dict(changes)
    config.eval_every = config.epochs
    wanted = settings(config)
    old = gap_page.read(path)
    if old is not None:
        if keys := changed(old["settings"], wanted):
            say(f"error: {label} has another {', '.join(keys)}; remove {path} to rerun")
        return not keys
    began = time.monotonic()
    result = attempt(config, label)
    if result is None:
        return False
    result |= {
        "row": name,
        "settings": wanted,
        "wall": time.monotonic() - began,  # with compilation
        "cores": len(os.sched_getaffinity(0)),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_json(path, result)
    shown = "diverged" if "diverged" in result else f"hard+BN {result['hard_bn']:.4f}"
    print(f"{label}: {shown} ({result['wall']:.0f} s)", flush=True)
    return True


def attempt(config: Any, label: str) -> dict[str, Any] | None:
    """The result of a training run; None, with a word on stderr, if it broke."""
    quiet = io.StringIO()
    try:
        with (
            tempfile.TemporaryDirectory() as workdir,
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            return train.train(config, pathlib.Path(workdir))
    except SystemExit as e:
        if "diverged" in str(e.code):
            return {"diverged": True, "message": str(e.code)}
        say(f"{label}: {e.code}")
    except Exception:  # of one method; the others go on
        say(f"error: {label}\n{traceback.format_exc()}")
    finally:
        jax.clear_caches()  # each run compiles its own programs
    return None


def settings(config: Any) -> dict[str, Any]:
    """What a result depends on, by dotted key: no paths, no unused quantizers."""
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
    return flat


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys in which results differ; a key that old results lack is new in the code,
    unless it is an option of a quantizer.
    """
    keys = set(old) | {k for k in new if k.startswith(("quantizer.", "activation."))}
    missing = object()
    return sorted(k for k in keys if old.get(k, missing) != new.get(k, missing))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Step times ---------------------------------------------------------------------------
def measure(args: argparse.Namespace) -> None:
    """Writes the step times of all rows, in turns on the same few images."""
    names = [FLOAT, *(n for n in args.only or gap_rows.rows() if n != FLOAT)]
    os.environ.setdefault("XLA_FLAGS", gap_rows.SETTINGS[args.data].xla_flags)
    runs = {}
    for name in names:
        config = gap_rows.configuration(gap_rows.rows()[name], args.data, args.folder)
        config.data.train_size = 10 * config.batch_size
        try:
            runs[name] = step_time.start(experiment.build(config))
            runs[name]()  # compiles
        except ValueError as e:
            say(f"error: {name}: {e}")
            runs.pop(name, None)
    timed = step_time.take_turns(runs, args.repeats)
    path = args.results / args.data / "step_time.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"benchmark": "seconds of one training step", "repeats": args.repeats}
    metrics.write_json(path, about | timed | provenance())
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
