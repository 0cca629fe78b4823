"""The only file that knows TensorFlow Datasets: opens splits, loads small datasets.

TensorFlow itself is never imported: `tfds.data_source` reads ArrayRecord files without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quantnet_jax.data.dataset import Dataset, check
from quantnet_jax.data.files import one_line

_INSTALL = "pip install tensorflow-datasets array_record importlib_resources"


def open_split(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    *,
    decode: bool = True,
) -> Any:
    """Opens one split of a dataset for random access.

    Args:
      name: the name of the dataset in TFDS.
      split: the name of the split in TFDS, as "train" or "validation".
      data_dir: the data folder of TFDS; None for its default.
      decode: False returns the encoded bytes of the feature "image".

    Returns:
      A sequence of dicts: len(source), source[i], source.__getitems__([i, ...]).

    Raises:
      ImportError: TFDS is not installed.
      FileNotFoundError: the dataset is not prepared as ArrayRecord.
      ValueError: TFDS has no such dataset or split.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{name!r} is read through TensorFlow Datasets, which cannot be imported "
            f"({error}): {_INSTALL}; small datasets can be read from a folder with "
            "their original files instead"
        ) from error
    where = "the default data folder" if data_dir is None else str(data_dir)
    prepare = (
        f"prepare it with `tfds build {name} --file_format=array_record` (needs "
        "TensorFlow) and give its data folder, or, for a small dataset, the folder of "
        "its original files"
    )
    try:
        return tfds.data_source(
            name,
            split=split,
            download=False,
            data_dir=None if data_dir is None else str(data_dir),
            decoders=None if decode else {"image": tfds.decode.SkipDecoding()},
        )
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"name={name!r}: TFDS has no such dataset, nor has {where}; {prepare}"
        ) from error
    except NotImplementedError as error:
        raise FileNotFoundError(
            f"{name!r}: {where} does not hold it in the array_record format that "
            f"random access needs; {prepare}"
        ) from error
    except Exception as error:  # TFDS raises many types, network errors among them
        if str(error).startswith("Unknown split"):
            raise ValueError(f"{name!r}: {one_line(error)}") from error
        raise FileNotFoundError(
            f"{name!r}: TFDS could not open it in {where} "
            f"({one_line(error)}); {prepare}"
        ) from error


def source_info(source: Any) -> dict[str, list[str]]:
    """JSON data of an opened split, for a task.

    Args:
      source: of `open_split`, or `folders.Files`.

    Returns:
      {'classes': names}; name i belongs to label i.
    """
    if hasattr(source, "classes"):
        return {"classes": list(source.classes)}
    return {"classes": list(source.dataset_info.features["label"].names)}


def name_row(source: Any, row: int) -> str:
    """The name of a row of an opened split, with its file where TFDS reports it.

    Args:
      source: of `open_split`, or any sequence.
      row: 0 <= row < len(source).

    Returns:
      As "example 7 of 'train' (record 7 of NAME.array_record-00000-of-00001)".
    """
    if hasattr(source, "name"):
        return source.name(row)
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
) -> Dataset:
    """Loads a small dataset with images of one size into memory.

    Args:
      name: the name of the dataset in TFDS; its features are "image" and "label".
      data_dir: the data folder of TFDS; None for its default.

    Returns:
      The dataset, in the order of TFDS (which differs from that of the original
      files).

    Raises:
      ImportError, FileNotFoundError, ValueError: see `open_split`; also when images
        differ in size.
    """
    arrays = []
    for part in ("train", "test"):
        source = open_split(name, part, data_dir)
        examples = [source[i] for i in range(len(source))]
        shapes = {e["image"].shape for e in examples}
        if len(shapes) != 1:
            raise ValueError(
                f"{name!r}: split {part!r} has images of {len(shapes)} sizes "
                f"({sorted(shapes)[:2]}, ...), expected one; stream such a dataset"
            )
        arrays.append(np.stack([e["image"] for e in examples]))
        arrays.append(np.array([e["label"] for e in examples], np.int32))
        names = source_info(source)["classes"]
    return check(Dataset(*arrays, classes=tuple(names), name=name))
