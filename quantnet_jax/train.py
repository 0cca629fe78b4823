"""Trains an experiment, and resumes it where it was interrupted.

    python train.py [--config=NAME] [--workdir=DIR] [--config.KEY=VALUE ...]

--config.KEY=VALUE changes an option of the configuration, as in
--config.quantizer.name=binary_ste --config.seed=1. Run again with the same workdir, the
command resumes; on SIGTERM it saves a checkpoint and exits with code 75. The workdir
gets the records, the checkpoints, result.json, report.html and the verified export.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from quantnet_jax.common import command


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    overrides, words = command.overrides(words)
    parser = command.Parser("train", __doc__)
    option = parser.add_argument
    option(
        "--config", default="default", metavar="NAME[:VARIANT]",
        help="a file, or the name of one that ships, such as cifar100_resnet20",
    )  # fmt: skip
    option(
        "--workdir", default="runs/default", metavar="DIR", type=command.folder,
        help="folder of the run",
    )  # fmt: skip
    option(
        "--distributed", action="store_true",
        help="several processes: find them (TPU pod, Slurm, GKE)",
    )  # fmt: skip
    option(
        "--coordinator", default="", metavar="HOST:PORT",
        help="process 0, where they cannot be found",
    )  # fmt: skip
    option("--processes", type=int, default=1, help="with --coordinator: how many")
    option("--process", type=int, default=0, help="with --coordinator: which is this")
    option(
        "--profile", action="store_true",
        help="write a trace of ten steps to WORKDIR/profile",
    )  # fmt: skip

    def work(args):
        _check_processes(parser, args)
        _train(args, overrides)

    return command.run(parser, work, words)


def _check_processes(parser: command.Parser, args: argparse.Namespace) -> None:
    if not args.coordinator:
        if args.processes != 1 or args.process:
            parser.error("--processes and --process need --coordinator=HOST:PORT")
    elif not re.fullmatch(r".+:\d+", args.coordinator):
        parser.error(f"--coordinator={args.coordinator}: expected HOST:PORT")
    elif not 0 <= args.process < args.processes:
        parser.error(
            f"--process={args.process}: expected 0 to {args.processes - 1}, one less "
            "than --processes"
        )


def _train(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    from absl import logging

    from quantnet_jax import config as config_lib
    from quantnet_jax import run
    from quantnet_jax.common.files import as_path
    from quantnet_jax.config import flags
    from quantnet_jax.distributed import hosts
    from quantnet_jax.distributed.preemption import RESUME_ME

    logging.set_verbosity(logging.DEBUG if args.debug else logging.WARNING)
    workdir = as_path(args.workdir)
    config = flags.read(args.config, overrides)
    config_lib.check(config)
    hosts.initialize(args.distributed, args.coordinator, args.processes, args.process)
    with hosts.exit_on_error((RESUME_ME,), args.debug):
        run.train(config, workdir, profile=args.profile)


if __name__ == "__main__":
    sys.exit(main())
