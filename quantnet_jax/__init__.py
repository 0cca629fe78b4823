"""quantnet_jax: 1-bit and low-bit networks in JAX, by pure functions.

import quantnet_jax as qn

sharpness = qn.schedules.exponential(1.0, 10.0, 0.9 * steps)
rules = [qn.Rule(".*/kernel", qn.quantnet(sharpness=sharpness))]
q = qn.tree_quantizer(rules, params)
qparams = q.init(key, params)
soft = q.soft(qparams, params, step=0)       # what training differentiates
hard = q.hard(qparams, params)               # QTensor leaves: what ships
logits = model.apply({"params": qn.dequantize_tree(hard)}, images)

qn.save("own.safetensors", hard)             # packed; qn.load(path, apply=...) runs it
predictor = qn.load("model.safetensors")     # an exported network, or "zoo:NAME"
"""

import importlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, overload

from quantnet_jax import ops
from quantnet_jax.core import combine, packing, pruning, schedules
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
from quantnet_jax.core.qtensor import QTensor, dequantize, encode
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    Reparam,
    factory,
    identity,
)
from quantnet_jax.ops import conv2d, dense
from quantnet_jax.quantizers.binary.bitat import bitat
from quantnet_jax.quantizers.binary.classification import binarizing_by_classification
from quantnet_jax.quantizers.binary.metaquant import metaquant
from quantnet_jax.quantizers.binary.proxquant import proxquant
from quantnet_jax.quantizers.binary.standardized import adabin, irnet, recu
from quantnet_jax.quantizers.binary.ste import (
    approx_sign,
    binary_ste,
    binaryconnect,
    clipped_ste,
    swish_sign,
    xnor,
)
from quantnet_jax.quantizers.members import MEMBERS
from quantnet_jax.quantizers.multibit.ausn import ausn
from quantnet_jax.quantizers.multibit.cpq import cpq, dropbits
from quantnet_jax.quantizers.multibit.direct import direct
from quantnet_jax.quantizers.multibit.dsq import dsq, dsq_soft
from quantnet_jax.quantizers.multibit.learned_clip import learned_clip
from quantnet_jax.quantizers.multibit.lq_nets import lq_nets
from quantnet_jax.quantizers.multibit.quantization_networks import quantization_networks
from quantnet_jax.quantizers.multibit.relaxed import rq
from quantnet_jax.quantizers.multibit.soft_round import soft_round
from quantnet_jax.quantizers.multibit.ternary import bitnet, twn
from quantnet_jax.quantizers.multibit.uniform import dorefa, lsq, pact
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import tanh_sign
from quantnet_jax.trees.axes import Axes, axes
from quantnet_jax.trees.tree import Rule, dequantize_tree, tree_quantizer

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
        TreePredictor,
        export_tree,
        to_onnx,
        to_stablehlo,
    )
    from quantnet_jax.deploy.summary import summarize as summary
    from quantnet_jax.evaluation.gap import evaluate_tree
    from quantnet_jax.own import Update, gap, make_update, recalibrate
    from quantnet_jax.posttrain.driver import posttrain

__version__ = "0.1.0"

# Imported when asked for (PEP 562), so that `import quantnet_jax` needs jax alone.
_MODULES = ("activations", "data", "deploy", "models", "nnx", "posttrain")
_MODULES += ("quantizers", "summary", "tasks", "testing", "zoo")
_PLACES = {
    "own": ("Update", "gap", "make_update", "recalibrate"),
    "deploy": ("NetworkSpec", "Predictor", "TreePredictor", "export_tree", "to_onnx")
    + ("to_stablehlo",),
    "evaluation.gap": ("evaluate_tree",),
}

