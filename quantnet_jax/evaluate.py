"""Evaluates a checkpoint: soft, hard, hard with re-estimated BatchNorm, gap by layer.

    python -m quantnet_jax.evaluate DIR [--step=latest|best|N] [--out=FILE]
        [--data=NAME]

Reproduces the numbers that training printed at that step. --data evaluates on the test
images of another dataset that has the same training images.
"""

import sys
from typing import TYPE_CHECKING

import numpy as np

from quantnet_jax.common import command
from quantnet_jax.common.files import check_place
from quantnet_jax.distributed import runners
from quantnet_jax.logging import records
from quantnet_jax.logging.progress import summary

if TYPE_CHECKING:
    from quantnet_jax.training.experiment import Experiment
    from quantnet_jax.training.state import TrainState


def evaluate(workdir: str, step: str | int = "latest", data: str = "") -> dict:
    """Evaluates one checkpoint of a run.

    Args:
      workdir: folder of the run.
      step: 'latest', 'best' (by the hard weights) or a number.
      data: name of a dataset in the folder of that of the run, with the same training
        images, such as 'bsd100_x2' after 'superres_x2'; '' for that of the run.

    Returns:
      {'step', 'method', 'seed', 'soft', 'hard', 'hard_bn', 'gap', ..., 'layers'}; see
      `quantnet_jax.evaluation.gap`.

    Raises:
      FileNotFoundError: no such run or checkpoint.
      ValueError: the run cannot be evaluated with this version.
    """
    return evaluate_state(*restore(workdir, step, data))


def evaluate_state(exp: "Experiment", state: "TrainState", step: int) -> dict:
    """What `evaluate` returns, of what `restore` does."""
    scores, layers, _ = exp.evaluate(state)
    return {
        "step": step,
        "method": exp.config.quantizer.name,
        "seed": exp.config.seed,
        "metric": exp.task.primary._asdict(),
        **scores,
        "layers": layers,
    }


def restore(
    workdir: str, step: str | int = "latest", data: str = ""
) -> "tuple[Experiment, TrainState, int]":
    """(experiment, its state at a checkpoint, the step of that); as for `evaluate`.

    The optimizer, which may be larger than all else, is not read: its part of the
    state is that of the start.
    """
    # Here: without the extra `train` the command says so in one line.
    from quantnet_jax import config as config_lib
    from quantnet_jax.checkpoint import manager
    from quantnet_jax.training import experiment

    # A teacher is for training only, and may be gone.
    config = config_lib.untaught(config_lib.load(workdir))
    # The devices here may be others than those of training.
    devices = runners.dividing_devices(config.batch_size, config.eval_batch_size)
    config.accumulation_steps = 1
    if len(devices) % config.fsdp:
        config.fsdp = 1
    exp = experiment.Experiment(config, devices)
    if data:
        statistics = exp.feed.mean, exp.feed.std
        config.data.name = data
        exp = experiment.Experiment(config, devices)
        if statistics != (exp.feed.mean, exp.feed.std):
            raise ValueError(
                f"data={data!r} is normalized otherwise than the images of training, "
                "expected a dataset with the same ones"
            )
    higher = exp.task.primary.higher_is_better
    with manager.Checkpoints(
        workdir, higher_is_better=higher, read_only=True
    ) as checkpoints:
        wanted = {k: getattr(exp.state, k) for k in ("params", "batch_stats", "ema")}
        restored = checkpoints.restore(wanted, step)
    saved = restored.state | {"step": np.asarray(restored.step, np.int32)}
    return exp, exp.state._replace(**exp.runner.place(saved)), restored.step


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command.Parser("evaluate", __doc__)
    parser.add_subject("workdir", "DIR", "folder of the run")
    parser.add_argument(
        "--step", default="latest", type=command.step, metavar="STEP",
        help="'latest', 'best' or a number of steps",
    )  # fmt: skip
    parser.add_argument("--data", default="", help="test images of another dataset")
    parser.add_argument("--out", help="also write the numbers to this JSON file")

    def work(args):
        if args.out:
            check_place(args.out)
        with command.phase(f"reading {args.workdir} and its data"):
            restored = restore(args.workdir, args.step, args.data)
        count = f"{restored[0].test_size:,} examples"
        with command.phase(f"compiling, then evaluating on {count}"):
            result = evaluate_state(*restored)
        print(f"{args.workdir}, step {result['step']}")
        print(summary(result))
        if args.out:
            records.write_json(args.out, result)

    return command.run(parser, work, argv)


if __name__ == "__main__":
    sys.exit(main())
