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
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from quantnet_jax import __version__, deploy
from quantnet_jax.deploy.packed import float_tree

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4
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
    from quantnet_jax import onnx_graph

    spec = predictor.spec
    dtype = spec["model"].get("dtype", "float32")
    if dtype != "float32":
        raise ValueError(
            f"the network computes in {dtype}, expected float32: few ONNX runtimes "
            "have other convolutions"
        )
    weights = jax.tree.map(np.asarray, float_tree(predictor.params))
    model = onnx_graph.convert(
        lambda images: predictor.apply(weights, images),
        predictor.shape,
        name=str(spec["model"]["name"]),
    )
    model.producer_version = __version__
    model.doc_string = "Input: uint8 images, not normalized. Output: logits."
    about = {"classes": list(predictor.classes), "quantnet_jax": spec}
    for key, value in about.items():
        model.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True))
    return model


def check(
    content: bytes,
    predictor: deploy.Predictor,
    images: np.ndarray,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Compares an ONNX model in onnxruntime with the artifact's own predictor.

    A sum that is rounded differently can fall on the other side of a boundary of an
    activation quantizer, and then the logits of that image are others. So a network
    with quantized activations passes if at least half of the images agree; one without
    passes only if all do.

    Args:
      content: bytes of the ONNX file.
      predictor: of the artifact.
      images: uint8[N, H, W, C].
      tolerance: largest difference of logits in images that agree, relative to the
        largest logit where that is above 1.

    Returns:
      {'difference': the largest in images that agree, 'differ': number of others}.

    Raises:
      ImportError: onnxruntime is not installed.
      ValueError: too many images differ, or a class does whose logit is ahead of the
        second by more than the tolerance, in an image that agrees.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = np.asarray(predictor.logits(images))
    found = np.asarray(session.run(None, {"images": np.asarray(images)})[0])
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    differences = np.abs(found - expected).max(-1)
    agree = differences <= allowed  # False for NaN
    ranked = np.sort(expected, axis=-1)
    clear = ranked[:, -1] - ranked[:, -2:][:, 0] > allowed
    wrong = agree & clear & (found.argmax(-1) != expected.argmax(-1))
    differ = int((~agree).sum())
    quantized = bool(predictor.spec.get("activation"))
    if differ > (len(images) // 2 if quantized else 0) or wrong.any():
        raise ValueError(
            f"onnxruntime's logits of {differ} of {len(images)} images differ by more "
            f"than {allowed:.2g} (up to {differences.max():.2g}), and {wrong.sum()} "
            "clear classes of the others do; nothing was written"
        )
    return {"difference": float(differences[agree].max()), "differ": differ}


def export(
    artifact: str | os.PathLike,
    out: str | os.PathLike | None = None,
    images: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Writes and checks the ONNX model of an artifact; whole or not at all.

    Args:
      artifact: file written by `quantnet_jax.export`.
      out: ONNX file; default ARTIFACT with the ending .onnx.
      images: uint8[N, H, W, C] to check with; default random ones.
      tolerance: see `check`.

    Returns:
      {'file': path, 'bytes', 'nodes', 'examples', 'check': as `check`, or None if
      onnxruntime is not installed}.

    Raises:
      FileNotFoundError, ValueError, ImportError: as `deploy.load`, `to_onnx`, `check`.
    """
    predictor = deploy.load(artifact, popcount=False)
    model = to_onnx(predictor)
    content = model.SerializeToString()
    if images is None:
        shape = (RANDOM_IMAGES, *predictor.shape)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    checked = None
    if importlib.util.find_spec("onnxruntime") is not None:
        checked = check(content, predictor, images, tolerance)
    path = pathlib.Path(out) if out else pathlib.Path(artifact).with_suffix(".onnx")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    return {
        "file": str(path),
        "bytes": len(content),
        "nodes": len(model.graph.node),
        "examples": len(images),
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
        "--tolerance", type=float, default=TOLERANCE, help="of the logits"
    )
    args = parser.parse_args(argv)
    try:
        images = np.load(args.images, allow_pickle=False) if args.images else None
        result = export(args.artifact, args.out, images, args.tolerance)
    except (ValueError, OSError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    size, nodes = result["bytes"], result["nodes"]
    print(
        f"{result['file']}: {size:,} bytes, {nodes} nodes; weights as float32, since "
        "ONNX has no 1-bit numbers"
    )
    if result["check"] is None:
        print("not checked: onnxruntime is not installed")
        return 0
    differ, count = result["check"]["differ"], result["examples"]
    print(
        f"checked with onnxruntime: logits of {count - differ} of {count} images agree "
        f"within {result['check']['difference']:.2g}, and their classes do"
    )
    if differ:
        print(f"{differ} differ: quantized activations, rounded to the other side")
    return 0


if __name__ == "__main__":
    sys.exit(main())
