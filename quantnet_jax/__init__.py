"""quantnet_jax: 1-bit and low-bit networks in JAX, by pure functions.

import quantnet_jax as qn

q = qn.quantize_tree([qn.Rule(".*/kernel", qn.quantnet(sharpness=10.0))], params)
qparams = q.init(key, params)
soft = q.soft(qparams, params, step=0)       # what training differentiates
hard = q.hard(qparams, params)               # QTensor leaves: what ships
logits = model.apply({"params": qn.dequantize_tree(hard)}, images)

predictor = qn.load("model.safetensors")     # an exported network, ready to run
predictor = qn.load("zoo:NAME")              # one of `python -m quantnet_jax.zoo`
"""

import os
from typing import TYPE_CHECKING

from quantnet_jax.core.combine import (
    add_penalty,
    bit_planes,
    chain,
    learned_scale,
    mix,
    per_channel,
    scale_by_max,
    scale_by_mean_abs,
    straight_through,
    uniform_levels,
)
from quantnet_jax.core.ops import conv2d, dense, quantized_conv2d, realize
from quantnet_jax.core.qtensor import QTensor, dequantize, encode, pack, unpack
from quantnet_jax.core.quantizer import PerTensor, Quantizer, Reparam, identity
from quantnet_jax.core.tree import Rule, dequantize_tree, quantize_tree
from quantnet_jax.quantizers import create, names
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import tanh_sign
from quantnet_jax.quantizers.ste import binary_ste

if TYPE_CHECKING:
    from quantnet_jax.deploy import Predictor

__version__ = "0.1.0"

__all__ = [
    "PerTensor",
    "QTensor",
    "Quantizer",
    "Reparam",
    "Rule",
    "add_penalty",
    "binary_ste",
    "bit_planes",
    "chain",
    "conv2d",
    "create",
    "dense",
    "dequantize",
    "dequantize_tree",
    "encode",
    "identity",
    "learned_scale",
    "load",
    "mix",
    "names",
    "pack",
    "per_channel",
    "quantize_tree",
    "quantized_conv2d",
    "quantnet",
    "realize",
    "scale_by_max",
    "scale_by_mean_abs",
    "straight_through",
    "tanh_sign",
    "uniform_levels",
    "unpack",
]


def load(path: str | os.PathLike, *, popcount: bool | str = "auto") -> "Predictor":
    """Loads an exported network: uint8 images in, logits out, on any backend.

    Needs no training code; see `quantnet_jax.deploy` and `quantnet_jax.export`.

    Args:
      path: a `model.safetensors` that `python -m quantnet_jax.export` wrote, or
        'zoo:NAME' for a trained network of this package, see `quantnet_jax.zoo`.
      popcount: whether layers with binary weights and binary inputs count bits; 'auto':
        on a CPU, if export found the same classes so for every test image.

    Returns:
      A `Predictor`: `logits(images)`, `classes`, `shape`, and the packed parameters.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: in one line, what is wrong with the file or the name.
    """
    # Here, so that the import of the core does not bring in the networks.
    from quantnet_jax import deploy, zoo

    if isinstance(path, str) and path.startswith(zoo.PREFIX):
        path = zoo.path(path.removeprefix(zoo.PREFIX))
    return deploy.load(path, popcount=popcount)
