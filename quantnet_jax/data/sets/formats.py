"""Original formats of small image datasets: idx (MNIST) and CIFAR's binary version.

Nothing is unpickled; magic numbers, lengths and labels are checked. References:
http://yann.lecun.com/exdb/mnist and https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quantnet_jax.data.dataset import check_labels
from quantnet_jax.data.files import AGAIN, Blob, Size, read_members

MOST = 2**24
"""Images in an idx file, at most."""


def parse_idx(blob: Blob, ndim: int) -> np.ndarray:
    """Parses an idx file of unsigned bytes.

    Args:
      blob: the file.
      ndim: 3 for images, 1 for labels.

    Returns:
      uint8 array of rank `ndim`, a read-only view of the content.

    Raises:
      ValueError: magic number or length is wrong.

    Example:
      >>> parse_idx(Blob(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), "labels"), 1)
      array([7, 9], dtype=uint8)
    """
    content, path = blob
    shape = _idx_shape(content, path, ndim)
    expected = 4 + 4 * ndim + math.prod(shape)
    if len(content) != expected:
        raise ValueError(
            f"{path}: found {len(content)} bytes, expected {expected} (header and "
            f"{' x '.join(map(str, shape))} bytes); {AGAIN}"
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _idx_shape(content: bytes | memoryview, path: str, ndim: int) -> list[int]:
    """The shape in the header of an idx file, of whose content the begin suffices."""
    magic = bytes([0, 0, 8, ndim])  # 8: unsigned byte
    if content[:4] != magic:
        raise ValueError(
            f"{path}: found magic number 0x{content[:4].hex() or '(empty)'}, expected "
            f"0x{magic.hex()} (idx, unsigned bytes, {ndim} dimensions); this is "
            "another file"
        )
    header = 4 + 4 * ndim
    if len(content) < header:
        raise ValueError(
            f"{path}: found {len(content)} bytes, expected at least {header} (the idx "
            f"header); {AGAIN}"
        )
    shape = [int(n) for n in np.frombuffer(content, ">u4", ndim, 4)]
    if shape[0] > MOST:
        raise ValueError(
            f"{path}: its header says {shape[0]} items, expected at most {MOST}"
        )
    return shape


def _idx_size(ndim: int) -> Size:
    return lambda head, path: 4 + 4 * ndim + math.prod(_idx_shape(head, path, ndim))


def read_idx(
    folder: str | Path, classes: int, archives: Sequence[str] = ()
) -> list[np.ndarray]:
    """Reads the four idx files of an MNIST-like dataset.

    Args:
      folder: holds {train,t10k}-{images-idx3,labels-idx1}-ubyte, each with or
        without .gz, or spelled as `read_members` says.
      classes: number of classes.
      archives: see `read_members`.

    Returns:
      [train_image, train_label, test_image, test_label]: uint8 [N, H, W, 1] and
      int32 [N].

    Raises:
      FileNotFoundError, ValueError: see `read_members`, `parse_idx`; also when the
        numbers of images and labels differ or a label is out of range.
    """
    names = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    sizes = {name: _idx_size(3 if "images" in name else 1) for name in names}
    blobs = read_members(folder, sizes, archives=archives)
    out = []
    for image_name, label_name in (names[:2], names[2:]):
        image = parse_idx(blobs[image_name], 3)
        label = parse_idx(blobs[label_name], 1).astype(np.int32)
        path = blobs[label_name].path
        if label.size != image.shape[0] or label.size == 0:
            raise ValueError(
                f"{path}: found {label.size} labels, expected {image.shape[0]} (and at "
                f"least 1), as many as images in {blobs[image_name].path}; the two "
                "files do not belong together"
            )
        check_labels(label, classes, path)
        out += [image[..., None], label]
    sizes = [list(image.shape[1:]) for image in out[::2]]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{blobs[names[2]].path}: images of {sizes[1]}, expected {sizes[0]} as "
            f"those of {blobs[names[0]].path}"
        )
    return out


class CifarFormat(NamedTuple):
    """Files and records of a CIFAR dataset.

    Attributes:
      subfolder: folder inside the official archive.
      archive: name of the official archive without ".tar.gz".
      train: names of the training files.
      test: names of the test files.
      records: number of records in each file of `train` and of `test`.
      label_bytes: labels before the pixels; the last one is used (the fine label).
      classes: number of classes.
    """

    subfolder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    records: tuple[int, int]
    label_bytes: int
    classes: int


CIFAR10 = CifarFormat(
    "cifar-10-batches-bin",
    "cifar-10-binary",
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    ("test_batch.bin",),
    (10_000, 10_000),
    1,
    10,
)
CIFAR100 = CifarFormat(
    "cifar-100-binary",
    "cifar-100-binary",
    ("train.bin",),
    ("test.bin",),
    (50_000, 10_000),
    2,
    100,
)


def read_cifar(folder: str | Path, form: CifarFormat) -> list[np.ndarray]:
    """Reads the binary version of a CIFAR dataset.

    Args:
      folder: holds the .bin files, or the subfolder, or the archive as .tar.gz,
        .tar.xz or .tar; or the path of the archive.
      form: `CIFAR10`, `CIFAR100` or one like them.

    Returns:
      [train_image, train_label, test_image, test_label]: uint8 [N, 32, 32, 3] and
      int32 [N], in the order of the files.

    Raises:
      FileNotFoundError, ValueError: see `read_members`; also when a label is out of
        range.
    """
    record = form.label_bytes + 3 * 32 * 32
    sizes = {
        name: record * count
        for names, count in zip((form.train, form.test), form.records, strict=True)
        for name in names
    }
    blobs = read_members(
        folder,
        sizes,
        subfolder=form.subfolder,
        archives=[form.archive + end for end in (".tar.gz", ".tar.xz", ".tar")],
    )
    out = []
    for names in (form.train, form.test):
        parts = []
        for name in names:
            rows = np.frombuffer(blobs[name].content, np.uint8).reshape(-1, record)
            label = rows[:, form.label_bytes - 1].astype(np.int32)
            check_labels(label, form.classes, blobs[name].path)
            parts.append((rows[:, form.label_bytes :], label))
        pixels = np.concatenate([p for p, _ in parts]).reshape(-1, 3, 32, 32)
        out.append(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))
        out.append(np.concatenate([label for _, label in parts]))
    return out
