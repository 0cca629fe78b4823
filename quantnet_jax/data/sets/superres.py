"""Super-resolution: photographs and their bicubic reductions, of the usual test sets.

Training images: the 200 of BSDS300 (Martin et al., ICCV 2001). Tests: Set5 (Bevilacqua
et al., BMVC 2012), Set14 (Zeyde et al., 2010), BSD100 (Martin et al.).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from quantnet_jax.data.bicubic import resize
from quantnet_jax.data.dataset import Dataset, check
from quantnet_jax.data.files import shown
from quantnet_jax.data.zips import image_reader, unzip

TRAIN = "BSDS200_train"
TESTS = {"superres": ("Set5", "Set14"), "bsd100": ("BSD100",)}
"""Name of a dataset, without its factor -> archives of its test images."""
NAMES = tuple(f"{name}_x{scale}" for name in TESTS for scale in (2, 4))
PIXELS = 3 * 2**24
"""Of all images, at most; those of the usual sets have 46 million."""
SIDE = 768
"""Pixels of a side, at most: as the largest of the usual sets has."""
CANVASES = 2**28
"""Bytes of all test images on their canvases, at most."""


def read_superres(name: str, folder: str | Path) -> Dataset:
    """Photographs, reduced by 2 or 4 (`image`) and as they are (`target`).

    Each photograph is cropped at its right and bottom to a multiple of the factor and
    reduced by `bicubic.resize`, which gives the published inputs of Set5 and Set14 bit
    for bit. Photographs of training that are upright are transposed. Those of a test
    have many sizes: they lie on canvases of one size, at its top left, and repeat their
    edge; see `with_margin`.

    Besides the classes ('BSDS200_train', 'Set5/baby', ...: one for each test image)
    `info` has 'scale', 'margin', 'areas' (top, left, height, width on the small canvas)
    and 'gray' (whether a file is) of each class.

    Args:
      name: one of `NAMES`.
      folder: holds BSDS200_train.zip, Set5.zip, Set14.zip and BSD100.zip, as needed.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or holds no photographs.
    """
    test, factor = name.rsplit("_x", 1)
    scale, folder = int(factor), Path(folder)
    path = folder / f"{TRAIN}.zip"
    image = image_reader(SIDE, PIXELS)
    read = _photographs(path, scale, image)
    train = {k: _upright(x) for k, (x, _) in read.items()}
    pairs = [_pair(x, scale) for x in train.values()]
    height, width = pairs[0][0].shape[:2]
    for key, (low, _) in zip(train, pairs, strict=True):
        if low.shape[:2] != (height, width):
            raise ValueError(
                f"{shown(f'{path}:{key}')}: reduced to {low.shape[1]} x "
                f"{low.shape[0]} pixels, expected {width} x {height} as the first is"
            )
    found = {
        f"{part}/{key}": value
        for part in TESTS[test]
        for key, value in _photographs(folder / f"{part}.zip", scale, image).items()
    }
    tests = [_pair(x, scale) for x, _ in found.values()]
    sizes = [x.shape[:2] for x, _ in tests]
    canvas = np.max(sizes, 0)
    _check_canvases(", ".join(TESTS[test]), len(tests), canvas, scale)
    return check(
        Dataset(
            train_image=np.stack([x for x, _ in pairs]),
            train_label=np.zeros(len(pairs), np.int32),
            test_image=np.stack([_laid(x, canvas, "edge") for x, _ in tests]),
            test_label=np.arange(1, len(tests) + 1, dtype=np.int32),
            classes=(TRAIN, *found),
            name=name,
            train_target=np.stack([x for _, x in pairs]),
            test_target=np.stack(
                [_laid(x, scale * canvas, "constant") for _, x in tests]
            ),
            more={
                "scale": scale,
                "margin": 0,
                "areas": [[0, 0, *map(int, x)] for x in ((height, width), *sizes)],
                "gray": [False, *(gray for _, gray in found.values())],
            },
        )
    )


def with_margin(dataset: Dataset, margin: int) -> Dataset:
    """Test images with further pixels around them, which repeat those of their edge.

    With as many as a network looks beyond a pixel, its outputs are those of the image
    alone, whatever the canvas.

    Args:
      dataset: one without targets stays as it is.
      margin: pixels of the small images.

    Raises:
      ValueError: they would take more memory than they may.
    """
    if dataset.test_target is None:
        return dataset
    scale, (count, *sides, _) = dataset.more["scale"], dataset.test_image.shape
    canvas = np.asarray(sides) + 2 * margin
    _check_canvases(dataset.name, count, canvas, scale)
    around = lambda n: [(0, 0), (n, n), (n, n), (0, 0)]
    areas = [[margin + y, margin + x, *size] for y, x, *size in dataset.more["areas"]]
    return dataset._replace(
        test_image=np.pad(dataset.test_image, around(margin), "edge"),
        test_target=np.pad(dataset.test_target, around(scale * margin)),
        more=dict(dataset.more, margin=margin, areas=areas),
    )


def reduced(dataset: Dataset, scale: int) -> Dataset:
    """The images of a dataset as targets, reduced by bicubic interpolation as images.

    Args:
      dataset: of images whose sides are multiples of the factor.
      scale: the factor.

    Returns:
      A dataset as `read_superres` makes them, of a single class and without canvases.
    """
    arrays = {}
    for part in ("train", "test"):
        images = getattr(dataset, f"{part}_image")
        height, width = (size // scale for size in images.shape[1:3])
        arrays[f"{part}_target"] = images
        arrays[f"{part}_image"] = np.stack([resize(x, height, width) for x in images])
        arrays[f"{part}_label"] = np.zeros(len(images), np.int32)
    more = {"scale": scale, "margin": 0}
    more |= {"areas": [[0, 0, height, width]], "gray": [False]}
    return dataset._replace(
        **arrays, classes=("images",), name=f"{dataset.name}_x{scale}", more=more
    )


def _photographs(
    path: Path, scale: int, image: Callable
) -> dict[str, tuple[np.ndarray, bool]]:
    """{name: (uint8 [H, W, 3], whether the file is gray)} of the full-size images."""
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)} not found: expected the archive")

    def photograph(file: BinaryIO) -> tuple[np.ndarray, bool]:
        read = image(file)
        if min(read.size) < scale:
            raise ValueError(f"{read.width} x {read.height} pixels, at least {scale}")
        return np.asarray(read.convert("RGB")), read.mode == "L"

    def wanted(name: str) -> bool:
        reduced = Path(name).parent.name.startswith("LR_")
        return not reduced and name.endswith((".png", ".jpg"))

    expected = "photographs as PNG or JPEG files"
    found = unzip(path, wanted, photograph, expected)
    return {Path(name).stem: pixels for name, pixels in found.items()}


def _upright(image: np.ndarray) -> np.ndarray:
    """Wider than high, transposed if it must be."""
    return image if image.shape[0] <= image.shape[1] else image.swapaxes(0, 1)


def _pair(image: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """(reduced, cropped to a multiple of the factor)."""
    height, width = (size // scale for size in image.shape[:2])
    image = image[: height * scale, : width * scale]
    return resize(image, height, width), image


def _laid(image: np.ndarray, canvas: np.ndarray, mode) -> np.ndarray:
    """An image at the top left of a canvas."""
    after = [int(c) - s for c, s in zip(canvas, image.shape, strict=False)]
    return np.pad(image, [*((0, x) for x in after), (0, 0)], mode)


def _check_canvases(of: str, count: int, canvas: np.ndarray, scale: int) -> None:
    """Refuses test images that take too much memory."""
    if (total := count * int(canvas.prod()) * scale**2 * 3) > CANVASES:
        raise ValueError(
            f"the test images of {of} take {total} bytes on canvases of {canvas[1]} x "
            f"{canvas[0]} pixels, expected at most {CANVASES}"
        )
