"""Initializers, architectures, seeds: what can be quantized after training?

    python -m measurements.initialization          # half an hour on one core

Small networks on a part of the bundled images. Weights: per tensor, largest |w|, round
to nearest, every kernel; 1 bit: mean squared error. Activations: 8 bits, largest, at
the inputs of inner convolutions. BatchNorm is recalibrated.
"""

import functools
import itertools
import math
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from quantnet_jax import activations, data, models, posttrain
from quantnet_jax.analysis import initialization as study
from quantnet_jax.posttrain.sites import calibrate_sites
from quantnet_jax.trees import paths
from quantnet_jax.trees.tree import Rule, dequantize_tree

MODELS = {
    "resnet8": {"name": "resnet8", "width": 8},
    "resnet20": {"name": "resnet20", "width": 8},
    "plain": {"name": "small", "width": 16},
    "mobilenet": {"name": "mobilenet", "width": 8},
}
BATCH, RATE = 50, 0.1
WIDTHS: dict[str, tuple[Any, int]] = {
    "float": (None, 0),
    "w8a8": (posttrain.rtn(bits=8, scalars=(1.0,), per="tensor"), 8),
    "w4a8": (posttrain.rtn(bits=4, scalars=(1.0,), per="tensor"), 8),
    "w1": (posttrain.rtn(bits=1, per="tensor"), 0),
}


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser(
        "measurements.initialization", __doc__, repeats=2, load=math.inf
    )
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    return timing.main(args, argv, measure)


def measure(args) -> dict:
    """Accuracies and weight statistics of every network."""
    found = data.load("bundled")
    mean, std = data.normalization(found)
    ready = lambda x: jnp.asarray((x / 255.0 - mean) / std, jnp.float32)
    train = ready(found.train_image[: args.images]), found.train_label[: args.images]
    test = (
        ready(found.test_image[: args.test_images]),
        np.asarray(found.test_label[: args.test_images]),
    )
    networks = []
    for name in args.models:
        lab = Lab(MODELS[name], train, test, args.epochs)
        grid = itertools.product(study.INITIALIZERS, range(args.seeds))
        for initializer, seed in grid:
            began = time.monotonic()
            row = {"model": name, "initializer": initializer, "seed": seed}
            networks.append(row | lab.measure(study.INITIALIZERS[initializer], seed))
            shown = {k: v for k, v in networks[-1].items() if k != "layers"}
            print(shown, f"{time.monotonic() - began:.1f} s", flush=True)
    measured = study.correlations(networks, [x for x in WIDTHS if x != "float"])
    return {
        "images": args.images,
        "epochs": args.epochs,
        "networks": networks,
        "correlations": {", ".join(key): value for key, value in measured.items()},
    }


class Lab:
    """One architecture: everything that is compiled once for all its networks."""

    def __init__(self, options: dict, train: Any, test: Any, epochs: int):
        clip = activations.learned_clip(bits=8)
        make = functools.partial(models.create, outputs=10, **options)
        self.model, self.quantized = make(), make(act_quant=clip)
        self.train, self.test, self.epochs = train, test, epochs
        self.step = jax.jit(self._step)
        self.apply = {
            False: lambda v, x: self.model.apply(v, x, train=False),
            True: lambda v, x: self.quantized.apply(v, x, train=False),
        }
        self.logits = {k: jax.jit(fn) for k, fn in self.apply.items()}
        self.statistics = {
            False: self._statistics(self.model), True: self._statistics(self.quantized)
        }  # fmt: skip
        sample = train[0][:BATCH]
        self.start = {
            False: jax.jit(self.model.init)(jax.random.key(0), sample),
            True: jax.jit(self.quantized.init)(jax.random.key(0), sample),
        }

    def _step(self, params, stats, velocity, x, y, rate):
        def loss(p):
            out, new = self.model.apply(
                {"params": p, "batch_stats": stats}, x, train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            chosen = jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1)
            return -jnp.mean(chosen), new["batch_stats"]

        (_, stats), g = jax.value_and_grad(loss, has_aux=True)(params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, g)
        params = jax.tree.map(lambda p, v: p - rate * v, params, velocity)
        return params, stats, velocity

    def _statistics(self, model):
        model = model.clone(momentum=0.0)
        return jax.jit(
            lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[1][
                "batch_stats"
            ]
        )

    def measure(self, initializer, seed: int) -> dict:
        """Trains one network and measures it."""
        x, y = self.train
        start, key = self.start[False], jax.random.key(seed)
        params = study.initialize(start["params"], initializer, key)
        stats, velocity = start["batch_stats"], jax.tree.map(jnp.zeros_like, params)
        rng, per_epoch = np.random.default_rng(seed), len(y) // BATCH
        total = self.epochs * per_epoch
        for number in range(total):
            if number % per_epoch == 0:
                order = rng.permutation(len(y))
            rows = order[number % per_epoch * BATCH :][:BATCH]
            rate = RATE * 0.5 * (1 + math.cos(math.pi * number / total))
            params, stats, velocity = self.step(
                params, stats, velocity, x[rows], jnp.asarray(y[rows]), rate
            )
        some, accuracies = x[: 4 * BATCH], {}
        for name, (method, act_bits) in WIDTHS.items():
            made = (
                posttrain.posttrain(
                    self.apply[False],
                    {"params": params, "batch_stats": stats},
                    *([some[:BATCH]], [Rule(".*kernel", method)]),
                    report=lambda line: None,
                )
                if method
                else {"params": params, "batch_stats": stats}
            )
            floats, acts = dequantize_tree(made), bool(act_bits)
            if acts:
                floats = paths.replace(self.start[True], paths.flatten(floats))
                floats = calibrate_sites(self.apply[True], floats, [some[:BATCH]])
            floats = {**floats, "batch_stats": self.statistics[acts](floats, some)}
            accuracies[name] = self.score(floats, acts)
        layers = {
            path: study.layer_statistics(np.asarray(leaf))
            for path, leaf in paths.flatten(params).items()
            if path.endswith("kernel")
        }
        return {**accuracies, "layers": layers}

    def score(self, variables, quantized: bool) -> float:
        """Accuracy on the test images."""
        x, y = self.test
        found = [
            jnp.argmax(self.logits[quantized](variables, x[i : i + 250]), -1)
            for i in range(0, len(y), 250)
        ]
        return float(np.mean(np.concatenate(found) == y))


if __name__ == "__main__":
    sys.exit(main())
