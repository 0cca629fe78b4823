"""Data: in-memory or streamed datasets, order of examples, augmentation on the device.

>>> from quantnet_jax import data
>>> dataset = data.load("bundled")
>>> batch = data.train_indices(0, size=10_000, batch_size=128, seed=0)
>>> mean, std = data.normalization(dataset)
>>> inputs = data.prepare(data.split(dataset, "train"), batch, seed=0, train=True,
...                       pad=2, flip=True, mean=mean, std=std)
>>> inputs["image"].shape, str(inputs["image"].dtype)
((128, 28, 28, 1), 'float32')
"""

from quantnet_jax.data.augment import normalize, prepare
from quantnet_jax.data.dataset import (
    Dataset,
    split,
    statistics,
    subset,
    validation_split,
)
from quantnet_jax.data.order import eval_batches, eval_steps, train_indices
from quantnet_jax.data.sets.folders import FOLDER
from quantnet_jax.data.sets.sources import (
    CLASSES,
    GENERATED,
    NAMES,
    STATISTICS,
    SYNTHETIC,
    WITHOUT_FOLDER,
    load,
    load_part,
    normalization,
    synthetic,
)
from quantnet_jax.data.sets.tfds_source import load_tfds, source_info
from quantnet_jax.data.streaming import (
    Unreadable,
    eval_stream,
    load_source,
    train_stream,
)

__all__ = [
    "CLASSES",
    "FOLDER",
    "GENERATED",
    "NAMES",
    "STATISTICS",
    "SYNTHETIC",
    "WITHOUT_FOLDER",
    "Dataset",
    "Unreadable",
    "eval_batches",
    "eval_steps",
    "eval_stream",
    "load",
    "load_part",
    "load_source",
    "load_tfds",
    "normalization",
    "normalize",
    "prepare",
    "source_info",
    "split",
    "statistics",
    "subset",
    "synthetic",
    "train_indices",
    "train_stream",
    "validation_split",
]
