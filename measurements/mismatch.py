"""Measures the gradient mismatch of some methods along their training.

    python -m measurements.mismatch          # half an hour on one core

See `quantnet_jax.analysis.mismatch` for what is measured. A small network on a part of
the bundled images, each method at the learning rate that the study gap_table found.
"""

import math
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks import timing
from configs import default
from quantnet_jax import quantizers
from quantnet_jax.analysis import mismatch
from quantnet_jax.experiments import grid, results
from quantnet_jax.training import experiment

METHODS = (
    *("quantnet", "tanh_sign", "clipped_ste", "binary_ste", "approx_sign", "irnet"),
)
FRACTIONS = (0.0, 1 / 3, 2 / 3, 1.0)
SMALL, LARGE = 0.05, 0.3


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser("measurements.mismatch", __doc__, repeats=2, load=math.inf)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--directions", type=int, default=300)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--epochs", type=float, default=6.0)
    args = parser.parse_args(argv)
    return timing.main(args, argv, measure)


def measure(args) -> dict:
    """Cosines of every method at some fractions of its training."""
    if args.directions < 2 * mismatch.GROUPS:
        least = 2 * mismatch.GROUPS
        raise ValueError(f"--directions={args.directions}, expected at least {least}")
    began, rows = time.monotonic(), {}
    for name in args.methods:
        config = configuration(name, args.epochs)
        rows[name] = along_training(config, args.directions, args.images)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return {
        "network": "small, width 8, bundled images (2,000), batch 64",
        "epochs": args.epochs,
        "directions": args.directions,
        "images": args.images,
        "spreads": {"small": SMALL, "large": LARGE},
        "methods": rows,
        "seconds": time.monotonic() - began,
    }


def configuration(method: str, epochs: float) -> Any:
    """A small network on a part of the bundled images."""
    c = default.get_config()
    c.model = ConfigDict({"name": "small", "width": 8})
    c.data.train_size, c.data.test_size = 2000, 500
    c.epochs = epochs
    c.quantizer.name = method
    c.quantizer[method] = ConfigDict(quantizers.options(method))
    study = grid.load("gap_table")  # of a larger network on the same images
    folder = timing.ROOT / results.FOLDER
    found = grid.choice(study, results.of_study("gap_table", study, folder), method)
    c.weights.learning_rate = found[1] if found else c.weights.learning_rate
    return c


def along_training(config: Any, directions: int, images: int) -> dict[str, Any]:
    """Trains one method and measures it along the way.

    Returns:
      {'rate', 'loss' ('soft' or 'hard'), 'points': [{'fraction', 'step', 'own_small',
      'own_large', 'hard_large': {'cosine', 'error'}}]}; for straight-through members
      'hard_large' is 'own_large'.
    """
    exp = experiment.build(config, jax.local_devices()[:1])
    wanted = {round(f * exp.steps): f for f in FRACTIONS}
    own, hard = mismatch.make_losses(exp, images)
    gradient = jax.jit(jax.grad(own))
    straight = quantizers.MEMBERS[config.quantizer.name].forward == "hard"

    def at(state, step):
        host = jax.device_get(state)
        rest = (host.params, host.batch_stats, host.step)
        kernels = mismatch.quantized(exp, host.params["model"])
        g = jax.device_get(gradient(kernels, *rest))

        def estimate(loss, spread):
            value = lambda kernels: float(loss(kernels, *rest))
            return mismatch.cosine(value, kernels, g, spread, directions, seed=step)

        point = {"fraction": wanted[step], "step": step}
        point["own_small"] = estimate(own, SMALL)
        point["own_large"] = large = estimate(own, LARGE)
        return point | {"hard_large": large if straight else estimate(hard, LARGE)}

    state, batches, points = exp.state, exp.train_batches(0), []
    for step in range(exp.steps + 1):
        if step in wanted:
            points.append(at(state, step))
        if step < exp.steps:
            state, _ = exp.train_step(state, exp.train_data, next(batches))
    kernels = mismatch.quantized(exp, state.params["model"])
    return {
        "rate": float(config.weights.learning_rate),
        "loss": "hard" if straight else "soft",
        "weights": sum(k.size for k in kernels.values()),
        "points": points,
    }


if __name__ == "__main__":
    sys.exit(main())
