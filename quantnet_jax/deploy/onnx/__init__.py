"""ONNX models of networks; needs the packages onnx and onnxruntime."""

import importlib.util
import json
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from quantnet_jax.common.files import write_atomic
from quantnet_jax.deploy.format.packed import float_tree
from quantnet_jax.deploy.onnx import check as onnx_check
from quantnet_jax.deploy.predictor import Predictor
from quantnet_jax.deploy.stablehlo import fixed, inputs_of
from quantnet_jax.trees.tree import dequantize_tree

if TYPE_CHECKING:
    import onnx

PyTree = Any
RANDOM_IMAGES = 16


def to_onnx(
    apply: Callable,
    tree: PyTree,
    example: PyTree,
    *,
    path: str | os.PathLike | None = None,
    batch: bool = True,
    tolerance: float | None = onnx_check.TOLERANCE,
) -> "onnx.ModelProto":
    """The ONNX model of any network, compared with it in onnxruntime.

    ONNX has no 1-bit numbers: weights are stored as the float32 values that their codes
    stand for. Loops are unrolled; both branches of a condition on the input are
    computed, and one is chosen.

    Args:
      apply: `(params, *inputs) -> outputs`, a traceable function of float arrays that
        computes in float32, integers and booleans.
      tree: parameters, with `QTensor`, packed and other leaves.
      example: input of `apply`, or a tuple of inputs: arrays or shapes, or trees of
        them. Inputs are called 'input', or by their keys; outputs 'output' likewise.
      path: of a file to write, whole or not at all; default none.
      batch: whether the first axis of every input is the batch, whose size is then
        free. False: the shapes of the example alone.
      tolerance: largest difference of outputs in onnxruntime, if it is installed,
        relative to the largest of an output where that is above 1; None for no
        comparison. Inputs are those of the example, twice if the batch is free; for
        shapes random ones, integers 0 and 1.

    Returns:
      A checked model.

    Raises:
      ImportError: onnx is not installed.
      ValueError: in one line, the primitive that has no translation, or an output that
        differs; nothing is written then.

    Example:
      >>> import jax.numpy as jnp
      >>> apply = lambda params, x: jax.nn.softmax(x @ params["w"])
      >>> model = to_onnx(apply, {"w": jnp.ones((3, 2))}, jnp.ones((1, 3)))
      >>> [x.name for x in (*model.graph.input, *model.graph.output)]
      ['input', 'output']
    """
    _needs_onnx()
    from quantnet_jax.deploy.onnx.convert import convert

    run, inputs = fixed(apply, dequantize_tree(float_tree(tree))), inputs_of(example)
    model = convert(run, inputs, name=getattr(apply, "__name__", "apply"), batch=batch)
    content = model.SerializeToString()
    installed = importlib.util.find_spec("onnxruntime") is not None
    if tolerance is not None and installed:
        onnx_check.compare(content, run, inputs, batch, tolerance)
    if path is not None:
        write_atomic(path, content)
    return model


def of_predictor(predictor: Predictor) -> "onnx.ModelProto":
    """The ONNX model of a loaded network.

    Input 'images' uint8[N, H, W, C], output 'outputs' float32[N, ...]; N is free, the
    normalization of the images is inside.

    Raises:
      ImportError: onnx is not installed.
      ValueError: the network does not compute in float32, or does something that has no
        translation.
    """
    _needs_onnx()
    from quantnet_jax.deploy.onnx.convert import convert

    spec = predictor.spec
    if spec.dtype != "float32":
        raise ValueError(
            f"the network computes in {spec.dtype}, expected float32: few ONNX "
            "runtimes have other convolutions"
        )
    weights = jax.tree.map(np.asarray, float_tree(predictor.params))
    model = convert(
        onnx_check.marked(lambda images: predictor.apply(weights, images)),
        (jax.ShapeDtypeStruct((1, *spec.shape), np.uint8),),
        name=spec.model["name"],
        names=("images", "outputs"),
    )
    model.doc_string = "Input: uint8 images, not normalized."
    value = json.dumps(spec.to_json(), sort_keys=True)
    model.metadata_props.add(key="quantnet_jax", value=value)
    return model


def _needs_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise ImportError("ONNX export needs the package onnx: pip install onnx")


def write(
    path: str | os.PathLike,
    predictor: Predictor,
    batches: Iterable[np.ndarray] | None = None,
    tolerance: float = onnx_check.TOLERANCE,
) -> dict[str, Any]:
    """Writes and checks the ONNX model of a network; whole or not at all.

    Args:
      path: of the file.
      predictor: of `load(artifact, popcount=False)`.
      batches: of images, uint8[N, H, W, C], to check with; default random ones.
      tolerance: see `check.check`.

    Returns:
      {'file': path, 'bytes', 'nodes', 'check': as `check.check`, or None if onnxruntime
      is not installed}.

    Raises:
      ValueError, ImportError: as `of_predictor`, `check.check`.
    """
    model = of_predictor(predictor)
    content = model.SerializeToString()
    if batches is None:
        shape = (RANDOM_IMAGES, *predictor.spec.shape)
        batches = [np.random.default_rng(0).integers(0, 256, shape, np.uint8)]
    checked = None
    if importlib.util.find_spec("onnxruntime") is not None:
        checked = onnx_check.check(content, predictor, batches, tolerance)
    write_atomic(path, content)
    return {
        "file": str(path),
        "bytes": len(content),
        "nodes": len(model.graph.node),
        "check": checked,
    }
