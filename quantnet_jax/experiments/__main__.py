"""Runs studies, or prints their tables.

    python -m quantnet_jax.experiments run STUDY --folder=DATA

Run it in the root of the repository, where `sweeps/` and `train.py` are. The same
command resumes. `--plan` lists the runs and what a budget would bring, `table` prints
the table of what there is.

    python -m quantnet_jax.experiments lease --folder=DATA --seconds=600

The second command runs what a short loan of an accelerator is worth most for: numerics,
step times and memory, then the studies `b200` and `a56`. To rehearse it anywhere:
--scale=0.001 with another --results and --work.
"""

import argparse
import functools
import logging
import pathlib
import sys

from quantnet_jax.common import command
from quantnet_jax.experiments import grid, lease, pieces, queue, results, tables
from quantnet_jax.experiments.study import scaled


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 1 if something is missing, 2 for wrong arguments."""
    parser = command.Parser("experiments", __doc__)
    parser.add_argument("action", choices=("run", "one", "table", "lease"))
    parser.add_argument("study", nargs="?", default="", help="file of sweeps/")
    parser.add_argument("--folder", default="", help="with the files of the dataset")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows")
    parser.add_argument("--jobs", type=int, default=0, help="pieces at a time")
    parser.add_argument("--seconds", type=float, help="budget: begin nothing longer")
    parser.add_argument("--scale", type=float, default=1.0, help="of all epochs")
    parser.add_argument(
        "--assume",
        type=float,
        default=60.0,
        help="seconds of an unknown run, of 'lease'",
    )
    parser.add_argument("--plan", action="store_true", help="of 'run': run nothing")
    parser.add_argument("--dtype", default="", help="of the network")
    parser.add_argument("--run", default="", help="of 'one': label of the piece")
    parser.add_argument("--results", type=pathlib.Path, default=results.FOLDER)
    parser.add_argument(
        "--work", type=pathlib.Path, default=pathlib.Path("runs"), help="for the runs"
    )
    return command.run(parser, functools.partial(_work, parser), argv)


def _work(parser: command.Parser, args: argparse.Namespace) -> int:
    # Orbax has a word on every float network.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if "." not in sys.path:
        sys.path.insert(0, ".")
    try:
        known = grid.names()
    except ImportError as e:
        parser.error(f"{e}: run it in the root of the repository")
    lent = args.action == "lease"
    if not 0 < args.scale <= 1 or (args.scale != 1 and args.results == results.FOLDER):
        parser.error(
            f"--scale={args.scale:g}: expected a number up to 1, and another --results "
            "for a rehearsal"
        )
    if lent:
        if args.study or args.seconds is None or args.seconds <= lease.RESERVE:
            parser.error(
                f"lease: expected no study, and --seconds above {lease.RESERVE:g}"
            )
        args.study = lease.STUDIES[0]
    if args.study not in known:
        parser.error(f"study {args.study!r}: expected one of {', '.join(known)}")
    study = scaled(grid.load(args.study), args.scale)
    for row in args.only:
        if row not in study.rows:
            parser.error(f"--only {row!r}: expected some of {', '.join(study.rows)}")
    if args.jobs < 0 or (args.seconds is not None and args.seconds <= 0):
        parser.error("--jobs and --seconds: expected positive numbers")
    options = pieces.Options(
        args.folder, args.results, args.work, args.dtype, tuple(args.only), args.jobs,
        args.seconds, scale=args.scale,
    )  # fmt: skip
    records = results.of_study(args.study, study, args.results)
    if args.action == "table":
        print(tables.section(args.study, study, records))
        return 0
    if args.action == "one":
        runs = {r.label: r for r in grid.plan(study, records)}
        if args.run not in runs or runs[args.run].initialization is None:
            parser.error(
                f"--run={args.run}: no such run, or not decided yet; see --plan"
            )
        return (
            0 if pieces.train_piece(args.study, study, runs[args.run], options) else 1
        )
    backend, device = pieces.machine()
    options = options._replace(device=device)
    if backend != "cpu" and not options.dtype:
        options = options._replace(dtype="bfloat16")  # what accelerators are fast at
    if lent:
        if args.plan:
            print("\n".join(lease.plan(options, args.assume)))
            return 0
        return lease.run(options, backend)
    if args.plan:
        print("\n".join(queue.listing(args.study, study, options)))
        return 0
    return queue.run(args.study, study, options)


if __name__ == "__main__":
    sys.exit(main())
