"""The one file that knows TensorFlow Datasets: opens splits, loads small sets by name.

TensorFlow itself is never imported: `tfds.data_source` reads ArrayRecord files without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantnet_jax.data.dataset import Dataset, check

_INSTALL = "pip install tensorflow-datasets array_record importlib_resources"


def open_split(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    *,
    download: bool = False,
    decode: bool = True,
) -> Any:
    """Opens one split of a set for random access.

    Args:
      name: the name of the set in TFDS.
      split: the name of the split in TFDS, as "train" or "validation".
      data_dir: the data folder of TFDS; None for its default.
      download: let TFDS download and prepare the set if it is not there (many sets
        need TensorFlow for that).
      decode: False hands out the encoded bytes of the feature "image".

    Returns:
      A sequence of dicts: len(source), source[i], source.__getitems__([i, ...]).

    Raises:
      ImportError: TFDS is not installed.
      FileNotFoundError: the set is not prepared as ArrayRecord and could not be.
      ValueError: TFDS does not know the set or the split.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{name!r} is taken by name from TensorFlow Datasets, which cannot be "
            f"imported ({error}): {_INSTALL}; small sets can be read from a folder "
            "with their original files instead"
        ) from error
    where = "the default data folder" if data_dir is None else str(data_dir)
    prepare = (
        f"prepare it with `tfds build {name} --file_format=array_record` (needs "
        "TensorFlow) and give its data folder, or, for a small set, give the folder "
        "that holds the original files"
    )
    try:
        return tfds.data_source(
            name,
            split=split,
            data_dir=None if data_dir is None else str(data_dir),
            download=download,
            decoders=None if decode else {"image": tfds.decode.SkipDecoding()},
        )
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"name={name!r}: TFDS knows no such set and {where} holds none; {prepare}"
        ) from error
    except NotImplementedError as error:
        raise FileNotFoundError(
            f"{name!r}: {where} does not hold it in the array_record format that "
            f"random access needs; {prepare}"
        ) from error
    except Exception as error:  # TFDS raises many types, network errors among them
        if str(error).startswith("Unknown split"):
            raise ValueError(f"{name!r}: {_one_line(error)}") from error
        raise FileNotFoundError(
            f"{name!r}: TFDS could not open or prepare it in {where} "
            f"({type(error).__name__}: {_one_line(error)}); {prepare}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def source_info(source: Any) -> dict[str, list[str]]:
    """What a task may know of an opened split, as JSON data.

    Args:
      source: of `open_split`.

    Returns:
      {'classes': names}; name i belongs to label i.
    """
    return {"classes": list(source.dataset_info.features["label"].names)}


def name_row(source: Any, row: int) -> str:
    """How to call a row of an opened split, with its file where TFDS tells it.

    Args:
      source: of `open_split`, or any sequence.
      row: 0 <= row < len(source).

    Returns:
      As "example 7 of 'train' (record 7 of NAME.array_record-00000-of-00001)".
    """
    split = getattr(source, "split", None)
    splits = getattr(getattr(source, "dataset_info", None), "splits", {})
    if not isinstance(split, str) or split not in splits:
        return f"example {row}"
    name, record = f"example {row} of {split!r}", row
    files = sorted(splits[split].filenames)
    for file, length in zip(files, splits[split].shard_lengths, strict=False):
        if record < length:
            return f"{name} (record {record} of {file})"
        record -= length
    return name


def load_tfds(
    name: str,
    data_dir: str | Path | None = None,
    *,
    splits: Sequence[str] = ("train", "test"),
    download: bool = False,
) -> Dataset:
    """Loads a small image set of one image size into memory.

    Args:
      name: the name of the set in TFDS; its features are "image" and "label".
      data_dir: the data folder of TFDS; None for its default.
      splits: the training and the test split.
      download: see `open_split`.

    Returns:
      The set, in the order of TFDS (which differs from that of the original files).

    Raises:
      ImportError, FileNotFoundError, ValueError: see `open_split`; also when images
        differ in size.
    """
    arrays = []
    for part in splits:
        source = open_split(name, part, data_dir, download=download)
        examples = [source[i] for i in range(len(source))]
        shapes = {e["image"].shape for e in examples}
        if len(shapes) != 1:
            raise ValueError(
                f"{name!r}: split {part!r} has images of {len(shapes)} sizes "
                f"({sorted(shapes)[:2]}, ...), expected one; such a set is streamed"
            )
        arrays.append(np.stack([e["image"] for e in examples]))
        arrays.append(np.array([e["label"] for e in examples], np.int32))
        names = source_info(source)["classes"]
    return check(Dataset(*arrays, classes=tuple(names), name=name))
