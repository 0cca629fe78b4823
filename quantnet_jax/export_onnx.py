"""Writes the ONNX model of a packed artifact, and proves that both say the same.

    python -m quantnet_jax.export_onnx model.safetensors [--out=model.onnx]
        [--images=FILE.npy] [--tolerance=1e-4]

Input 'images' uint8[N, H, W, C] as they come from a file, output 'logits'
float32[N, classes]; N is free, the normalization of the images is inside. ONNX has no
1-bit numbers: weights are stored as the float32 values that the bits stand for, so the
file is as large as that of the float network.

Needs the package onnx, and onnxruntime for the check (`pip install
"quantnet_jax[onnx]"`), but no training code. jax2onnx, the converter that others keep,
was tried first: version 0.17.1 writes a model that onnxruntime refuses where weights
are packed, stops at the max-pool of resnet18, and cannot be installed together with
orbax-checkpoint 0.12.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from quantnet_jax import __version__, deploy
from quantnet_jax.deploy.onnx import check as onnx_check
from quantnet_jax.deploy.packed import float_tree

if TYPE_CHECKING:
    import onnx

RANDOM_IMAGES = 16


def to_onnx(predictor: deploy.Predictor) -> "onnx.ModelProto":
    """The ONNX model of a loaded network.

    Raises:
      ImportError: onnx is not installed.
      ValueError: the network does not compute in float32, or does something that has no
        translation.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ImportError("ONNX export needs the package onnx: pip install onnx")
    from quantnet_jax.deploy.onnx import graph

    spec = predictor.spec
    dtype = spec["model"].get("dtype", "float32")
    if dtype != "float32":
        raise ValueError(
            f"the network computes in {dtype}, expected float32: few ONNX runtimes "
            "have other convolutions"
        )
    weights = jax.tree.map(np.asarray, float_tree(predictor.params))
    model = graph.convert(
        onnx_check.marked(lambda images: predictor.apply(weights, images)),
        predictor.shape,
        name=str(spec["model"]["name"]),
    )
    model.producer_version = __version__
    model.doc_string = "Input: uint8 images, not normalized. Output: logits."
    about = {"classes": list(predictor.classes), "quantnet_jax": spec}
    for key, value in about.items():
        model.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True))
    return model


def export(
    artifact: str | os.PathLike,
    out: str | os.PathLike | None = None,
    batches: Iterable[np.ndarray] | None = None,
    tolerance: float = onnx_check.TOLERANCE,
) -> dict[str, Any]:
    """Writes and checks the ONNX model of an artifact; whole or not at all.

    Args:
      artifact: file written by `quantnet_jax.export`.
      out: ONNX file; default ARTIFACT with the ending .onnx.
      batches: of images, uint8[N, H, W, C], to check with; default random ones.
      tolerance: see `onnx_check.check`.

    Returns:
      {'file': path, 'bytes', 'nodes', 'check': as `onnx_check.check`, or None if
      onnxruntime is not installed}.

    Raises:
      FileNotFoundError, ValueError, ImportError: as `deploy.load`, `to_onnx`,
        `onnx_check.check`.
    """
    predictor = deploy.load(artifact, popcount=False)
    model = to_onnx(predictor)
    content = model.SerializeToString()
    if batches is None:
        shape = (RANDOM_IMAGES, *predictor.shape)
        batches = [np.random.default_rng(0).integers(0, 256, shape, np.uint8)]
    checked = None
    if importlib.util.find_spec("onnxruntime") is not None:
        checked = onnx_check.check(content, predictor, batches, tolerance)
    path = pathlib.Path(out) if out else pathlib.Path(artifact).with_suffix(".onnx")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    return {
        "file": str(path),
        "bytes": len(content),
        "nodes": len(model.graph.node),
        "check": checked,
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m quantnet_jax.export_onnx",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument("artifact", help="model.safetensors of quantnet_jax.export")
    parser.add_argument("--out", help="file to write; ARTIFACT with the ending .onnx")
    parser.add_argument("--images", help=".npy file, uint8[N, H, W, C], to check with")
    parser.add_argument(
        "--tolerance", type=float, default=onnx_check.TOLERANCE, help="of the logits"
    )
    args = parser.parse_args(argv)
    try:
        batches = None
        if args.images:
            batches = [np.load(args.images, allow_pickle=False)]
        result = export(args.artifact, args.out, batches, args.tolerance)
    except (ValueError, OSError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    size, nodes = result["bytes"], result["nodes"]
    print(
        f"{result['file']}: {size:,} bytes, {nodes} nodes; weights as float32, since "
        "ONNX has no 1-bit numbers"
    )
    print(told(result["check"]))
    return 0


def told(checked: dict[str, Any] | None) -> str:
    """What a check found, in a line."""
    if checked is None:
        return "not checked: onnxruntime is not installed"
    count, differ = checked["examples"], checked["differ"]
    text = (
        f"checked with onnxruntime: logits of {count - differ} of {count} images agree "
        f"within {checked['difference']:.2g}, and their classes do"
    )
    if differ:
        text += (
            f"; {differ} differ, where an activation was rounded to the other side of "
            "a quantizer's boundary: step by step they agree, too"
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
