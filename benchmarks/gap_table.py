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
import os
import pathlib
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as a script it finds only benchmarks/

from benchmarks import gap_page, gap_rows, runs, step_time  # noqa: E402
from benchmarks.gap_rows import FLOAT  # noqa: E402
from quantnet_jax.logging import records  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402
from quantnet_jax.training import experiment  # noqa: E402

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
    waiting = list(args.only or gap_rows.rows())

    def take(codes, running):
        if not waiting:
            return None
        name = waiting.pop(0)
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), "row"]
        command += [f"--data={args.data}", f"--folder={args.folder}"]
        command += [f"--results={args.results.resolve()}"]
        command += [f"--epochs={args.epochs}", f"--search-epochs={args.search_epochs}"]
        return name, [*command, "--only", name]

    with tempfile.TemporaryDirectory() as cache:
        # Evaluation is the same program in every run of a row.
        env = runs.environment(cache, gap_rows.SETTINGS[args.data].xla_flags)
        codes = runs.run_processes(take, args.jobs, env)
    failed = [name for name, code in codes.items() if code]
    if failed:
        runs.say(f"error: not complete: {', '.join(failed)}")
    return 1 if failed else 0


def run_row(name: str, args: argparse.Namespace) -> int:
    """The search of one row, then its final runs; 0 if all of them have a result."""
    results = args.results / args.data
    validation_size = gap_rows.SETTINGS[args.data].validation_size
    search = {
        "epochs": args.search_epochs,
        "data.validation_size": validation_size,
        "seed": 0,
    }
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
    """One run, unless it has its result; whether there is one of these settings now."""
    config = gap_rows.configuration(gap_rows.rows()[name], args.data, args.folder)
    config.update_from_flattened_dict(changes)
    config.eval_every = config.epochs
    return runs.run_once(config, path, {"row": name})


# Step times ---------------------------------------------------------------------------
def measure(args: argparse.Namespace) -> None:
    """Writes the step times of all rows, in turns on the same few images."""
    names = [FLOAT, *(n for n in args.only or gap_rows.rows() if n != FLOAT)]
    os.environ.setdefault("XLA_FLAGS", gap_rows.SETTINGS[args.data].xla_flags)
    found = {}
    for name in names:
        config = gap_rows.configuration(gap_rows.rows()[name], args.data, args.folder)
        config.data.train_size = 10 * config.batch_size
        try:
            found[name] = step_time.start(experiment.build(config))
            found[name]()  # compiles
        except ValueError as e:
            runs.say(f"error: {name}: {e}")
            found.pop(name, None)
    timed = step_time.take_turns(found, args.repeats)
    path = args.results / args.data / "step_time.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"benchmark": "seconds of one training step", "repeats": args.repeats}
    records.write_json(path, about | timed | provenance())
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
