"""Omniglot: binary drawings of characters, whole alphabets or drawers held out.

Lake et al., Human-level concept learning through probabilistic program induction, 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from quantnet_jax.common.pixels import silhouette
from quantnet_jax.data.dataset import Dataset, check
from quantnet_jax.data.files import shown
from quantnet_jax.data.zips import image_reader, unzip

SMALL = ("images_background_small1.zip", "images_background_small2.zip")
WHOLE = ("images_background.zip", "images_evaluation.zip")
SIZE = 28
SIDE = 1024
"""Pixels of a side of a drawing in the file, at most; the originals have 105."""
INK = 0.3
"""Share of the drawing under a pixel, from which on the pixel is ink."""
MORE = {"ink": INK}


def read_omniglot(folder: str | Path) -> Dataset:
    """Drawings of two archives, as silhouettes of 28 x 28.

    The archives are images_background.zip and images_evaluation.zip (1,623 characters)
    where they are, else images_background_small1.zip and images_background_small2.zip
    (242). Train: the alphabets of the first; test: those of the second that the first
    does not have. So no test character is a training one; labels count both. Pixels
    are 0 and 255 (ink), and `info` has 'ink', with which `silhouette` made them.

    Args:
      folder: holds both archives.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or holds no drawings.
    """
    parts = _archives(folder)
    seen = {name.split("/")[0] for name in parts[0]}
    parts[1] = {k: v for k, v in parts[1].items() if k.split("/")[0] not in seen}
    classes = (*sorted(parts[0]), *sorted(parts[1]))
    arrays = []
    for part in parts:
        names = sorted(part)
        arrays += _joined([part[n] for n in names], [classes.index(n) for n in names])
    return check(Dataset(*arrays, classes=classes, name="omniglot", more=MORE))


TEST_DRAWERS = 5
"""Of the 20 drawers of a character, the last ones."""


def read_drawers(folder: str | Path) -> Dataset:
    """All characters of both sets, drawn by other people in training than in test.

    As `read_omniglot`, but of every character the last five drawings are for test, the
    others for training: a drawing's number is its drawer's.
    """
    parts = _archives(folder)
    found = parts[1] | parts[0]  # alphabets of both have the same drawings
    classes = tuple(sorted(found))
    arrays = []
    for part in (slice(None, -TEST_DRAWERS), slice(-TEST_DRAWERS, None)):
        drawings = [found[name][part] for name in classes]
        arrays += _joined(drawings, range(len(classes)))
    return check(Dataset(*arrays, classes=classes, name="omniglot_drawers", more=MORE))


def _joined(
    drawings: Sequence[np.ndarray], labels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of characters, perhaps of none."""
    none = np.empty((0, SIZE, SIZE, 1), np.uint8)
    label = np.repeat(np.array(labels, np.int32), [*map(len, drawings)] or 0)
    return np.concatenate([none, *drawings]), label


def _archives(folder: str | Path) -> list[dict[str, np.ndarray]]:
    """`_drawings` of both archives, the full ones where there is one of them."""
    whole = any((Path(folder) / name).is_file() for name in WHOLE)
    return [_drawings(Path(folder) / name) for name in (WHOLE if whole else SMALL)]


def _drawings(path: Path) -> dict[str, np.ndarray]:
    """{'Alphabet/character': uint8 (N, 28, 28, 1)} of one archive."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{shown(path)} not found: expected the original archive"
        )
    image = image_reader(SIDE, 2**28)

    def drawing(file: BinaryIO) -> np.ndarray:
        """uint8 (28, 28): 255 where there is ink."""
        return silhouette(image(file), (SIZE, SIZE), INK)

    expected = "drawings as PNG files in */ALPHABET/CHARACTER/"
    found: dict[str, list[np.ndarray]] = {}
    made = unzip(path, lambda name: name.endswith(".png"), drawing, expected)
    for name, pixels in made.items():
        if len(place := name.split("/")) != 4:
            raise ValueError(f"{shown(f'{path}:{name}')}: expected {expected}")
        found.setdefault("/".join(place[1:3]), []).append(pixels)
    return {k: np.stack(v)[..., None] for k, v in found.items()}
