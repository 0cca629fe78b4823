"""Images of one's own in folders by class: listed, held in memory, or streamed."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from quantnet_jax.common.pixels import eight_bits
from quantnet_jax.data.dataset import Dataset, check
from quantnet_jax.data.files import LARGEST, as_folder, one_line, shown
from quantnet_jax.data.jpeg import check_size, decode_eval
from quantnet_jax.data.zips import open_image

FOLDER = "folder"
"""The name of such a dataset in a configuration."""
ENDINGS = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
TEST = ("test", "val", "validation")
IN_MEMORY = 2**28
"""Bytes of decoded images up to which a dataset is held in memory."""


def listing(folder: Any) -> Dataset:
    """The files of a dataset, in the place of their images.

    Args:
      folder: holds train/CLASS/FILE and test/CLASS/FILE ('val' and 'validation' will do
        for 'test'), or CLASS/FILE, which are training images. Classes are sorted by
        name, and so are the files of each; names that begin with a dot are ignored.

    Returns:
      A dataset whose images are an object array of paths; perhaps without test images.

    Raises:
      FileNotFoundError: there is no such folder, or no image in it.
      ValueError: a class is empty, or only among the test images.
    """
    root = as_folder(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{shown(root)}: no such folder")
    train = root / "train" if (root / "train").is_dir() else root
    classes = tuple(sorted(x.name for x in _visible(train) if x.is_dir()))
    tests = [root / name for name in TEST if train != root and (root / name).is_dir()]
    arrays = [*_files(train, classes)]
    if not len(arrays[0]):
        raise FileNotFoundError(
            f"{shown(train)}: no images, expected CLASS/FILE with one of "
            f"{', '.join(ENDINGS)}"
        )
    for c in np.flatnonzero(np.bincount(arrays[1], minlength=len(classes)) == 0):
        raise ValueError(f"{shown(train / classes[c])}: no images in this class")
    if tests:
        others = {x.name for x in _visible(tests[0]) if x.is_dir()} - {*classes}
        if others:
            where = shown(tests[0] / min(others))
            raise ValueError(f"{where}: no such class in {shown(train)}")
        arrays += _files(tests[0], classes)
    else:
        arrays += [np.empty(0, object), np.empty(0, np.int32)]
    return Dataset(*arrays, classes=classes, name=FOLDER)


def _visible(folder: Any) -> list:
    hidden = (".", "__MACOSX")
    return [x for x in folder.iterdir() if not x.name.startswith(hidden)]


def _files(folder: Any, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    paths, label = [], []
    for number, name in enumerate(classes):
        found = _visible(folder / name) if (folder / name).is_dir() else []
        found = sorted(x for x in found if x.name.lower().endswith(ENDINGS))
        paths += found
        label += [number] * len(found)
    images = np.empty(len(paths), object)
    images[:] = paths
    return images, np.array(label, np.int32)


@dataclasses.dataclass(frozen=True)
class Files:
    """Files of images as a source of encoded ones, see `streaming.load_source`."""

    paths: np.ndarray
    label: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """{'image': bytes, 'label': int} of some rows."""
        return [
            {"image": plain(content(self.paths[i])), "label": int(self.label[i])}
            for i in rows
        ]

    def name(self, row: int) -> str:
        """For messages."""
        return shown(self.paths[row])


def sources(dataset: Dataset) -> tuple[Files, Files]:
    """Training and test images of a `listing`."""
    return (
        Files(dataset.train_image, dataset.train_label, dataset.classes),
        Files(dataset.test_image, dataset.test_label, dataset.classes),
    )


def content(path: Any) -> bytes:
    """What a file holds.

    Raises:
      OSError: it is too large, or no regular file: a pipe or device never ends.
    """
    if not path.is_file():
        raise OSError("it is no regular file, expected an image")
    with path.open("rb") as file:
        found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise OSError(f"it has more than {LARGEST} bytes, expected an image")
    return found


def plain(content: bytes) -> bytes:
    """An image that decodes to upright RGB: the same, or where it must be a BMP.

    Turned as its EXIF data require, transparent pixels on white, 16 bits to 8.

    Raises:
      OSError: the image is damaged or too large.
      ValueError: its values take more than 16 bits.
    """
    from PIL import Image, ImageOps

    with open_image(io.BytesIO(content)) as image:
        check_size(*image.size)
        if image.mode == "F":
            raise OSError("its pixels are floats, expected integers")
        turned = image.getexif().get(0x0112, 1) != 1
        alpha = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA")
        deep = image.mode.startswith("I")
        if not (turned or alpha or deep):
            return content
        image = ImageOps.exif_transpose(image)
        if deep:
            image = Image.fromarray(eight_bits(image))
        elif alpha:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        out = io.BytesIO()
        image.convert("RGB").save(out, "BMP")
    return out.getvalue()


def first_size(dataset: Dataset) -> tuple[int, int]:
    """(height, width) of the first training image, upright.

    Raises:
      ValueError: it is unreadable.
    """
    from PIL import Image

    path = dataset.train_image[0]
    try:
        with Image.open(io.BytesIO(plain(content(path)))) as image:
            return image.height, image.width
    except Exception as error:  # decoders document no list of them
        raise ValueError(
            f"{shown(path)} is not an image, or damaged: {one_line(error)}"
        ) from None


def decoded(dataset: Dataset, size: int, unreadable: Any) -> Dataset:
    """The images of a `listing`, in memory.

    Args:
      dataset: of paths.
      size: height and width; the shorter side is resized to it and the center cropped.
        0: as they are, all of one size.
      unreadable: an `Unreadable`; those images are left out.

    Raises:
      ValueError: images differ in size, or too many are unreadable.
    """
    arrays, shape = [], (size, size) if size else first_size(dataset)
    for source in sources(dataset):
        image = np.empty((len(source), *shape, 3), np.uint8)
        good = np.ones(len(source), bool)
        for row in range(len(source)):
            try:
                (example,) = source.__getitems__([row])
                pixels = decode_eval(example["image"], size, size)
            except MemoryError:
                raise
            except Exception:  # decoders document no list of them
                unreadable.add(source, [row])
                good[row] = False
                continue
            if pixels.shape[:2] != shape:
                raise ValueError(
                    f"{source.name(row)} has {pixels.shape[1]} x {pixels.shape[0]} "
                    f"pixels, expected {shape[1]} x {shape[0]} as the first image has; "
                    "set data.image_size to resize and crop them"
                )
            image[row] = pixels
        arrays += [image[good], source.label[good]]
    return check(Dataset(*arrays, classes=dataset.classes, name=dataset.name))
