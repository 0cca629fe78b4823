"""Times import, load and first prediction of an exported network, in new processes.

    python -m benchmarks.first_prediction

ResNet-20 with binary weights, the same with binary activations too (its products are
bit counts), and ResNet-18. A time is that of a whole process: it starts Python, imports
the package, loads the file, compiles, and has the logits of one image. No compiled
program is saved from one process to the next; the files of the packages are read from
memory but for the first time, which is not counted.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from benchmarks import latency, timing
from quantnet_jax import deploy

BAR = 5.0
NETWORKS = {
    "resnet20 W1A32": ("resnet20", {}),
    "resnet20 W1A1": ("resnet20", latency.SIGNS),
    "resnet18 W1A32": ("resnet18", {}),
}
PROGRAM = """
import json, sys, time
times = [time.perf_counter()]
import numpy as np
import quantnet_jax
times.append(time.perf_counter())
predictor = quantnet_jax.load(sys.argv[1])
times.append(time.perf_counter())
outputs = np.asarray(predictor(np.zeros((1, *predictor.spec.shape), np.uint8)))
times.append(time.perf_counter())
assert outputs.shape[0] == 1 and np.isfinite(outputs).all()
parts = [b - a for a, b in zip(times, times[1:])]
print(json.dumps(dict(zip(("import", "load", "predict"), parts))))
"""


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser("benchmarks.first_prediction", __doc__, repeats=10, load=0.3)
    args = parser.parse_args(argv)
    return timing.main(args, argv, measure)


def measure(args) -> dict:
    """Every network, one after the other."""
    rows = {name: processes(*NETWORKS[name], args.repeats) for name in NETWORKS}
    for name, row in rows.items():
        word = "meets" if row["median"] <= BAR else "misses"
        print(f"{name:16s}{row['median']:6.2f} s: {word} the bar of {BAR:g} s")
    return {"bar": BAR, "networks": rows}


def processes(network: str, options: dict, repeats: int) -> dict:
    """Median and spread of whole processes, and the medians of their parts."""
    predictor, parts = latency.make(network, **options), []
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        popcount = bool(predictor.countable)
        spec = dataclasses.replace(predictor.spec, popcount=popcount)
        deploy.save(path, predictor.params, spec)
        command = [sys.executable, "-c", PROGRAM, str(path)]
        options = {"cwd": timing.ROOT, "env": environment, "check": True, "text": True}

        def call():
            done = subprocess.run(command, stdout=subprocess.PIPE, **options)
            parts.append(json.loads(done.stdout))

        seconds = timing.interleaved({"float": call}, repeats, warm_up=1)
    row = timing.summary(seconds, "float")["float"]
    del row["over_float"], row["over_float_paired"]
    medians = {k: statistics.median(x[k] for x in parts[1:]) for k in parts[0]}
    return row | {"parts": medians}


if __name__ == "__main__":
    sys.exit(main())
