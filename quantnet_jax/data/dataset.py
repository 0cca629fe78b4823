"""The in-memory image dataset: type, stratified subsets, channel statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from quantnet_jax.common.names import nearest

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Dataset(NamedTuple):
    """A small dataset of images, as plain NumPy arrays.

    Attributes:
      train_image: uint8 [N, H, W, C], pixel values 0..255.
      train_label: int32 [N], 0 <= label < len(classes).
      test_image: uint8 [M, H, W, C].
      test_label: int32 [M].
      classes: the class names; ``classes[i]`` names label i.
      name: its name in `load`.
      train_target, test_target: uint8 [N, s H, s W, C], the images that those of
        `image` are to become, or None. With them sizes may differ among the images.
      more: further JSON data for a task; 'ink' ships with any network, for `predict`.
    """

    train_image: np.ndarray
    train_label: np.ndarray
    test_image: np.ndarray
    test_label: np.ndarray
    classes: tuple[str, ...]
    name: str
    train_target: np.ndarray | None = None
    test_target: np.ndarray | None = None
    more: Mapping[str, Any] = NOTHING

    @property
    def info(self) -> dict:
        """JSON data of the dataset, for a task."""
        found = {"classes": list(self.classes), **self.more}
        if self.test_target is not None:
            found["test_label"] = self.test_label.tolist()
        return found


def check(dataset: Dataset) -> Dataset:
    """Returns `dataset` if its arrays are consistent.

    Args:
      dataset: the dataset to check.

    Returns:
      The same object.

    Raises:
      ValueError: a dtype, rank, length, image size or label is wrong, a part empty.
    """
    for part in ("train", "test"):
        image = getattr(dataset, f"{part}_image")
        label = getattr(dataset, f"{part}_label")
        where = f"{dataset.name}: {part}"
        _check_images(image, f"{where}_image")
        if label.dtype != np.int32 or label.shape != image.shape[:1]:
            raise ValueError(
                f"{where}_label is {label.dtype}{list(label.shape)}, expected "
                f"int32[{image.shape[0]}], one label for each image"
            )
        check_labels(label, len(dataset.classes), f"{where}_label")
    if dataset.train_target is not None:
        return dataset
    sizes = [a.shape[1:] for a in (dataset.train_image, dataset.test_image)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{dataset.name}: training images are {list(sizes[0])} but test images "
            f"are {list(sizes[1])} (H, W, C); both must be of one size"
        )
    return dataset


def _check_images(image: np.ndarray, where: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 4 or image.size == 0:
        raise ValueError(
            f"{where} is {image.dtype}{list(image.shape)}, expected a non-empty "
            "uint8[N, H, W, C]"
        )


def check_labels(label: np.ndarray, classes: int, where: str) -> None:
    """Raises a ValueError that names the first label outside 0..classes-1."""
    bad = np.flatnonzero((label < 0) | (label >= classes))
    if bad.size:
        raise ValueError(
            f"{where}: label {int(label[bad[0]])} at position {int(bad[0])}, expected "
            f"0 to {classes - 1}; the file is damaged or belongs to another dataset"
        )


def split(dataset: Dataset, part: str) -> dict[str, np.ndarray]:
    """One part of a dataset, as `prepare` takes it on the device.

    Args:
      dataset: the dataset.
      part: "train" or "test".

    Returns:
      {"image": uint8 [N, H, W, C], "label": int32 [N]}, and "target" if it has some.

    Raises:
      ValueError: `part` is neither "train" nor "test".

    Example:
      >>> from quantnet_jax.data import load
      >>> split(load("bundled"), "test")["image"].shape
      (2000, 28, 28, 1)
    """
    if part not in ("train", "test"):
        raise ValueError(f"part={part!r}, expected 'train' or 'test'")
    names = ("image", "label", "target")
    arrays = {name: getattr(dataset, f"{part}_{name}") for name in names}
    return {name: x for name, x in arrays.items() if x is not None}


def first_of_each_class(label: np.ndarray, total: int, classes: int) -> np.ndarray:
    """Rows of a stratified subset: the first ones of each class, in file order.

    The share of a class is its share in `label`, rounded by largest remainder (ties
    go to the lower class), so balanced datasets give balanced subsets.

    Args:
      label: int [N], 0 <= label < classes.
      total: how many rows to take, 1 <= total <= N.
      classes: number of classes.

    Returns:
      int64 [total], strictly increasing.
    """
    count = np.bincount(label, minlength=classes)
    # Integer arithmetic: exact, hence the same on every machine.
    quota, rest = np.divmod(count * total, label.size)
    quota[np.argsort(-rest, kind="stable")[: total - int(quota.sum())]] += 1
    rows = [np.flatnonzero(label == c)[: quota[c]] for c in range(classes)]
    return np.sort(np.concatenate(rows))


def subset(
    dataset: Dataset,
    train: int | None = None,
    test: int | None = None,
    classes: int | Sequence[int | str] | None = None,
) -> Dataset:
    """A deterministic, stratified subset of a dataset.

    Args:
      dataset: the source.
      train: number of training images, at least 1; None for all.
      test: number of test images, at least 1; None for all.
      classes: the classes to retain: a number (the first N), or labels or names.
        They are relabelled 0, 1, ... in the order given and retain their names.

    Returns:
      A smaller dataset of the same `name`. Of each class the first images in file order
      are taken and images keep their relative order.

    Raises:
      ValueError: a size is out of range, or a class is unknown or repeated.

    Example:
      >>> from quantnet_jax.data import load
      >>> small = subset(load("bundled"), train=30, classes=["Coat", "Bag"])
      >>> small.classes, small.train_label.shape, small.test_label.shape
      (('Coat', 'Bag'), (30,), (400,))
    """
    kept = _class_labels(dataset, classes)
    new_label = np.full(len(dataset.classes), -1, np.int32)
    new_label[kept] = np.arange(len(kept), dtype=np.int32)
    arrays = {}
    for part, total in (("train", train), ("test", test)):
        whole = split(dataset, part)
        label = whole["label"]
        rows = np.flatnonzero(new_label[label] >= 0)
        if total is not None:
            if not 1 <= total <= rows.size:
                raise ValueError(
                    f"{part}={total}: {dataset.name} holds {rows.size} {part} images "
                    f"of the {len(kept)} chosen classes, expected 1 to {rows.size}"
                )
            rows = rows[first_of_each_class(new_label[label[rows]], total, len(kept))]
        taken = {name: x[rows] for name, x in whole.items()}
        taken["label"] = new_label[taken["label"]]
        arrays |= {f"{part}_{name}": x for name, x in taken.items()}
    names = tuple(dataset.classes[c] for c in kept)
    return dataset._replace(**arrays, classes=names)


def validation_split(dataset: Dataset, size: int) -> Dataset:
    """Replaces the test images by a stratified subset of the training images.

    For tuning hyperparameters without the test images.

    Args:
      dataset: the source.
      size: size of the validation split, 1 <= size < N.

    Returns:
      A dataset of the same `name` with N - size training and `size` test images; of
      each class the first images in file order stay in training.

    Raises:
      ValueError: `size` is out of range.

    Example:
      >>> from quantnet_jax.data import load
      >>> part = validation_split(load("bundled"), 2000)
      >>> part.train_label.shape, part.test_label.shape
      ((8000,), (2000,))
    """
    whole = split(dataset, "train")
    label = whole["label"]
    if not 1 <= size < label.size:
        raise ValueError(
            f"size={size}: {dataset.name} holds {label.size} training images, "
            f"expected 1 to {label.size - 1}"
        )
    kept = first_of_each_class(label, label.size - size, len(dataset.classes))
    held = np.setdiff1d(np.arange(label.size), kept)
    parts = {"train": kept, "test": held}
    return dataset._replace(
        **{f"{p}_{k}": x[rows] for p, rows in parts.items() for k, x in whole.items()}
    )


def _class_labels(dataset, classes) -> list[int]:
    """Labels of the classes to retain, checked."""
    known = dataset.classes
    if classes is None:
        return list(range(len(known)))
    if isinstance(classes, int):
        if not 1 <= classes <= len(known):
            raise ValueError(
                f"classes={classes}: {dataset.name} has {len(known)} classes, "
                f"expected 1 to {len(known)}"
            )
        return list(range(classes))
    labels = []
    for c in [classes] if isinstance(classes, str) else classes:
        if isinstance(c, str) and c not in known:
            raise ValueError(
                f"classes: {dataset.name} has no class {c!r}{nearest(c, known)}"
            )
        label = known.index(c) if isinstance(c, str) else int(c)
        if not 0 <= label < len(known):
            raise ValueError(
                f"classes: {dataset.name} has no label {label}, expected 0 to "
                f"{len(known) - 1}"
            )
        labels.append(label)
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(
            f"classes={list(classes)!r}: expected at least one class and none twice"
        )
    return labels


def statistics(image: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of x / 255, exact to rounding.

    Args:
      image: uint8 [N, H, W, C].

    Returns:
      (mean, std), each C floats; the population standard deviation.

    Raises:
      ValueError: not uint8 [N, H, W, C], or without a pixel, or a channel is constant.

    Example:
      >>> statistics(np.array([[[[0], [255]]]], np.uint8))
      ((0.5,), (0.5,))
    """
    _check_images(image, "image")
    # From a histogram: integer sums are exact, without a float copy of the dataset.
    value = np.arange(256) / 255
    mean, std = [], []
    for c in range(image.shape[-1]):
        share = np.bincount(image[..., c].ravel(), minlength=256)
        share = share / share.sum()
        m = float(share @ value)
        s = float(np.sqrt(share @ np.square(value - m)))
        if s == 0.0:
            raise ValueError(
                f"image: channel {c} has the one value {round(m * 255)} everywhere, "
                "so it cannot be normalized; give mean and std yourself"
            )
        mean.append(m)
        std.append(s)
    return tuple(mean), tuple(std)
