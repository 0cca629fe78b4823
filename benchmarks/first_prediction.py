"""Times import, load and first prediction of an exported network, in new processes.

    python benchmarks/first_prediction.py    # writes results/first_prediction.json

ResNet-20 with binary weights, the same with binary activations too (its products are
bit counts), and ResNet-18. A time is that of a whole process: it starts Python, imports
the package, loads the file, compiles, and has the logits of one image. No compiled
program is kept from one process to the next; the files of the packages are read from
memory but for the first time, which is not counted.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/...` finds only benchmarks/

from benchmarks import latency  # noqa: E402

BAR = 5.0
SIGNS = {"activation": "sign_ste", "bi_real": True, "act": "hardtanh"}
NETWORKS = {
    "resnet20 W1A32": ("resnet20", {}),
    "resnet20 W1A1": ("resnet20", SIGNS),
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
logits = np.asarray(predictor.logits(np.zeros((1, *predictor.shape), np.uint8)))
times.append(time.perf_counter())
assert logits.shape == (1, len(predictor.classes)) and np.isfinite(logits).all()
parts = [b - a for a, b in zip(times, times[1:])]
print(json.dumps(dict(zip(("import", "load", "predict"), parts))))
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/first_prediction.py",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=NETWORKS)
    parser.add_argument("--repeats", type=int, default=10, help="processes of each")
    parser.add_argument(
        "--max-load",
        type=float,
        default=latency.QUIET,
        help="refuse above this load average",
    )
    out = ROOT / "results" / "first_prediction.json"
    parser.add_argument("--out", default=str(out))
    args = parser.parse_args(argv)
    load = os.getloadavg()
    try:
        if args.repeats < 2:
            raise ValueError(f"--repeats={args.repeats}, at least 2 expected")
        latency.check_idle(args.max_load)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    from quantnet_jax.logging import records
    from quantnet_jax.logging.provenance import provenance

    rows = {name: measure(*NETWORKS[name], args.repeats) for name in args.networks}
    words = sys.argv[1:] if argv is None else argv
    result = {
        "benchmark": "seconds of a process that imports, loads and predicts one image",
        "command": shlex.join(["python", "benchmarks/first_prediction.py", *words]),
        "repeats": args.repeats,
        "bar": BAR,
        "networks": rows,
        "cores": os.cpu_count(),
        "load": {"before": load, "after": os.getloadavg()},
        **provenance(),
    }
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    records.write_json(args.out, result)
    for name, row in rows.items():
        word = "meets" if row["median"] <= BAR else "misses"
        parts = ", ".join(f"{k} {v:.2f}" for k, v in row["parts"].items())
        print(
            f"{name:16s}{row['median']:6.2f} s ({parts}): {word} the bar of {BAR:g} s"
        )
    print(f"wrote {args.out}")
    return 0


def measure(network: str, options: dict, repeats: int) -> dict:
    """Median and spread of whole processes, and the medians of their parts."""
    from benchmarks import latency_rows
    from quantnet_jax import deploy

    predictor = latency_rows.make(network, **options)
    seconds, parts = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        spec = predictor.spec | {"popcount": bool(predictor.countable)}
        deploy.write(path, predictor.params, spec)
        for _ in range(1 + repeats):
            start = time.perf_counter()
            parts.append(json.loads(run(path)))
            seconds.append(time.perf_counter() - start)
    low, middle, high = statistics.quantiles(seconds[1:], n=4)
    names = parts[0].keys()
    return {
        "median": middle,
        "quartiles": [low, high],
        "slowest": max(seconds[1:]),
        "parts": {k: statistics.median(x[k] for x in parts[1:]) for k in names},
    }


def run(path: pathlib.Path) -> str:
    """What a new process prints that predicts with the file."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", PROGRAM, str(path)]
    options = {"cwd": ROOT, "env": environment, "check": True, "text": True}
    return subprocess.run(command, stdout=subprocess.PIPE, **options).stdout


if __name__ == "__main__":
    sys.exit(main())
