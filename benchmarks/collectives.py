"""Counts what one training step sends between devices, in the compiled program.

    python benchmarks/collectives.py        # writes results/collectives.json

Programs are compiled for 8 devices of a CPU, and not run. How many bytes are reduced
depends on the network alone: not on the batch, on the size of the images or, in data
parallelism, on the number of devices.
"""

import argparse
import os
import pathlib
import shlex
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # `python benchmarks/collectives.py` finds only its folder
DEVICES = 8
if __name__ == "__main__":  # before JAX looks at it
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Code for CPUs is not run, so it need not be good.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={DEVICES} "
        "--xla_backend_optimization_level=0"
    )

import jax  # noqa: E402

from configs import cifar10_resnet20, imagenet_resnet18  # noqa: E402
from quantnet_jax.analysis.collectives import collectives, expected_bytes, volume  # noqa: E402
from quantnet_jax.logging import records  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402
from quantnet_jax.training import experiment  # noqa: E402

# Network -> (configuration, classes, height and width of its images).
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
    parser = argparse.ArgumentParser(
        prog="python benchmarks/collectives.py",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--places", nargs="+", default=list(PLACES))
    parser.add_argument(
        "--out", default=str(ROOT / "results" / "collectives.json"), help="JSON file"
    )
    args = parser.parse_args(argv)
    for option, known in (("networks", NETWORKS), ("places", PLACES)):
        if unknown := set(getattr(args, option)) - set(known):
            expected = ", ".join(map(repr, known))
            print(
                f"error: --{option} {unknown.pop()!r}, expected some of {expected}",
                file=sys.stderr,
            )
            return 2
    words = sys.argv[1:] if argv is None else argv
    networks = {}
    for name in args.networks:
        networks[name] = {}
        for place in args.places:
            networks[name][place] = row = measure(name, place)
            print(f"{name}, {place}: {row['bytes']} ({row['over_expected']:.4f})")
    result = {
        "benchmark": "bytes that one training step sends between devices",
        "command": shlex.join(["python", "benchmarks/collectives.py", *words]),
        "devices_compiled_for": len(jax.devices()),
        "networks": networks,
        **provenance(),
    }
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    records.write_json(args.out, result)
    print(f"\nwrote {args.out}")
    return 0


def measure(name: str, place: str) -> dict:
    """Bytes, operations and the expectation, for one network and one runner."""
    get_config, classes, size = NETWORKS[name]
    config = settings(get_config(), classes)
    config.update(PLACES[place])
    exp = experiment.build(config)
    return row(exp, (size, size, 3))


def settings(config, classes: int):
    """The same training on a few small made-up images."""
    config.batch_size = config.eval_batch_size = len(jax.devices())
    config.data.name, config.data.folder, config.data.workers = "synthetic", "", 0
    config.data.classes, config.data.image_size = classes, 32
    config.data.train_size = config.data.test_size = max(64, classes)
    config.export = False
    return config


def row(exp: experiment.Experiment, image: tuple[int, ...]) -> dict:
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
        "scalars": sum(x.endswith("[]") for one in found for x in one.arrays),
        "types": by_type(found),
        "expected": expected,
        "over_expected": reduced / sum(expected.values()),
        "model_gradients": expected_bytes(exp.state.params["model"], {})["gradients"],
        "state_on_a_device": sum(x.addressable_shards[0].data.nbytes for x in state),
        "state": sum(x.nbytes for x in state),
    }


def by_type(found) -> dict[str, int]:
    """How many arrays of each type are sent."""
    names = [x.split("[")[0] for one in found for x in one.arrays]
    return {name: names.count(name) for name in sorted(set(names))}


if __name__ == "__main__":
    sys.exit(main())
