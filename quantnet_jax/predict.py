"""Classes of pictures: `python -m quantnet_jax.predict model.safetensors image.png ...`

Prints the most probable classes of each picture. A picture is turned upright as its
EXIF data say and converted to the network's channels (gray or RGB); one of another size
is resized so that its shorter side fits, and cropped at its centre (a note on standard
error says so).
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps

import quantnet_jax
from quantnet_jax import deploy

MODES = {1: "L", 3: "RGB"}
POPCOUNT = {"auto": "auto", "on": True, "off": False}
BATCH = 32
"""Pictures that go through the network at once, at most."""


def predict(
    predictor: deploy.Predictor, paths: Sequence[str | os.PathLike], top: int = 5
) -> Iterator[tuple[str, list[tuple[str, float]], str]]:
    """Classifies picture files.

    Args:
      predictor: from `quantnet_jax.load`.
      paths: of the pictures.
      top: how many classes, at least 1.

    Yields:
      (path, [(class, probability), ...] with the most probable first, a note on what
      was done to the picture or '').

    Raises:
      FileNotFoundError: there is no such picture.
      ValueError: a file is no picture, or the network does not take pictures.
    """
    size = max(1, min(BATCH, len(paths)))
    for start in range(0, len(paths), size):
        some = paths[start : start + size]
        pictures = [read(path, predictor.shape) for path in some]
        # Always the same number of images: one compilation.
        batch = np.zeros((size, *predictor.shape), np.uint8)
        batch[: len(some)] = [image for image, _ in pictures]
        logits = np.asarray(predictor.logits(batch), np.float64)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        odds /= odds.sum(-1, keepdims=True)
        for path, p, (_, note) in zip(some, odds, pictures, strict=False):
            best = np.argsort(-p, kind="stable")[:top]
            found = [(predictor.classes[i], float(p[i])) for i in best]
            yield os.fspath(path), found, note


def read(
    path: str | os.PathLike, shape: tuple[int, int, int]
) -> tuple[np.ndarray, str]:
    """A picture file as uint8[H, W, C], and what was done to it, '' for nothing."""
    height, width, channels = shape
    if channels not in MODES:
        raise ValueError(f"the network takes {channels} channels, pictures have 1 or 3")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)} not found")
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off
                gray = np.asarray(picture).astype(np.int64) >> 8
                picture = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
            picture = picture.convert(MODES[channels])
    except Exception as e:  # decoders do not say which ones
        raise ValueError(
            f"{os.fspath(path)} is no picture, or damaged: {deploy.describe(e)}"
        ) from None
    note = ""
    if picture.size != (width, height):
        note = (
            f"{picture.width} x {picture.height} pixels, resized and cropped to "
            f"{width} x {height}"
        )
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape), note


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    usage, about = str(__doc__).split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m quantnet_jax.predict",
        description=f"{usage.split(':')[0]}. {about}",
    )
    parser.add_argument("model", help="model.safetensors of an export, or zoo:NAME")
    parser.add_argument("image", nargs="+", help="picture files")
    parser.add_argument("--top", type=int, default=5, help="classes to print (5)")
    parser.add_argument(
        "--popcount",
        default="auto",
        choices=POPCOUNT,
        help="products of signs as bit counts; auto: where export checked them",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per picture"
    )
    args = parser.parse_args(argv)
    try:
        if args.top < 1:
            raise ValueError(f"--top={args.top}, expected 1 or more")
        predictor = quantnet_jax.load(args.model, popcount=POPCOUNT[args.popcount])
        for path, classes, note in predict(predictor, args.image, args.top):
            if note:
                print(f"note: {path}: {note}", file=sys.stderr)
            print(as_json(path, classes) if args.json else as_text(path, classes))
    except (ValueError, FileNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def as_json(path: str, classes: list[tuple[str, float]]) -> str:
    """One line of JSON."""
    rows = [{"class": name, "probability": p} for name, p in classes]
    return json.dumps({"image": path, "classes": rows})


def as_text(path: str, classes: list[tuple[str, float]]) -> str:
    """A line for each class below that of the picture."""
    # Names come from a file: they may not move the cursor.
    names = [
        ascii(name)[1:-1] if not name.isprintable() else name for name, _ in classes
    ]
    wide = max(map(len, names))
    rows = zip(names, (p for _, p in classes), strict=True)
    return "\n".join(
        [path, *(f"  {name:{wide}s}  {100 * p:6.2f}%" for name, p in rows)]
    )


if __name__ == "__main__":
    sys.exit(main())
