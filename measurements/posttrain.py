r"""Compares post-training methods on float runs, bit width by bit width.

    python -m measurements.posttrain --runs runs/float0 runs/float1 runs/float2

The runs are those of three seeds of

    python train.py --config=configs/cifar100_small.py:full --workdir=runs/float0 \
        --config.quantizer.name=identity --config.weights.learning_rate=0.2 \
        --config.seed=0

Inner layers only; calibrates on a fourth of the places of some training images; scores
with recalibrated BatchNorm. One line of results/posttrain.jsonl for each run, method
and width, the most wanted first; what is there already is not computed again.
"""

import argparse
import pathlib
import shlex
import statistics
import sys
import time
from typing import Any

from benchmarks import timing
from quantnet_jax import evaluate, posttrain
from quantnet_jax.experiments import results
from quantnet_jax.logging.provenance import provenance
from quantnet_jax.posttrain import run as runs
from quantnet_jax.trees.tree import Rule

INNER = r"params/(?!(stem|head)/)(.+/)?kernel"
POSITIONS = 0.25
METHODS: dict[str, Any] = {
    "rtn": posttrain.rtn,
    "GPFQ": posttrain.gpfq,
    "error feedback": posttrain.error_feedback,
    "AUSN, adaptive": posttrain.ausn,
    "AUSN, fixed": lambda bits: posttrain.ausn(bits=bits, adaptive=False),
    "uniform": posttrain.uniform,
    "power of two": posttrain.power_of_two,
    "APoT": posttrain.apot,
    "GPFQ, sparse": lambda bits: posttrain.gpfq(bits=bits, mode="hard", threshold=0.75),
    "BiTAT": lambda bits: posttrain.bitat(),
}
ORDER = (
    *(("GPFQ", 3), ("GPFQ", 4), ("rtn", 4), ("AUSN, adaptive", 4), ("uniform", 4)),
    *(("power of two", 4), ("rtn", 3), ("error feedback", 3), ("BiTAT", 1)),
    *(("rtn", 1), ("error feedback", 4), ("GPFQ", 2), ("rtn", 2), ("APoT", 4)),
    *(("AUSN, fixed", 4), ("GPFQ, sparse", 4), ("AUSN, adaptive", 3), ("uniform", 3)),
    *(("power of two", 3), ("error feedback", 2), ("GPFQ", 5), ("rtn", 5)),
)
ACTIVATIONS: tuple[tuple[int, int, float], ...] = (
    (8, 8, 1.0),
    (4, 8, 1.0),
    (4, 4, 0.999),
)
"""(bits of weights, bits of activations, quantile)."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m measurements.posttrain",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument("--runs", nargs="+", required=True, help="folders of runs")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument(
        "--results", type=pathlib.Path, default=timing.ROOT / results.FOLDER
    )
    args = parser.parse_args(argv)
    restored = [evaluate.restore(workdir)[:2] for workdir in args.runs]
    # One network for all: the program that scores the first run scores the others.
    lab = Lab(runs.of_state(*restored[0], args.images))
    about = {
        "benchmark": "posttrain",
        "images": args.images,
        "positions": POSITIONS,
        "command": shlex.join(
            ["python", "-m", "measurements.posttrain", *(argv or sys.argv[1:])]
        ),
        **provenance(),
    }
    networks = [runs.of_state(*each, args.images) for each in restored]
    known = [
        (r["seed"], r["method"], r["bits"], r["activation_bits"])
        for r in results.read("posttrain", args.results)
    ]
    floats = [("float", 32, 0, 1.0)]
    weights = [(name, bits, 0, 1.0) for name, bits in ORDER]
    both = [("GPFQ" if b < 8 else "rtn", b, a, q) for b, a, q in ACTIVATIONS]
    for name, bits, act_bits, quantile in floats + weights + both:
        for network in networks:
            config = network.exp.config
            if (config.seed, name, bits, act_bits) in known:
                continue
            row = lab.attempt(network, name, bits, act_bits, quantile)
            row |= {
                "seed": config.seed,
                "network": f"{config.model.name}, width {config.model.width}",
                "data": f"{config.data.name}, {config.data.classes} classes",
                "epochs": config.epochs,
            }
            results.append("posttrain", row | about, args.results)
            print({k: row[k] for k in ("method", "bits", "seed", "score")}, flush=True)
    return 0


class Lab:
    """Scores any weights of one architecture.

    Args:
      run: any of the runs; its weights are not looked at.
    """

    def __init__(self, run: runs.Run):
        self.run = run
        self.apply = lambda v, x: run.exp.model.apply(v, x, train=False)

    def attempt(
        self, network: runs.Run, name: str, bits: int, act_bits: int, quantile: float
    ) -> dict:
        """One method on one network."""
        began, errors, run = time.monotonic(), [], self.run
        made, solver = network.params, None
        if name != "float":
            solver = METHODS[name](bits=bits)
            made = posttrain.posttrain(
                self.apply,
                {"params": network.params, "batch_stats": network.batch_stats},
                run.batches,
                [Rule(INNER, solver)],
                positions=POSITIONS,
                report=lambda line: errors.append(line.error),
            )["params"]
        if act_bits:
            run = network.with_activations(made, act_bits, quantile)
            made = run.params
        stats = run.recalibrated(made)
        found = [e for e in errors if e is not None]
        return {
            "method": name,
            "bits": bits,
            "activation_bits": act_bits,
            "quantile": quantile,
            "solver": repr(solver),
            "score": run.score(run.folded(made, stats)),
            "error": statistics.mean(found) if found else None,
            "seconds": time.monotonic() - began,
        }


if __name__ == "__main__":
    sys.exit(main())