__all__ = [
    "Axes",
    "NetworkSpec",
    "PerTensor",
    "Predictor",
    "QTensor",
    "Quantizer",
    "Reparam",
    "Rule",
    "TreePredictor",
    "Update",
    "activations",
    "adabin",
    "add_penalty",
    "approx_sign",
    "ausn",
    "axes",
    "binarizing_by_classification",
    "binary_ste",
    "binaryconnect",
    "bit_planes",
    "bitat",
    "bitnet",
    "chain",
    "clipped_ste",
    "combine",
    "conv2d",
    "cpq",
    "data",
    "dense",
    "deploy",
    "dequantize",
    "dequantize_tree",
    "direct",
    "dorefa",
    "dropbits",
    "dsq",
    "dsq_soft",
    "encode",
    "evaluate_tree",
    "export_tree",
    "factory",
    "gap",
    "identity",
    "irnet",
    "learned_clip",
    "learned_scale",
    "load",
    "lq_nets",
    "lsq",
    "make_update",
    "metaquant",
    "models",
    "nnx",
    "ops",
    "packing",
    "pact",
    "per_channel",
    "posttrain",
    "proxquant",
    "pruning",
    "quantization_networks",
    "quantizers",
    "quantnet",
    "recalibrate",
    "recu",
    "rq",
    "save",
    "scale_by_max",
    "scale_by_mean_abs",
    "schedules",
    "soft_round",
    "straight_through",
    "summary",
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
__all__ += [x for x in MEMBERS if x not in __all__]  # pyright: ignore


def save(
    path: str | os.PathLike,
    tree: Any,
    *,
    apply: Callable[..., Any] | None = None,
    example: Any = None,
    info: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Saves a tree of your own, such as what `hard` returns, packed, in one file.

    `load` returns the same tree: structure, keys, order of lists, dtypes, and bits.

    Args:
      path: of the file; its folder must exist. An older file of that name is replaced
        once the new one is whole and verified.
      tree: any pytree of `QTensor`s (which are packed), packed leaves, finite arrays,
        and Python numbers: parameters, or parameters and state such as BatchNorm's, as
        `(hard, state)`.
      apply: `(tree, *inputs) -> outputs`, a traceable function of the dequantized tree.
      example: input of `apply`, or a tuple of inputs. With both, the file is read again
        and must give the outputs of the tree, bit for bit.
      info: JSON data to save with it, such as a vocabulary.

    Returns:
      {'payload': bytes of tensors, 'file': bytes of the file}.

    Raises:
      ValueError: with the path of the leaf, what a file cannot hold (NaN and infinity
        included), or that the outputs differ; nothing is written then.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> tree = {"layers": [{"w": jnp.ones((2, 3))}], "steps": 7}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "model.safetensors")
      ...     apply = lambda tree, x: x @ tree["layers"][0]["w"]
      ...     sizes = save(path, tree, apply=apply, example=jnp.ones((1, 2)))
      ...     model = load(path, apply=apply)
      >>> model(jnp.ones((1, 2))).tolist(), model.params["steps"]
      ([[2.0, 2.0, 2.0]], 7)
    """
    from quantnet_jax.deploy import trees

    return trees.save(path, tree, apply=apply, example=example, info=info or {})


@overload
def load(path: str | os.PathLike, *, popcount: bool | str = "auto") -> "Predictor": ...
@overload
def load(
    path: str | os.PathLike, *, apply: Callable[..., Any] | None, like: Any = None
) -> "TreePredictor": ...
@overload
def load(path: str | os.PathLike, *, like: Any) -> "TreePredictor": ...
def load(path, *, apply=None, like=None, popcount: bool | str = "auto"):
    """Loads an exported network, or a tree of your own; needs no training code.

    Args:
      path: a `model.safetensors` that `python -m quantnet_jax.export` wrote, 'zoo:NAME'
        for a trained network of `quantnet_jax.zoo`, or a file of `save`.
      apply: `(tree, *inputs) -> outputs`, the function of an own tree, with float32
        arrays in the place of quantized leaves.
      like: an own tree of the structure that was saved, with arrays or
        `jax.ShapeDtypeStruct`s, which is checked; needed if it has other nodes than
        dicts, lists and tuples, such as named tuples, FrozenDicts, boxes or modules.
      popcount: whether layers of an exported network with binary weights and binary
        inputs count bits; 'auto': on a CPU, if that changed no prediction of the
        export.

    Returns:
      Of an exported network a `Predictor`: `predictor(images) -> outputs`, `spec`, and
      the packed parameters. Of an own tree (or with `apply` or `like`) a
      `deploy.TreePredictor`: `predictor(*inputs) -> outputs`, equal bit for bit to
      those of jitted `apply` on the dequantized tree; `params`, the tree with packed
      leaves; and `info`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: what is wrong with the file or the name, or that `like` is missing or
        has other nodes, paths or shapes.
    """
    from quantnet_jax import zoo
    from quantnet_jax.deploy import trees

    if isinstance(path, str) and path.startswith(zoo.PREFIX):
        path = zoo.path(path.removeprefix(zoo.PREFIX))
    return trees.load(path, apply=apply, like=like, popcount=popcount)


def __getattr__(name: str) -> Any:
    found = [place for place, names in _PLACES.items() if name in names]
    if name in _MODULES:
        return importlib.import_module(f"quantnet_jax.{name}")
    if found:
        return getattr(importlib.import_module(f"quantnet_jax.{found[0]}"), name)
    if name in MEMBERS:  # a row that was added
        return MEMBERS[name].factory
    raise AttributeError(f"module 'quantnet_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
