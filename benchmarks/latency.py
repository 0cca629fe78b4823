"""Times inference of one network in our forms and in onnxruntime.

    python -m benchmarks.latency

ResNet-20 on 32x32 images (`--network=resnet18`: 224x224) with binary inner weights. For
each number of threads one process is bound to as many cores; all programs are
interleaved in it, with a pause and an untimed call before each timed one. A program is
timed only after its logits were found equal to those of its reference. (Rows of PyTorch
and of the Larq Compute Engine in results/latency.jsonl were measured by an earlier
version of this script.)
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from quantnet_jax import deploy, models
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.deploy.format.packed import is_packed
from quantnet_jax.deploy.predictor import make_predictor
from quantnet_jax.trees.paths import joined

PAUSE = 0.005
"""Seconds before each turn, in which the threads of the last program fall asleep."""
TOLERANCE = 1e-4
"""Of the largest logit (of 1 if that is less)."""
SIGNS = {"activation": "sign_ste", "bi_real": True, "act": "hardtanh"}
NETWORKS = {
    "resnet20": {"shape": (32, 32, 3), "outputs": 10},
    "resnet18": {"shape": (224, 224, 3), "outputs": 1000},
}


class Row(NamedTuple):
    """A program to time.

    Attributes:
      run: uint8 images -> logits, a NumPy array.
      reference: name of the program that must give the same logits, or None where they
        are expected to differ (quantized further) and the difference is only recorded.
      about: what it is.
    """

    run: Callable[[np.ndarray], np.ndarray]
    reference: str | None
    about: str


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser("benchmarks.latency", __doc__, repeats=40, load=0.3)
    parser.add_argument("--network", default="resnet20", choices=tuple(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--worker", type=int, help="of these threads: prints JSON")
    args = parser.parse_args(argv)
    if args.worker is not None:
        print(json.dumps(worker(args)))
        return 0
    return timing.main(args, argv, measure)


def measure(args) -> dict:
    """One process for each number of threads; their results together."""
    cores = len(os.sched_getaffinity(0))
    if not all(1 <= n <= cores for n in args.threads):
        raise ValueError(f"--threads {args.threads}, but there are 1 to {cores} cores")
    if min(args.batches) < 1:
        raise ValueError(f"--batches {args.batches}, expected positive numbers")
    runs = []
    for threads in args.threads:
        command = [sys.executable, "-m", "benchmarks.latency", f"--worker={threads}"]
        command += [f"--network={args.network}", f"--repeats={args.repeats}"]
        command += ["--batches", *map(str, args.batches)]
        done = subprocess.run(
            command, check=True, cwd=timing.ROOT, stdout=subprocess.PIPE, text=True
        )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    about = [(run.pop("rows"), run.pop("versions")) for run in runs][0]
    return {
        "network": args.network,
        "pause": PAUSE,
        "tolerance": TOLERANCE,
        "max_load": args.max_load,
        "runs": runs,
        "rows": about[0],
        "versions": about[1],
    }


def worker(args) -> dict:
    """Measures with `args.worker` threads."""
    # Before XLA counts the cores, which it does when it computes first.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.worker :])
    rows, predictor = ours(args.network)
    rng, versions = np.random.default_rng(0), {}
    images = lambda n: rng.integers(0, 256, (n, *predictor.spec.shape), np.uint8)
    if all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        rows |= onnx_rows(predictor, args.worker, images(32))
        versions = {p: __import__(p).__version__ for p in ("onnx", "onnxruntime")}
    batches = {}
    for n in args.batches:
        x = images(n)
        agreed = {name: agreement(name, rows, x) for name in rows}
        calls = {name: stopwatch(row.run, x) for name, row in rows.items()}
        times = timing.interleaved(calls, args.repeats, pause=PAUSE)
        found = timing.summary(times, "float")
        batches[n] = {"rows": {k: v | {"logits": agreed[k]} for k, v in found.items()}}
    about = {name: row.about for name, row in rows.items()}
    found = {"threads": args.worker, "batches": batches}
    return found | {"rows": about, "versions": versions}


def stopwatch(run: Callable, x: np.ndarray) -> Callable[[], float]:
    """Runs a program twice; gives the seconds of the second run."""

    def seconds() -> float:
        run(x)
        start = time.perf_counter()
        run(x)
        return time.perf_counter() - start

    return seconds


def agreement(name: str, rows: dict[str, Row], x: np.ndarray) -> dict:
    """How logits compare with those of the reference; ValueError if they may not."""
    reference = rows[name].reference or "hard"
    got, expected = rows[name].run(x), rows[reference].run(x)
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    error = np.abs(got - expected).max(-1)
    differ = int((~(error <= allowed)).sum())
    if rows[name].reference and differ:
        raise ValueError(
            f"{name}: logits of {differ} images are not those of {reference}"
        )
    return {
        "reference": rows[name].reference,
        "largest_difference": float(error.max()),
        "images_that_differ": differ,
        "same_class": float(np.mean(got.argmax(-1) == expected.argmax(-1))),
    }


# Programs -----------------------------------------------------------------------------
def make(network: str, activation: str | None = None, **options: Any):
    """A `Predictor` with random weights: all but stem and head binary, with scales.

    Latency does not depend on what the weights are.
    """
    given = NETWORKS[network]
    spec = deploy.NetworkSpec(
        model={"name": network, **options},
        **given,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        activation={"name": activation} if activation else None,
    )
    # Activation quantizers without parameters add none to the tree.
    model = models.create(network, outputs=spec.outputs, folded=True, **options)
    tree = jax.eval_shape(model.init, jax.random.key(0), spec.input())["params"]
    rng = np.random.default_rng(0)

    def leaf(key, x):
        name = joined(key)
        if not name.endswith("kernel"):
            low = 0.5 if name.endswith("scale") else -0.1
            return rng.uniform(low, low + 0.5, x.shape).astype(np.float32)
        fan = np.float32(np.sqrt(np.prod(x.shape[:-1])))
        if name in ("stem/kernel", "head/kernel"):
            return rng.normal(size=x.shape).astype(np.float32) / fan
        codes = jnp.asarray(rng.integers(0, 2, x.shape), jnp.uint8)
        scale = rng.uniform(0.5, 1.5, (1, 1, 1, x.shape[-1])).astype(np.float32) / fan
        return QTensor(codes, jnp.asarray([-1.0, 1.0]), jnp.asarray(scale))

    params = jax.tree_util.tree_map_with_path(leaf, tree)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        deploy.save(path, params, spec)
        return deploy.load(path)


def ours(network: str) -> tuple[dict[str, Row], deploy.Predictor]:
    """(programs of the same network in four forms, and of one with signs; network)."""
    predictor = make(network)
    hard = jax.tree.map(jnp.asarray, deploy.float_tree(predictor.params))
    rng = np.random.default_rng(1)
    trained = lambda x: jnp.asarray(rng.normal(size=x.shape) / 10, jnp.float32)
    floats = jax.tree.map(
        lambda x: trained(x) if is_packed(x) else x, predictor.params, is_leaf=is_packed
    )
    signs = make(network, **SIGNS)
    values = deploy.float_tree(signs.params)
    counting = make_predictor(signs.params, signs.spec, popcount=True)
    jitted, signed = jax.jit(predictor.apply), jax.jit(signs.apply)
    call = jax.jit(
        jax.export.deserialize(bytearray(deploy.stablehlo.of_predictor(predictor))).call
    )
    programs = {
        "float": (lambda x: jitted(floats, x), None, "jit, float32 weights"),
        "hard": (
            *(lambda x: jitted(hard, x), "hard"),
            "jit, the binary weights' values as float32",
        ),
        "packed W1A32": (
            *(lambda x: jitted(predictor.params, x), "hard"),
            "Predictor: bits in memory, unpacked inside the program",
        ),
        "StableHLO": (call, "hard", "the exported program, reloaded"),
        "W1A1 as floats": (
            *(lambda x: signed(values, x), "W1A1 as floats"),
            "jit, another network (IR-Net's blocks): signs as inputs, all in float32",
        ),
        "packed W1A1": (
            *(counting, "W1A1 as floats"),
            "that network by XOR and bit counts",
        ),
    }
    array = lambda run: lambda x: np.asarray(run(x))
    rows = {k: Row(array(run), *rest) for k, (run, *rest) in programs.items()}
    return rows, predictor


def onnx_rows(predictor: deploy.Predictor, threads: int, calibration: np.ndarray):
    """onnxruntime: float32, and int8 weights and activations (static, per channel)."""
    import onnx
    import onnxruntime as ort
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from quantnet_jax.deploy.onnx import of_predictor

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    model = of_predictor(predictor)

    def session(content):
        found = ort.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        return lambda x: found.run(None, {"images": x})[0]

    class Reader(q.CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"images": calibration}])

        def get_next(self):
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        names = ("float", "prepared", "int8")
        plain, prepared, small = (str(pathlib.Path(folder) / x) for x in names)
        onnx.save(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        q.quantize_static(
            prepared,
            small,
            Reader(),
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            # onnxruntime 1.32 stops in this step at a bias of two axes, the head's.
            extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
        )
        int8 = session(pathlib.Path(small).read_bytes())
    about = "the same, static int8 (QDQ, per channel)"
    plain = session(model.SerializeToString())
    return {
        "onnxruntime": Row(plain, "hard", "our ONNX export, float32"),
        "onnxruntime int8": Row(int8, None, about),
    }


if __name__ == "__main__":
    sys.exit(main())
