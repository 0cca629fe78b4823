"""Converts a packed artifact to ONNX, and checks the model in onnxruntime.

    python -m quantnet_jax.export_onnx model.safetensors [--out=model.onnx]
        [--images=FILE.npy] [--tolerance=1e-4]

Needs the packages onnx and, for the check, onnxruntime (`pip install
"quantnet_jax[onnx]"`), but no training code.
"""

import pathlib
import sys
from typing import Any

import numpy as np

import quantnet_jax
from quantnet_jax import deploy
from quantnet_jax.common import command
from quantnet_jax.common.files import check_place
from quantnet_jax.deploy import onnx
from quantnet_jax.deploy.onnx.check import TOLERANCE
from quantnet_jax.zoo import PREFIX


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command.Parser("export_onnx", __doc__)
    parser.add_subject("artifact", "FILE", "model.safetensors, or zoo:NAME")
    option = parser.add_argument
    option("--out", help="file to write; FILE with the ending .onnx")
    option("--images", help=".npy file, uint8[N, H, W, C], to check with")
    option("--tolerance", type=float, default=TOLERANCE, help="of the outputs")

    def work(args):
        name = args.artifact.removeprefix(PREFIX)
        out = args.out or pathlib.Path(name).with_suffix(".onnx")
        check_place(out)
        predictor = quantnet_jax.load(args.artifact, popcount=False)
        batches = [_images(args.images)] if args.images else None
        with command.phase("converting, and checking in onnxruntime"):
            result = onnx.write(out, predictor, batches, args.tolerance)
        print(
            f"{result['file']}: {result['bytes']:,} bytes, {result['nodes']} nodes; "
            "weights as float32, since ONNX has no 1-bit numbers"
        )
        print(check_text(result["check"]))

    return command.run(parser, work, argv)


def _images(path: str) -> np.ndarray:
    try:
        if not pathlib.Path(path).is_file():  # reading a pipe would wait for ever
            raise ValueError("expected a file")
        # Mapped: a header may say any size.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
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
