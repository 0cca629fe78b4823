"""Times the binary convolutions of benchmarks/popcount.py in the Larq Compute Engine.

    python -m venv lce
    lce/bin/pip install larq==0.14.0 larq-compute-engine==0.16.0 tensorflow-cpu==2.15.1
    lce/bin/python benchmarks/popcount_lce.py     # writes results/popcount_lce.json

It needs TensorFlow, so it has an environment of its own and imports nothing of this
project. The same work: float activations in, their signs packed, a 3x3 convolution with
binary weights and zero padding, float sums out; one thread on one core. The output must
equal TensorFlow's convolution of the signs. The engine is made for ARM: its authors
say of its x86 kernels that they are not tuned.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import shlex
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":  # before TensorFlow counts the cores
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import larq  # noqa: E402
import larq_compute_engine as lce  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from larq_compute_engine.tflite.python.interpreter import Interpreter  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHAPES = {
    "56x64": (56, 64),
    "28x128": (28, 128),
    "14x256": (14, 256),
    "7x512": (7, 512),
}
KERNELS = {"default": {}, "indirect": {"use_indirect_bgemm": True}}
WARM_UP = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50, help="rounds")
    parser.add_argument(
        "--out", default=str(ROOT / "results" / "popcount_lce.json"), help="JSON file"
    )
    args = parser.parse_args()
    load = {"before": os.getloadavg()}
    rows = {name: measure(*shape, args.repeats) for name, shape in SHAPES.items()}
    packages = ("larq", "larq-compute-engine", "tensorflow-cpu", "numpy")
    result = {
        "benchmark": "seconds of one binary 3x3 convolution in the Larq Compute Engine",
        "command": shlex.join(["python", "benchmarks/popcount_lce.py", *sys.argv[1:]]),
        "repeats": args.repeats,
        "warm_up": WARM_UP,
        "shapes": rows,
        "threads": 1,
        "cpu": cpu(),
        "load": load | {"after": os.getloadavg()},
        "versions": {x: importlib.metadata.version(x) for x in packages},
    }
    pathlib.Path(args.out).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(rows, indent=2))
    return 0


def cpu() -> str | None:
    """Name of the processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    names = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else None


def measure(pixels: int, channels: int, repeats: int) -> dict:
    """Times of the faster one of the engine's kernels."""
    inputs = tf.keras.Input((pixels, pixels, channels), batch_size=1)
    layer = larq.layers.QuantConv2D(
        channels,
        3,
        padding="same",
        use_bias=False,
        input_quantizer="ste_sign",
        kernel_quantizer="ste_sign",
        kernel_constraint="weight_clip",
    )
    model = tf.keras.Model(inputs, layer(inputs))
    packed = lce.convert_keras_model(model)
    x = np.random.default_rng(0).normal(size=(1, pixels, pixels, channels))
    x = x.astype(np.float32)
    signs = [np.where(a >= 0, 1, -1).astype(np.float32) for a in (x, layer.kernel)]
    expected = tf.nn.conv2d(*signs, strides=1, padding="SAME").numpy()
    rows = {}
    for name, options in KERNELS.items():
        engine = Interpreter(packed, num_threads=1, **options)
        if not (engine.predict(x) == expected).all():
            raise ValueError(f"{name}: not the convolution of the signs")
        seconds = []
        for turn in range(-WARM_UP, repeats):
            began = time.perf_counter()
            engine.predict(x)
            if turn >= 0:
                seconds.append(time.perf_counter() - began)
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        rows[name] = {
            "median": median,
            "quartiles": [low, high],
            "fastest": min(seconds),
        }
    best = min(rows, key=lambda name: rows[name]["median"])
    return rows[best] | {"kernel": best, "kernels": rows}


if __name__ == "__main__":
    sys.exit(main())
