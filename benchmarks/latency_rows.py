"""The programs that benchmarks/latency.py times: ours, onnxruntime's and PyTorch's.

Each takes one uint8 batch in memory and leaves logits in memory as a NumPy array, with
the normalization of the images inside.
"""

import importlib.util
import logging
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from quantnet_jax import deploy, export, models
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.deploy.packed import is_packed
from quantnet_jax.deploy.predictor import make_predictor

NETWORKS = {
    "resnet20": {"shape": (32, 32, 3), "classes": 10},
    "resnet18": {"shape": (224, 224, 3), "classes": 1000},
}


class Row(NamedTuple):
    """A program to time.

    Attributes:
      run: uint8 images -> logits, a NumPy array.
      reference: name of the program that must give the same logits, or None where they
        are expected to differ (quantized further) and the difference is only stated.
      about: what it is.
      seconds: runs the batch that `run` got last twice, and gives the seconds of the
        second run; None where `run` itself can be timed.
    """

    run: Callable[[np.ndarray], np.ndarray]
    reference: str | None
    about: str
    seconds: Callable[[], float] | None = None


def make(network: str, activation: str | None = None, **options: Any):
    """A `Predictor` with random weights: all but stem and head binary, with scales.

    Latency does not depend on what the weights are.
    """
    given = NETWORKS[network]
    spec = {
        "model": {"name": network, "dtype": "float32", **options},
        "activation": {"name": activation} if activation else None,
        "input": {"shape": list(given["shape"]), "mean": [0.5] * 3, "std": [0.25] * 3},
        "classes": [f"class {i}" for i in range(given["classes"])],
    }
    # Activation quantizers without parameters add none to the tree.
    model = models.create(network, outputs=given["classes"], folded=True, **options)
    image = jax.ShapeDtypeStruct((1, *given["shape"]), jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)

    def leaf(key, x):
        name = jax.tree_util.keystr(key, simple=True, separator="/")
        if not name.endswith("kernel"):
            low = 0.5 if name.endswith("scale") else -0.1
            return rng.uniform(low, low + 0.5, x.shape).astype(np.float32)
        fan = np.float32(np.sqrt(np.prod(x.shape[:-1])))
        if name in ("stem/kernel", "head/kernel"):
            return rng.normal(size=x.shape).astype(np.float32) / fan
        codes = jnp.asarray(rng.integers(0, 2, x.shape), jnp.uint8)
        scale = rng.uniform(0.5, 1.5, (1, 1, 1, x.shape[-1])).astype(np.float32) / fan
        return QTensor(codes, jnp.asarray([-1.0, 1.0]), jnp.asarray(scale))

    params = deploy.pack_tree(jax.tree_util.tree_map_with_path(leaf, tree))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        deploy.write(path, params, spec)
        return deploy.load(path)


def ours(network: str) -> tuple[dict[str, Row], deploy.Predictor, deploy.Predictor]:
    """Float, hard, packed, exported: the same network in four forms; and W1A1.

    Returns:
      (rows, the network, that of W1A1).
    """
    predictor = make(network)
    hard = jax.tree.map(jnp.asarray, deploy.float_tree(predictor.params))
    rng = np.random.default_rng(1)
    trained = lambda x: jnp.asarray(rng.normal(size=x.shape) / 10, jnp.float32)
    as_float = jax.tree.map(
        lambda x: trained(x) if is_packed(x) else x, predictor.params, is_leaf=is_packed
    )
    jitted = jax.jit(predictor.apply)
    program = jax.export.deserialize(bytearray(export.stablehlo(predictor)))
    call = jax.jit(program.call)
    rows = {
        "float": Row(
            lambda x: np.asarray(jitted(as_float, x)), None, "jit, float32 weights"
        ),
        "hard": Row(
            lambda x: np.asarray(jitted(hard, x)),
            "hard",
            "jit, the binary weights' values as float32",
        ),
        "packed W1A32": Row(
            lambda x: np.asarray(jitted(predictor.params, x)),
            "hard",
            "Predictor: bits in memory, unpacked inside the program",
        ),
        "StableHLO": Row(
            lambda x: np.asarray(call(x)), "hard", "the exported program, reloaded"
        ),
    }
    signs = make(network, activation="sign_ste", bi_real=True, act="hardtanh")
    run, values = jax.jit(signs.apply), deploy.float_tree(signs.params)
    counting = make_predictor(signs.params, signs.spec, popcount=True)
    rows["W1A1 as floats"] = Row(
        lambda x: np.asarray(run(values, x)),
        "W1A1 as floats",
        "jit, another network (IR-Net's blocks): signs as inputs, all in float32",
    )
    rows["packed W1A1"] = Row(
        lambda x: np.asarray(counting.logits(x)),
        "W1A1 as floats",
        "that network by XOR and bit counts",
    )
    return rows, predictor, signs


