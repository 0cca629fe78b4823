"""Loads in-memory image datasets by name; class names and channel statistics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quantnet_jax.common.names import nearest
from quantnet_jax.data.dataset import (
    Dataset,
    check,
    statistics,
    subset,
    validation_split,
)
from quantnet_jax.data.sets import folders, voxels
from quantnet_jax.data.sets.formats import CIFAR10, CIFAR100, read_cifar, read_idx
from quantnet_jax.data.sets.omniglot import read_drawers, read_omniglot
from quantnet_jax.data.sets.superres import NAMES as SUPERRES
from quantnet_jax.data.sets.superres import read_superres, reduced
from quantnet_jax.data.sets.tfds_source import load_tfds

NAMES = (
    *("bundled", "cifar10", "cifar100", "fashion_mnist", "mnist", "omniglot"),
    *("omniglot_drawers", "modelnet40", "shapes", *SUPERRES),
    *(GENERATED := ("synthetic", "synthetic_x2")),
)

READERS: dict[str, Callable[[Any], Dataset]] = {
    "omniglot": read_omniglot,
    "omniglot_drawers": read_drawers,
    "modelnet40": voxels.read_modelnet,
    **{name: partial(read_superres, name) for name in SUPERRES},
}
"""Datasets of archives -> `folder -> dataset`."""
WITHOUT_FOLDER = ("bundled", "shapes", *GENERATED)
"""Datasets that ship or are generated."""

SYNTHETIC = {"train": 256, "test": 64}
"""Numbers of images of `synthetic` by default."""
BUNDLED_FILE = Path(__file__).parents[1] / "bundled" / "fashion_mnist_12k.tar.xz"

_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CLASSES: dict[str, tuple[str, ...]] = {
    "bundled": _FASHION,
    "fashion_mnist": _FASHION,
    "mnist": tuple("0123456789"),
    "cifar10": tuple(
        "airplane automobile bird cat deer dog frog horse ship truck".split()
    ),
    "cifar100": tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
        bridge bus butterfly camel can castle caterpillar cattle chair
        chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
        dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
        motorcycle mountain mouse mushroom oak_tree orange orchid otter
        palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
        possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower
        sweet_pepper table tank telephone television tiger tractor train
        trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
    ),
}

# Mean and standard deviation per channel of the training images / 255.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.13066048,), (0.30810781,)),
    "fashion_mnist": ((0.28604060,), (0.35302424,)),
    "cifar10": (
        (0.49139968, 0.48215841, 0.44653091),
        (0.24703223, 0.24348513, 0.26158784),
    ),
    "cifar100": (
        (0.50707516, 0.48654887, 0.44091784),
        (0.26733429, 0.25643846, 0.27615047),
    ),
    # The usual constants, of a sample of ImageNet.
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Not centred: a pixel without ink, or a voxel without a point, stays 0.
    "omniglot_drawers": ((0.0,), (1.0,)),
    "modelnet40": ((0.0,) * voxels.SIDE, (1.0,) * voxels.SIDE),
    "shapes": ((0.0,) * voxels.SIDE, (1.0,) * voxels.SIDE),
}


def load(
    name: str,
    folder: str | Path | None = None,
    **sizes: int,
) -> Dataset:
    """Loads a dataset.

    Args:
      name: "bundled" (10,000 + 2,000 images of Fashion-MNIST, no download),
        "synthetic", "synthetic_x2" (in pairs for super-resolution), "shapes"
        (generated, see `data.sets.voxels`), or "cifar10", "cifar100",
        "fashion_mnist", "mnist", "omniglot", "omniglot_drawers" (alphabets or drawers
        held out, see `data.sets.omniglot`), "modelnet40" (two of its classes, as
        voxels), "superres_x2", "superres_x4", "bsd100_x2", "bsd100_x4" (see
        `data.sets.superres`).
      folder: holds the original files: for CIFAR the *binary* version (the
        .bin files, or the archive cifar-10-binary / cifar-100-binary as .tar.gz,
        .tar.xz or .tar; unpacked files load faster), for the others the four idx
        files, with or without .gz. None: through `tfds.data_source`
        (same images and labels, in the order of TFDS).
      **sizes: of "synthetic" only, see `synthetic`.

    Returns:
      The dataset, checked.

    Raises:
      FileNotFoundError: the folder or a file is missing.
      ValueError: the name is unknown, or a file is truncated, of another format, or
        has a label out of range.
      ImportError: TFDS is needed and not installed.

    Example:
      >>> load("bundled").train_image.shape
      (10000, 28, 28, 1)
    """
    folder = folder or None
    if name not in NAMES:
        raise ValueError(f"name={name!r} is no known dataset{nearest(name, NAMES)}")
    if sizes and name not in GENERATED:
        raise ValueError(
            f"{sorted(sizes)} are arguments of 'synthetic', not of {name!r}; use "
            "subset()"
        )
    if name in WITHOUT_FOLDER and folder is not None:
        others = tuple(x for x in NAMES if x not in WITHOUT_FOLDER)
        raise ValueError(
            f"folder={str(folder)!r}: {name!r} is not read from a folder; leave it "
            f"out, or name one of {others}"
        )
    if name == "synthetic":
        return synthetic(**sizes)
    if name == "synthetic_x2":
        return reduced(synthetic(**sizes | {"size": 2 * sizes.get("size", 8)}), 2)
    if name == "shapes":
        return voxels.shapes()
    if name in READERS:
        if folder is None:
            raise ValueError(
                f"folder='': {name!r} is read from a folder with its archives"
            )
        return READERS[name](folder)
    if name == "bundled":
        arrays = read_idx(BUNDLED_FILE, len(CLASSES[name]))
    elif folder is None:
        return load_tfds(name)
    elif name in ("mnist", "fashion_mnist"):
        arrays = read_idx(folder, len(CLASSES[name]))
    else:
        form = CIFAR10 if name == "cifar10" else CIFAR100
        arrays = read_cifar(folder, form)
    return check(Dataset(*arrays, classes=CLASSES[name], name=name))


def normalization(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) to normalize a dataset with, each one float per channel.

    The published constants of the whole training split where `STATISTICS` has them
    (also for a subset of it), else computed from the training images.

    Args:
      dataset: the dataset.

    Returns:
      (mean, std).

    Example:
      >>> [round(v[0], 3) for v in normalization(load("bundled"))]
      [0.287, 0.354]
    """
    if dataset.name in STATISTICS:
        return STATISTICS[dataset.name]
    return statistics(dataset.train_image)


