"""Evaluates a checkpoint: soft, hard, hard with re-estimated BatchNorm, gap by layer.

    python -m quantnet_jax.evaluate --workdir=DIR [--step=latest|best|N] [--out=FILE]

Reproduces the numbers that training printed at that step.
"""

import argparse
import sys

import numpy as np

from quantnet_jax import config as config_lib
from quantnet_jax.checkpoint import manager
from quantnet_jax.distributed import runners
from quantnet_jax.logging import records
from quantnet_jax.logging.progress import summary
from quantnet_jax.training import experiment
from quantnet_jax.training.state import TrainState


def evaluate(workdir: str, step: str | int = "latest") -> dict:
    """Evaluates one checkpoint of a run.

    Args:
      workdir: folder of the run.
      step: 'latest', 'best' (by the hard weights) or a number.

    Returns:
      {'step', 'method', 'seed', 'soft', 'hard', 'hard_bn', 'gap', ..., 'layers'}; see
      `quantnet_jax.evaluation.gap`.

    Raises:
      FileNotFoundError: no such run or checkpoint.
      ValueError: the run cannot be evaluated with this version.
    """
    exp, state, number = restore(workdir, step)
    scores, layers, _ = exp.evaluate(state)
    return {
        "step": number,
        "method": exp.config.quantizer.name,
        "seed": exp.config.seed,
        "metric": exp.task.primary._asdict(),
        **scores,
        "layers": layers,
    }


def restore(
    workdir: str, step: str | int = "latest"
) -> tuple[experiment.Experiment, TrainState, int]:
    """(experiment, its state at a checkpoint, the step of that); as for `evaluate`.

    The optimizer, which may be larger than all else, is not read: its part of the
    state is that of the start.
    """
    # A teacher is for training only, and may be gone.
    config = config_lib.untaught(config_lib.load(workdir))
    # The devices here may be others than those of training.
    devices = runners.dividing_devices(config.batch_size, config.eval_batch_size)
    config.accumulation_steps = 1
    if len(devices) % config.fsdp:
        config.fsdp = 1
    exp = experiment.Experiment(config, devices)
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
    parser = argparse.ArgumentParser(
        prog="python -m quantnet_jax.evaluate", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument(
        "--step", default="latest", help="'latest', 'best' or a number of steps"
    )
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    args = parser.parse_args(argv)
    step = int(args.step) if args.step.isdigit() else args.step
    try:
        result = evaluate(args.workdir, step)
    except (ValueError, FileNotFoundError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{args.workdir}, step {result['step']}")
    print(summary(result))
    if args.out:
        records.write_json(args.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