def onnx_rows(predictor: deploy.Predictor, threads: int, calibration: np.ndarray):
    """onnxruntime: float32, and int8 weights and activations (static, per channel)."""
    import onnx
    import onnxruntime as ort
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from quantnet_jax import export_onnx

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    model = export_onnx.to_onnx(predictor)

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

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # advice on models from PyTorch
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
        content = pathlib.Path(small).read_bytes()
    logging.getLogger().setLevel(level)
    plain = session(model.SerializeToString())
    return {
        "onnxruntime": Row(plain, "hard", "our ONNX export, float32"),
        "onnxruntime int8": Row(
            session(content), None, "the same, static int8 (QDQ, per channel)"
        ),
    }


def torch_rows(predictor: deploy.Predictor, threads: int) -> dict[str, Row]:
    """PyTorch eager, float32, BatchNorm folded into the convolutions."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    spec = predictor.spec
    params = jax.tree.map(np.asarray, deploy.float_tree(predictor.params))
    mean, std = (
        torch.tensor(spec["input"][k]).reshape(1, -1, 1, 1) for k in ("mean", "std")
    )
    tensor = lambda x: torch.from_numpy(np.array(x, np.float32))

    def folded(conv, norm):
        kernel = conv["kernel"] * norm["scale"]
        return tensor(kernel.transpose(3, 2, 0, 1)), tensor(norm["bias"])

    large = spec["model"]["name"] == "resnet18"
    stem = folded(params["stem"], params["stem_bn"])
    blocks = []
    for name in sorted(k for k in params if k.startswith("stage")):
        p = params[name]
        down = name.endswith("block0") and not name.startswith("stage1")
        short = folded(p["shortcut"], p["shortcut_bn"]) if "shortcut" in p else None
        pair = folded(p["conv1"], p["bn1"]), folded(p["conv2"], p["bn2"])
        blocks.append((*pair, short, 2 if down else 1))
    head = tensor(params["head"]["kernel"].T), tensor(params["head"]["bias"])

    def network(images, layout):
        with torch.inference_mode():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0
            x = ((x - mean) / std).contiguous(memory_format=layout)
            x = F.relu(F.conv2d(x, *stem, stride=2 if large else 1,
                                padding=3 if large else 1))  # fmt: skip
            if large:
                x = F.max_pool2d(x, 3, 2, 1)
            for first, second, short, stride in blocks:
                y = F.relu(F.conv2d(x, *first, stride=stride, padding=1))
                y = F.conv2d(y, *second, padding=1)
                if short:
                    x = F.conv2d(x, *short, stride=stride)
                elif x.shape != y.shape:
                    x = x[:, :, ::2, ::2]
                    x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
                x = F.relu(x + y)
            return F.linear(x.mean((2, 3)), *head).numpy()

    layouts = {"": torch.contiguous_format, ", channels last": torch.channels_last}
    return {
        f"PyTorch{name}": Row(
            lambda x, layout=layout: network(x, layout),
            "hard",
            f"eager, float32, BatchNorm folded{name}",
        )
        for name, layout in layouts.items()
    }


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
