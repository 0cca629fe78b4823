"""Counts what a training step costs, and how the part of the quantizer grows.

    python benchmarks/cost.py            # writes results/cost.json, docs/performance.md
    python benchmarks/cost.py --page     # the document alone

Operations and bytes are those that XLA counts in the program before it is optimized
for a device: they are the same on every machine, and need none. Each network is counted
with QuantNet and with the identity in its place; the difference is what quantization
costs. Seconds are in results/step_time.json.
"""

import argparse
import math
import pathlib
import shlex
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/cost.py` finds only benchmarks/

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from benchmarks import cost_page  # noqa: E402
from quantnet_jax import config as config_lib  # noqa: E402
from quantnet_jax import models  # noqa: E402
from quantnet_jax.deploy import macs  # noqa: E402
from quantnet_jax.logging import records  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402
from quantnet_jax.training import experiment  # noqa: E402

OUT = ROOT / "results" / "cost.json"
PAGE = ROOT / "docs" / "performance.md"
CLASSES = 100
WIDTH = 64  # of the sub-network by default
# (network, pixels, batch, width of the sub-network): one of them grows at a time.
GRID = (
    *((name, 32, 128, WIDTH) for name in ("resnet20", "resnet56", "resnet110")),
    *((name, 224, 128, WIDTH) for name in ("resnet18", "resnet50")),
    *(("resnet20", 32, batch, WIDTH) for batch in (32, 512, 2048)),
    *(("resnet20", 32, 128, width) for width in (8, 32, 256)),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/cost.py", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--page", action="store_true", help="count nothing")
    args = parser.parse_args(argv)
    if not args.page:
        rows = []
        for model, pixels, batch, width in GRID:
            rows.append(count(model, pixels, batch, width))
            print(records.jsonable(rows[-1]), flush=True)
        words = sys.argv[1:] if argv is None else argv
        result = {
            "benchmark": "operations and bytes of one training step, as lowered",
            "classes": CLASSES,
            "rows": rows,
            "command": shlex.join(["python", "benchmarks/cost.py", *words]),
            **provenance(),
        }
        records.write_json(OUT, result)
        print(f"wrote {OUT}")
    PAGE.write_text(cost_page.page(ROOT / "results"))
    print(f"wrote {PAGE}")
    return 0


def count(model: str, pixels: int, batch: int, width: int) -> dict[str, Any]:
    """One row: FLOPs and bytes of a step, float and QuantNet, and what they are of."""
    row: dict[str, Any] = {"model": model, "pixels": pixels}
    row |= {"batch": batch, "width": width}
    for method in ("identity", "quantnet"):
        c = config_lib.base()
        c.epochs = 100.0
        c.batch_size = c.eval_batch_size = batch
        c.data.name = "synthetic"
        c.data.image_size, c.data.classes = pixels, CLASSES
        c.data.train_size = batch
        c.model.name = model
        c.runner = "jit"
        c.quantizer.name = method
        c.quantizer.quantnet.width = width
        exp = experiment.build(c, jax.devices()[:1])
        (batch_,) = exp.train_batches(0, [1])
        lowered = exp.train_step.lower(exp.state, exp.train_data, batch_)
        found = lowered.cost_analysis()
        row[method] = {
            "flops": found["flops"],
            "bytes": found["bytes accessed"],
            "state_bytes": sum(x.nbytes for x in jax.tree.leaves(exp.state)),
        }
    row["floor_bytes"] = floor_bytes(model, pixels, batch)
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


if __name__ == "__main__":
    sys.exit(main())
