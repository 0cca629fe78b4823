"""quantnet_jax: 1-bit and low-bit networks in JAX, by pure functions.

import quantnet_jax as qn

q = qn.tree_quantizer([qn.Rule(".*/kernel", qn.quantnet(sharpness=10.0))], params)
qparams = q.init(key, params)
soft = q.soft(qparams, params, step=0)       # what training differentiates
hard = q.hard(qparams, params)               # QTensor leaves: what ships
logits = model.apply({"params": qn.dequantize_tree(hard)}, images)

predictor = qn.load("model.safetensors")     # an exported network, ready to run
predictor = qn.load("zoo:NAME")              # one of `python -m quantnet_jax.zoo`
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from quantnet_jax.core import combine, ops, packing, schedules
from quantnet_jax.core.axes import Axes, axes
from quantnet_jax.core.combine import (
    add_penalty,
    bit_planes,
    chain,
    learned_scale,
    per_channel,
    scale_by_max,
    scale_by_mean_abs,
    straight_through,
)
from quantnet_jax.core.ops import conv2d, dense
from quantnet_jax.core.qtensor import QTensor, dequantize, encode
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    Reparam,
    factory,
    identity,
)
from quantnet_jax.core.tree import Rule, dequantize_tree, tree_quantizer
from quantnet_jax.quantizers.bitnet import bitnet
from quantnet_jax.quantizers.classification import binarizing_by_classification
from quantnet_jax.quantizers.dsq import dsq, dsq_soft
from quantnet_jax.quantizers.lq_nets import lq_nets
from quantnet_jax.quantizers.metaquant import metaquant
from quantnet_jax.quantizers.proxquant import proxquant
from quantnet_jax.quantizers.quantization_networks import quantization_networks
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import tanh_sign
from quantnet_jax.quantizers.standardized import adabin, irnet, recu
from quantnet_jax.quantizers.ste import (
    approx_sign,
    binary_ste,
    binaryconnect,
    clipped_ste,
    swish_sign,
    xnor,
)
from quantnet_jax.quantizers.twn import twn
from quantnet_jax.quantizers.uniform import dorefa, lsq, pact

if TYPE_CHECKING:
    from quantnet_jax import (
        activations,
        data,
        deploy,
        models,
        nnx,
        quantizers,
        tasks,
        testing,
        zoo,
    )
    from quantnet_jax.deploy import (
        NetworkSpec,
        Predictor,
        export_tree,
        summarize,
        to_onnx,
        to_stablehlo,
    )

__version__ = "0.1.0"

# Imported when asked for (PEP 562), so that `import quantnet_jax` needs jax alone.
_MODULES = (
    *("activations", "data", "deploy", "models", "nnx", "quantizers", "tasks"),
    *("testing", "zoo"),
)
_OF_DEPLOY = (
    *("NetworkSpec", "Predictor", "export_tree", "summarize", "to_onnx"),
    "to_stablehlo",
)

__all__ = [
    "Axes",
    "NetworkSpec",
    "PerTensor",
    "Predictor",
    "QTensor",
    "Quantizer",
    "Reparam",
    "Rule",
    "activations",
    "adabin",
    "add_penalty",
    "approx_sign",
    "axes",
    "binarizing_by_classification",
    "binary_ste",
    "binaryconnect",
    "bit_planes",
    "bitnet",
    "chain",
    "clipped_ste",
    "combine",
    "conv2d",
    "data",
    "dense",
    "deploy",
    "dequantize",
    "dequantize_tree",
    "dorefa",
    "dsq",
    "dsq_soft",
    "encode",
    "export_tree",
    "factory",
    "identity",
    "irnet",
    "learned_scale",
    "load",
    "lq_nets",
    "lsq",
    "metaquant",
    "models",
    "nnx",
    "ops",
    "packing",
    "pact",
    "per_channel",
    "proxquant",
    "quantization_networks",
    "quantizers",
    "quantnet",
    "recu",
    "scale_by_max",
    "scale_by_mean_abs",
    "schedules",
    "straight_through",
    "summarize",
    "swish_sign",
    "tanh_sign",
    "tasks",
    "testing",
    "to_onnx",
    "to_stablehlo",
    "tree_quantizer",
    "twn",
    "xnor",
    "zoo",
]


def load(path: str | os.PathLike, *, popcount: bool | str = "auto") -> "Predictor":
    """Loads an exported network: uint8 images in, outputs out, on any backend.

    Needs no training code; see `quantnet_jax.deploy` and `quantnet_jax.export`.

    Args:
      path: a `model.safetensors` that `python -m quantnet_jax.export` wrote, or
        'zoo:NAME' for a trained network of this package, see `quantnet_jax.zoo`.
      popcount: whether layers with binary weights and binary inputs count bits; 'auto':
        on a CPU, if that changed no prediction of the export.

    Returns:
      A `Predictor`: `predictor(images) -> outputs`, `spec`, and the packed parameters.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: in one line, what is wrong with the file or the name.
    """
    from quantnet_jax import deploy, zoo

    if isinstance(path, str) and path.startswith(zoo.PREFIX):
        path = zoo.path(path.removeprefix(zoo.PREFIX))
    return deploy.load(path, popcount=popcount)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"quantnet_jax.{name}")
    if name in _OF_DEPLOY:
        return getattr(importlib.import_module("quantnet_jax.deploy"), name)
    raise AttributeError(f"module 'quantnet_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
