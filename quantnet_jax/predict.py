"""Predictions for image files: `python -m quantnet_jax.predict FILE image.png ...`

FILE is an exported model.safetensors, or zoo:NAME. Prints what the outputs for each
image mean, such as its most probable classes. An image is turned upright as its EXIF
data require and converted to the network's channels (gray or RGB); one of another size
is resized so that its shorter side fits, and cropped at its center (a note on standard
error reports it).
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps

import quantnet_jax
from quantnet_jax import deploy, tasks

MODES = {1: "L", 3: "RGB"}
POPCOUNT = {"auto": "auto", "on": True, "off": False}
BATCH = 32
"""Largest number of images that go through the network at once."""


def predict(
    predictor: deploy.Predictor, paths: Sequence[str | os.PathLike]
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Outputs of the network for image files.

    Args:
      predictor: from `quantnet_jax.load`.
      paths: of the images.

    Yields:
      (path, outputs for the image, a note on how the image was changed or '').

    Raises:
      FileNotFoundError: there is no such image.
      ValueError: a file is no image, the network does not take images, or its outputs
        are not finite.
    """
    size, shape = max(1, min(BATCH, len(paths))), predictor.spec.shape
    for start in range(0, len(paths), size):
        some = paths[start : start + size]
        images = [read(path, shape) for path in some]
        # Always the same number of images: one compilation.
        batch = np.zeros((size, *shape), np.uint8)
        batch[: len(some)] = [image for image, _ in images]
        outputs = np.asarray(predictor(batch))
        if not np.isfinite(outputs[: len(some)]).all():
            raise ValueError("the network's outputs are not finite")
        for path, row, (_, note) in zip(some, outputs, images, strict=False):
            yield os.fspath(path), row, note


def read(
    path: str | os.PathLike, shape: tuple[int, int, int]
) -> tuple[np.ndarray, str]:
    """An image file as uint8[H, W, C], and how it was changed, '' if not at all."""
    height, width, channels = shape
    if channels not in MODES:
        raise ValueError(f"the network takes {channels} channels, images have 1 or 3")
    if os.path.isdir(path):
        raise ValueError(f"{os.fspath(path)} is a folder, expected an image")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)} not found")
    try:
        with Image.open(path) as file:
            image, note = ImageOps.exif_transpose(file), ""
            if image.mode == "F":
                raise ValueError("its pixels are floats, expected integers")
            if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
                image = image.convert("RGBA")
                if np.asarray(image)[..., 3].min() < 255:
                    note = "composed on a white background"
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off
                gray = np.asarray(image).astype(np.int64) >> 8
                image = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
            image = image.convert(MODES[channels])
    except Exception as e:  # decoders document no list of them
        raise ValueError(
            f"{os.fspath(path)} is not an image, or damaged: {deploy.describe(e)}"
        ) from None
    if image.size != (width, height):
        note += ", " if note else ""
        note += (
            f"{image.width} x {image.height} pixels, resized and cropped to "
            f"{width} x {height}"
        )
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape), note


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    usage, about = str(__doc__).split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m quantnet_jax.predict",
        description=f"{usage.split(':')[0]}. {about}",
    )
    parser.add_argument("model", help="model.safetensors of an export, or zoo:NAME")
    parser.add_argument("image", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=5, help="answers to print (5)")
    parser.add_argument(
        "--popcount",
        default="auto",
        choices=POPCOUNT,
        help="products of signs as bit counts; auto: where export checked them",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per image"
    )
    args = parser.parse_args(argv)
    try:
        if args.top < 1:
            raise ValueError(f"--top={args.top}, expected 1 or more")
        predictor = quantnet_jax.load(args.model, popcount=POPCOUNT[args.popcount])
        spec = predictor.spec
        describe = tasks.DESCRIBE.get(spec.task, tasks.describe_range)
        for path, outputs, note in predict(predictor, args.image):
            data, lines = describe(outputs, spec.info, args.top)
            if note:
                print(f"note: {path}: {note}", file=sys.stderr)
            if args.json:
                print(json.dumps({"image": path} | data))
            else:
                print(path, *(f"  {line}" for line in lines), sep="\n")
    except (ValueError, FileNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
