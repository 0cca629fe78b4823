"""Predicts what image files show, with an exported network.

    python -m quantnet_jax.predict FILE IMAGE ... [--out=FOLDER]

FILE is an exported model.safetensors, or zoo:NAME. Prints what the outputs for each
image mean, such as its most probable classes; a network that draws images, as for
super-resolution, takes them in any size, and what it makes of each is saved as a PNG
in FOLDER (by default the current one). An image is turned upright as its EXIF
data require and converted to the network's channels (gray or RGB); one of another size
is resized so that its shorter side fits, and cropped at its center (a note on standard
error reports it). A network of drawings takes dark ink on light ground, and makes of it
what its dataset did.
"""

import contextlib
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

import quantnet_jax
from quantnet_jax import deploy, tasks
from quantnet_jax.common import command
from quantnet_jax.common.limits import Number, check
from quantnet_jax.common.pixels import eight_bits, silhouette

MODES = {1: "L", 3: "RGB"}
POPCOUNT = {"auto": "auto", "on": True, "off": False}
BATCH = 32
"""Largest number of images that go through the network at once."""
TILE = 256
"""Height and width of what is drawn at once: memory does not grow with an image."""


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
      ValueError: a file is no image, the network does not take images or would lose
        parts of one, or its outputs are not finite.
    """
    size, shape = max(1, min(BATCH, len(paths))), predictor.spec.shape
    ink = predictor.spec.info.get("ink")
    if ink is not None:
        check("info.ink", ink, Number(0, 1))
    for start in range(0, len(paths), size):
        some = paths[start : start + size]
        images = [read(path, shape, ink) for path in some]
        for path, (image, _) in zip(some, images, strict=True):
            try:
                predictor.check(image[None])
            except ValueError as e:
                raise ValueError(f"{os.fspath(path)}: {e}") from None
        # Always the same number of images: one compilation.
        batch = np.zeros((size, *shape), np.uint8)
        batch[: len(some)] = [image for image, _ in images]
        outputs = np.asarray(predictor.run(predictor.params, batch))  # all checked
        if not np.isfinite(outputs[: len(some)]).all():
            raise ValueError("the network's outputs are not finite")
        for path, row, (_, note) in zip(some, outputs, images, strict=False):
            yield os.fspath(path), row, note


def draw(
    predictor: deploy.Predictor, path: str | os.PathLike
) -> tuple[np.ndarray, str]:
    """What a network that draws images makes of an image file, whatever its size.

    Args:
      predictor: from `quantnet_jax.load`, of a task of `tasks.DRAWINGS`.
      path: of the image.

    Returns:
      (uint8 (H, W, C), a note on how the image was changed or '').

    Raises:
      FileNotFoundError, ValueError: as `predict`.
    """
    spec = predictor.spec
    drawing = tasks.DRAWINGS[spec.task]
    image, note = read(path, (0, 0, spec.shape[2]))
    laid = drawing.before(image, spec.info)
    around = laid.shape[0] - image.shape[0]
    # With less around it than the network sees, the image would have seams.
    seen = getattr(spec.network(), "reach", math.inf)
    tile = TILE if 2 * seen <= around else max(image.shape)
    rows, columns = (_starts(n, tile) for n in image.shape[:2])
    height, width = (min(tile, n) for n in image.shape[:2])
    whole = None
    for y, x in itertools.product(rows, columns):
        part = laid[y : y + height + around, x : x + width + around]
        outputs = np.asarray(predictor.run(predictor.params, part[None])[0])
        if not np.isfinite(outputs).all():
            raise ValueError("the network's outputs are not finite")
        drawn = drawing.after(outputs, part, spec.info, spec.mean, spec.std)
        scale = drawn.shape[0] // height
        if whole is None:
            sides = (scale * n for n in image.shape[:2])
            whole = np.zeros((*sides, drawn.shape[2]), np.uint8)
        place = slice(scale * y, scale * (y + height))
        whole[place, scale * x : scale * (x + width)] = drawn
    assert whole is not None
    return whole, note


def _starts(size: int, tile: int) -> list[int]:
    """Where tiles of one size begin along an axis; the last two may overlap."""
    last = max(0, size - tile)
    return [*range(0, last, tile), last]


def read(
    path: str | os.PathLike, shape: tuple[int, int, int], ink: float | None = None
) -> tuple[np.ndarray, str]:
    """An image file as uint8[H, W, C], and how it was changed, '' if not at all.

    A height of 0 takes the image in its own size. With `ink` it is a drawing, see
    `quantnet_jax.common.pixels.silhouette`.
    """
    from PIL import Image, ImageOps

    height, width, channels = shape
    if channels not in MODES:
        raise ValueError(f"the network takes {channels} channels, images have 1 or 3")
    if os.path.isdir(path):
        raise ValueError(f"{os.fspath(path)} is a folder, expected an image")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)} not found")
    try:
        with Image.open(path) as file:
            image, notes = ImageOps.exif_transpose(file), []
            if image.mode == "F":
                raise ValueError("its pixels are floats, expected integers")
            if image.mode.startswith("I"):
                gray = eight_bits(image)
                if image.mode != "I" and gray.max() < 16:
                    notes.append("16 bits of a pixel, none above 4095: nearly black")
                image = Image.fromarray(gray)
            elif "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
                image = image.convert("RGBA")
                if np.asarray(image)[..., 3].min() < 255:
                    notes.append("composed on a white background")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            if ink is not None:
                notes.append(
                    f"{image.width} x {image.height} pixels, squeezed to {width} x "
                    f"{height}, dark ink made white on black"
                )
                drawing = silhouette(image, (width, height), ink)
                image = Image.fromarray(drawing)
            image = image.convert(MODES[channels])
    except Exception as e:  # decoders document no list of them
        raise ValueError(
            f"{os.fspath(path)} is not an image, or damaged: {deploy.describe(e)}"
        ) from None
    if height and image.size != (width, height):
        notes.append(
            f"{image.width} x {image.height} pixels, resized and cropped to "
            f"{width} x {height}"
        )
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(image.height, image.width, channels)
    return pixels, ", ".join(notes)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command.Parser("predict", __doc__)
    parser.add_argument(
        "words", nargs="+", metavar="FILE IMAGE",
        help="model.safetensors of an export or zoo:NAME, then image files",
    )  # fmt: skip
    option = parser.add_argument
    option("--artifact", metavar="FILE", help="FILE as a flag: all others are images")
    option("--top", type=int, default=5, help="answers to print")
    option(
        "--popcount",
        default="auto",
        choices=POPCOUNT,
        help="products of signs as bit counts; auto: where export checked them",
    )
    option("--json", action="store_true", help="print one JSON object per image")
    option("--out", default=".", metavar="FOLDER", help="of images that are drawn")

    def work(args):
        first = () if args.artifact else (args.words[0],)
        artifact, images = args.artifact or args.words[0], args.words[len(first) :]
        if not images:
            parser.error("expected FILE IMAGE ..., or --artifact=FILE IMAGE ...")
        if args.top < 1:
            parser.error(f"--top={args.top}: expected 1 or more")
        predictor = quantnet_jax.load(artifact, popcount=POPCOUNT[args.popcount])
        spec = predictor.spec
        if spec.task in tasks.DRAWINGS:
            with _named(artifact, images):
                _draw_all(predictor, images, args.out, args.json)
            return
        describe = tasks.DESCRIBE.get(spec.task, tasks.describe_range)
        with command.phase("compiling the network"), _named(artifact, images):
            for path, outputs, note in predict(predictor, images):
                data, lines = describe(outputs, spec.info, args.top)
                if note:
                    print(f"note: {path}: {note}", file=sys.stderr)
                if args.json:
                    print(json.dumps({"image": path} | data))
                else:
                    print(path, *(f"  {line}" for line in lines), sep="\n")

    return command.run(parser, work, argv)


@contextlib.contextmanager
def _named(artifact: str, images: Sequence[str]) -> Iterator[None]:
    """Errors that do not begin with the name of an image are the artifact's."""
    try:
        yield
    except ValueError as e:
        of_image = str(e).startswith(tuple(images))
        raise ValueError(str(e) if of_image else f"{artifact}: {e}") from None


def _draw_all(predictor, paths: Sequence[str], folder: str, as_json: bool) -> None:
    """Saves what is drawn of each image, and prints where."""
    from PIL import Image

    spec = predictor.spec
    suffix = tasks.DRAWINGS[spec.task].suffix(spec.info)
    stem = lambda path: os.path.splitext(os.path.basename(path))[0]
    targets = [os.path.join(folder, f"{stem(path)}{suffix}.png") for path in paths]
    if twice := {x for x in targets if targets.count(x) > 1}:
        raise ValueError(f"several images would become {min(twice)}; rename them")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"--out={folder}: expected a folder")
    os.makedirs(folder, exist_ok=True)
    for path, target in zip(paths, targets, strict=True):
        with command.phase("compiling the network"):
            pixels, note = draw(predictor, path)
        Image.fromarray(pixels.squeeze()).save(target)
        if note:
            print(f"note: {path}: {note}", file=sys.stderr)
        size = f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
        data = {"image": path, "drawn": target, "shape": list(pixels.shape)}
        print(json.dumps(data) if as_json else f"{path}: {target}, {size}")


if __name__ == "__main__":
    sys.exit(main())
