"""Measures training on this machine's accelerator; counts what needs none.

    python -m benchmarks.performance             # all of it, on one GPU or TPU chip
    python -m benchmarks.performance --compile   # programs alone, on any machine
    python -m benchmarks.performance --count     # operations as lowered

Each point of the grid trains random images in memory as `train.py` does there: the
network in bfloat16, many steps a dispatch, no compilation in the times. Float and
QuantNet are interleaved; numbers are medians. The time of a long run is the difference
of two short ones, evaluations included, so that what each run does once is not in it.
"""

import math
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import timing
from configs import cifar100_resnet20
from quantnet_jax import config as config_lib
from quantnet_jax import models
from quantnet_jax import run as train
from quantnet_jax.analysis import cost
from quantnet_jax.distributed import hosts
from quantnet_jax.logging import records
from quantnet_jax.training import experiment
from quantnet_jax.trees import macs

METHODS = ("identity", "quantnet", "binary_ste")
CHUNK = 50
EPOCHS = (10, 30)
"""Of the two short runs; both are evaluated every 10 epochs."""
CLASSES = 100
WIDTH = 64
POINT = ("model", "pixels", "batch", "width")
# Width: of the sub-network. One of them grows at a time.
GRID = (
    *((name, 32, 128, WIDTH) for name in ("resnet20", "resnet56", "resnet110")),
    *((name, 224, 128, WIDTH) for name in ("resnet18", "resnet50")),
    *(("resnet20", 32, batch, WIDTH) for batch in (32, 512, 2048)),
    *(("resnet20", 32, 128, width) for width in (8, 32, 256)),
)
FIRST = ("resnet20", 32, 512, WIDTH)  # what the goals are of
COMPILED = (GRID[0], FIRST)


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser("benchmarks.performance", __doc__, repeats=10, load=math.inf)
    parser.add_argument("--compile", action="store_true", help="measure no time")
    parser.add_argument("--count", action="store_true", help="compile nothing either")
    parser.add_argument("--points", type=int, default=0, help="the first ones alone")
    args = parser.parse_args(argv)
    file = "cost" if args.count else "compiled" if args.compile else ""
    hosts.enable_compilation_cache()
    return timing.main(args, argv, measure, file)


def measure(args) -> dict:
    """The record of one of the three."""
    if args.count:
        return {"rows": [counted(*point) for point in GRID]}
    if args.compile:
        points = COMPILED[: args.points or None]
        return {"rows": [timed(*point, repeats=0) for point in points]}
    if hosts.backend() == "cpu":
        raise ValueError("there is no accelerator here; --compile needs none")
    points = list(dict.fromkeys((FIRST, *GRID)))[: args.points or None]
    rows = [timed(*point, repeats=args.repeats) for point in points]
    if args.points:
        return {"rows": rows}
    return {"rows": rows, "run": {name: run_seconds(name) for name in METHODS}}


def settings(method: str, model: str, pixels: int, batch: int, width: int) -> Any:
    """The configuration of one program."""
    c = config_lib.base()
    c.epochs = 100.0
    c.batch_size = c.eval_batch_size = batch
    c.data.name = "synthetic"
    c.data.image_size, c.data.classes, c.data.pad = pixels, CLASSES, 4
    c.data.train_size = max(2 * batch, 2 * CLASSES)
    c.model.name = model
    c.runner = "jit"
    c.quantizer.name = method
    c.quantizer.quantnet.width = width
    return c


def timed(*point: Any, repeats: int, chunk: int = CHUNK) -> dict[str, Any]:
    """Memory and operations of float and QuantNet; seconds of a step with `repeats`."""
    row: dict[str, Any] = dict(zip(POINT, point, strict=True))
    count, calls = chunk if repeats else 1, {}
    for method in METHODS:
        c = settings(method, *point)
        if repeats:  # CPUs would convert to float32 and back
            c.dtype, c.steps_per_call, c.log_every = "bfloat16", chunk, chunk
        exp = experiment.build(c, jax.devices()[:1])
        (batches,) = exp.train_batches(0, [count])
        run = exp.train_step if count == 1 else exp.train_chunk
        compiled = run.lower(exp.state, exp.train_data, batches).compile()
        row[method] = cost.facts(compiled)
        calls[method] = dispatch(compiled, exp.state, exp.train_data, batches)
    if repeats:
        found = timing.summary(timing.interleaved(calls, repeats), "identity")
        for method in METHODS:
            row[method]["seconds"] = found[method]["median"] / chunk
        row["over_float"] = found["quantnet"]["over_float_paired"]
    print(records.jsonable(row), flush=True)
    return row


def dispatch(compiled, state, *rest):
    """`call()`: one dispatch to its end, which donates the state of the last one."""
    held = [state]

    def call():
        held[0], _ = jax.block_until_ready(compiled(held[0], *rest))

    return call


def counted(*point: Any) -> dict[str, Any]:
    """FLOPs and bytes of a step as XLA counts them before it optimizes."""
    row: dict[str, Any] = dict(zip(POINT, point, strict=True))
    for method in METHODS:
        c = settings(method, *point)
        exp = experiment.build(c, jax.devices()[:1])
        (batches,) = exp.train_batches(0, [1])
        lowered = exp.train_step.lower(exp.state, exp.train_data, batches)
        found = lowered.cost_analysis()
        row[method] = {
            "flops": found["flops"],
            "bytes": found["bytes accessed"],
            "state_bytes": sum(x.nbytes for x in jax.tree.leaves(exp.state)),
        }
    row["floor_bytes"] = floor_bytes(*point[:3])
    print(records.jsonable(row), flush=True)
    return row


def floor_bytes(model: str, pixels: int, batch: int) -> int:
    """Bytes that a float step has to move at least, if all but convolutions is fused.

    Each convolution reads and writes forward and twice backward, BatchNorm reads its
    output once more each way, in 2 bytes; an input is taken to be as large as the
    output.
    """
    network = models.create(model, outputs=CLASSES)
    image = jax.ShapeDtypeStruct((batch, pixels, pixels, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)

    def apply(params, example):
        image, stats = example
        return network.apply({"params": params, "batch_stats": stats}, image, False)

    example = (image, variables["batch_stats"])
    uses = macs.count(apply, variables["params"], example)
    outputs = sum(math.prod(use.shape) for use in uses if use.macs and use.params)
    return 2 * (3 * 2 + 2) * outputs


def run_seconds(method: str, epochs: tuple[int, int] = EPOCHS) -> float:
    """Seconds of an epoch of the training program, with its share of evaluations."""
    took = []
    for length in epochs:
        c = cifar100_resnet20.get_config()
        c.data.name, c.data.train_size, c.data.test_size = "synthetic", 50_000, 10_000
        c.data.classes = CLASSES
        c.dtype, c.epochs, c.eval_every = "bfloat16", float(length), 10.0
        c.recalibration_batches = 20
        c.quantizer.name = method
        c.report = c.tensorboard = c.export = False
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            train.train(c, pathlib.Path(folder))
            took.append(time.perf_counter() - began)
    return (took[1] - took[0]) / (epochs[1] - epochs[0])


if __name__ == "__main__":
    sys.exit(main())
