"""Converts a packed artifact to ONNX, and checks the model in onnxruntime.

    python -m quantnet_jax.export_onnx model.safetensors [--out=model.onnx]
        [--images=FILE.npy] [--tolerance=1e-4]

Needs the packages onnx and, for the check, onnxruntime (`pip install
"quantnet_jax[onnx]"`), but no training code.
"""

import argparse
import pathlib
import sys
from typing import Any

import numpy as np

from quantnet_jax import deploy
from quantnet_jax.deploy import onnx
from quantnet_jax.deploy.onnx.check import TOLERANCE


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
        "--tolerance", type=float, default=TOLERANCE, help="of the outputs"
    )
    args = parser.parse_args(argv)
    out = args.out or pathlib.Path(args.artifact).with_suffix(".onnx")
    try:
        predictor, batches = deploy.load(args.artifact, popcount=False), None
        if args.images:
            batches = [_images(args.images)]
        result = onnx.write(out, predictor, batches, args.tolerance)
    except (ValueError, OSError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(
        f"{result['file']}: {result['bytes']:,} bytes, {result['nodes']} nodes; "
        "weights as float32, since ONNX has no 1-bit numbers"
    )
    print(check_text(result["check"]))
    return 0


def _images(path: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as e:  # a hostile header can raise anything
        raise ValueError(f"{path}: {deploy.describe(e)}") from None


def check_text(checked: dict[str, Any] | None) -> str:
    """One line about the result of a check."""
    if checked is None:
        return "not checked: onnxruntime is not installed"
    count, differ = checked["examples"], checked["differ"]
    text = (
        f"checked with onnxruntime: outputs of {count - differ} of {count} images "
        f"agree within {checked['difference']:.2g}"
    )
    if differ:
        text += (
            f"; {differ} differ, where an activation was rounded to the other side of "
            "a quantizer's boundary: step by step they agree, too"
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