def synthetic(
    *,
    train: int = SYNTHETIC["train"],
    test: int = SYNTHETIC["test"],
    size: int = 8,
    channels: int = 3,
    classes: int = 4,
    seed: int = 0,
) -> Dataset:
    """Small synthetic images: a smooth pattern per class, and noise.

    Patterns are symmetric, so that a flip does not change the class.

    Args:
      train, test: numbers of images; labels are balanced.
      size: height and width, a multiple of 4.
      channels: number of channels.
      classes: number of classes.
      seed: of patterns, order and noise.

    Returns:
      The dataset.

    Raises:
      ValueError: a size is below 1 or `size` is no multiple of 4.

    Example:
      >>> synthetic(size=8, classes=2).test_image.shape
      (64, 8, 8, 3)
    """
    given = dict(train=train, test=test, size=size, channels=channels, classes=classes)
    for key, value in given.items():
        if value < 1:
            raise ValueError(f"{key}={value}, expected at least 1")
    if size % 4:
        raise ValueError(f"size={size}, expected a multiple of 4, as 8, 16 or 32")
    rng = np.random.default_rng(seed)
    pattern = rng.uniform(40, 215, (classes, 4, 4, channels))
    pattern = (pattern + pattern[:, :, ::-1]) / 2
    pattern = pattern.repeat(size // 4, axis=1).repeat(size // 4, axis=2)

    def part(count):
        label = rng.permutation(np.arange(count, dtype=np.int32) % classes)
        image = np.empty((count, size, size, channels), np.uint8)
        for i, c in enumerate(label):  # one by one: floats take eight times the memory
            noise = rng.normal(0, 30, image.shape[1:])
            image[i] = np.clip(pattern[c] + noise, 0, 255)
        return image, label

    names = tuple(f"class_{c}" for c in range(classes))
    return check(Dataset(*part(train), *part(test), classes=names, name="synthetic"))


def load_part(c: Any, named: Callable, folder: Any = None) -> Dataset:
    """The in-memory dataset of `config.data`, or the subset that it describes.

    Args:
      c: the section, with `name`, `folder`, `train_size`, `test_size`, `classes`,
        `first_class`, `validation_size` and `image_size`.
      named: context manager `(key, **arguments)` that names the key in errors.
      folder: path object of `c.folder`, perhaps of a bucket.

    Returns:
      The dataset; of 'folder' with paths in the place of images.
    """
    if c.name in GENERATED:  # at that size
        wanted = {"train": c.train_size, "test": c.test_size, "classes": c.classes}
        wanted |= {"size": c.image_size}
        made = load(c.name, **{k: v for k, v in wanted.items() if v})
        return _held_out(made, c, named)
    key = "folder" if c.folder else "name"
    with named(f"data.{key}={c[key]!r:.200}"):
        where = c.folder or None if folder is None else folder
        own = c.name == folders.FOLDER
        dataset = folders.listing(where) if own else load(c.name, where)
    if c.train_size or c.test_size or c.classes:
        keys = {"train": "data.train_size", "test": "data.test_size"}
        with named("data", **keys, classes="data.classes"):
            first = c.first_class
            classes = range(first, first + c.classes) if first else c.classes or None
            dataset = subset(
                dataset, c.train_size or None, c.test_size or None, classes
            )
    return _held_out(dataset, c, named)


def _held_out(dataset: Dataset, c: Any, named: Callable) -> Dataset:
    """With a validation split in place of the test images, if configured."""
    if c.validation_size:
        with named("data.validation_size", size="data.validation_size"):
            dataset = validation_split(dataset, c.validation_size)
    if not len(dataset.test_label):
        raise ValueError(
            f"data.folder={c.folder!r}: no folder {' or '.join(folders.TEST)} beside "
            "'train'; expected one, or data.validation_size above 0"
        )
    if len(dataset.train_label) < len(dataset.classes):
        key = next((k for k in ("train_size", "classes") if c[k]), "name")
        raise ValueError(
            f"data.{key}={c[key]!r}: {len(dataset.train_label)} training images of "
            f"{len(dataset.classes)} classes, expected one of each at least"
        )
    return dataset
