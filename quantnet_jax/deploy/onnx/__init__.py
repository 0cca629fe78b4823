"""ONNX models of packed networks; needs the packages onnx and onnxruntime."""

import importlib.util
import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from quantnet_jax.core.files import write_atomic
from quantnet_jax.deploy.onnx import check as onnx_check
from quantnet_jax.deploy.packed import float_tree
from quantnet_jax.deploy.predictor import Predictor

if TYPE_CHECKING:
    import onnx

RANDOM_IMAGES = 16


def to_onnx(predictor: Predictor) -> "onnx.ModelProto":
    """The ONNX model of a loaded network.

    Input 'images' uint8[N, H, W, C], output 'outputs' float32[N, ...]; N is free, the
    normalization of the images is inside. ONNX has no 1-bit numbers: weights are stored
    as the float32 values that the bits stand for.

    Raises:
      ImportError: onnx is not installed.
      ValueError: the network does not compute in float32, or does something that has no
        translation.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ImportError("ONNX export needs the package onnx: pip install onnx")
    from quantnet_jax.deploy.onnx import graph

    spec = predictor.spec
    if spec.dtype != "float32":
        raise ValueError(
            f"the network computes in {spec.dtype}, expected float32: few ONNX "
            "runtimes have other convolutions"
        )
    weights = jax.tree.map(np.asarray, float_tree(predictor.params))
    model = graph.convert(
        onnx_check.marked(lambda images: predictor.apply(weights, images)),
        spec.shape,
        name=spec.model["name"],
    )
    model.doc_string = "Input: uint8 images, not normalized."
    value = json.dumps(spec.to_json(), sort_keys=True)
    model.metadata_props.add(key="quantnet_jax", value=value)
    return model


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
      ValueError, ImportError: as `to_onnx`, `check.check`.
    """
    model = to_onnx(predictor)
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
