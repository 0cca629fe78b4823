"""Counts what one training step sends between devices, in the compiled program.

    python -m measurements.collectives

Programs are compiled for 8 devices of a CPU, and not run. How many bytes are reduced
depends on the network alone: not on the batch, on the size of the images or, in data
parallelism, on the number of devices.
"""

import math
import os
import sys

if __name__ == "__main__":  # before JAX looks at it
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Code for CPUs is not run, so it need not be good.
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    )

import jax  # noqa: E402

from benchmarks import timing  # noqa: E402
from configs import cifar10_resnet20, imagenet_resnet18  # noqa: E402
from quantnet_jax.analysis.collectives import (  # noqa: E402
    collectives,
    expected_bytes,
    volume,
)
from quantnet_jax.training import experiment  # noqa: E402

# Network -> (configuration, outputs, height and width of its images).
NETWORKS = {
    "ResNet-20 on CIFAR-10": (cifar10_resnet20.get_config, 10, 32),
    "ResNet-18 on ImageNet": (imagenet_resnet18.get_config, 1000, 224),
}
PLACES = {
    "pmap": {"runner": "pmap"},
    "jit": {"runner": "jit"},
    "jit, fsdp=4": {"runner": "jit", "fsdp": 4},
}


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser(
        "measurements.collectives", __doc__, repeats=2, load=math.inf
    )
    return timing.main(parser.parse_args(argv), argv, measure)


def measure(args) -> dict:
    """What every network sends under every runner."""
    del args
    networks = {}
    for name, (get_config, classes, size) in NETWORKS.items():
        networks[name] = {}
        for place, changes in PLACES.items():
            config = settings(get_config(), classes)
            config.update(changes)
            row = sent(experiment.build(config), (size, size, 3))
            print(f"{name}, {place}: {row['bytes']} ({row['over_expected']:.4f})")
            networks[name][place] = row
    return {"devices_compiled_for": len(jax.devices()), "networks": networks}


def settings(config, classes: int):
    """The same training on a few small synthetic images."""
    config.batch_size = config.eval_batch_size = len(jax.devices())
    config.data.name, config.data.folder, config.data.workers = "synthetic", "", 0
    config.data.classes, config.data.image_size = classes, 32
    config.data.train_size = config.data.test_size = max(64, classes)
    config.teacher, config.terms = "", ()
    config.export = False
    return config


def sent(exp: experiment.Experiment, image: tuple[int, ...]) -> dict:
    """What the training step of an experiment sends, for images of a shape."""
    data = dict(exp.train_data)
    old = data["image"]
    data["image"] = jax.ShapeDtypeStruct(
        (len(old), *image), old.dtype, sharding=old.sharding
    )
    batch = next(exp.train_batches(0))
    lowered = exp.train_step.lower(exp.state, data, batch)
    found = collectives(lowered.compile().as_text())
    reduced = volume(found).get("all-reduce", {"bytes": 0})["bytes"]
    expected = expected_bytes(exp.state.params, exp.state.batch_stats)
    state = jax.tree.leaves((exp.state.params, exp.state.opt_state))
    return {
        "bytes": volume(found),
        "expected": expected,
        "over_expected": reduced / sum(expected.values()),
        "state_on_a_device": sum(x.addressable_shards[0].data.nbytes for x in state),
        "state": sum(x.nbytes for x in state),
    }


if __name__ == "__main__":
    sys.exit(main())
