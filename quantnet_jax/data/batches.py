"""From a step to a batch of decoded images: pure, so any worker can make any batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from quantnet_jax.data.jpeg import decode_eval, decode_train
from quantnet_jax.data.order import eval_indices, order_at, train_indices

UNREADABLE = "unreadable"
"""Key of a batch: int32 rows that could not be read, -1 for none; removed by
`streaming.Stream`."""


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """step -> the training batch of this process; pure and picklable.

    Attributes:
      source: of `load_source`.
      batch_size: examples in a global batch.
      seed: of order and crops.
      size: height and width of the images.
      process_index, process_count: which slice of each batch.
      limit: how many unreadable examples there may be.
    """

    source: Any
    batch_size: int
    seed: int
    size: int = 224
    process_index: int = 0
    process_count: int = 1
    limit: int = 0

    def plan(self, step: int) -> dict[str, np.ndarray]:
        """`train_indices` of a step."""
        return train_indices(
            int(step),
            size=len(self.source),
            batch_size=self.batch_size,
            seed=self.seed,
            process_index=self.process_index,
            process_count=self.process_count,
        )

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Returns {"image", "label", "position", "mask", UNREADABLE}.

        See `train_stream`. An unreadable example is replaced by the next readable one
        of the stream, cropped as the unreadable one would have been.
        """
        plan = self.plan(step)
        first = int(step) * self.batch_size
        first += self.process_index * (self.batch_size // self.process_count)

        def decode(content, i):
            place = int(plan["position"][i])
            return decode_train(content, self.size, seed=self.seed, position=place)

        def others(i):
            for tries in range(1, self.limit + 1):
                place = np.array([first + i + tries])
                yield int(order_at(place, len(self.source), self.seed)[0])

        return _fill(self.source, plan, self.size, decode, others)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """step -> the evaluation batch of this process; pure and picklable.

    Attributes:
      source: of `load_source`.
      batch_size: examples in a global batch, padding included.
      size: height and width of the images.
      resize: length of the shorter side before the center crop.
      process_index, process_count: which slice of each batch.
    """

    source: Any
    batch_size: int
    size: int = 224
    resize: int = 256
    process_index: int = 0
    process_count: int = 1

    def plan(self, step: int) -> dict[str, np.ndarray]:
        """`eval_indices` of a step."""
        return eval_indices(
            int(step),
            size=len(self.source),
            batch_size=self.batch_size,
            process_index=self.process_index,
            process_count=self.process_count,
        )

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Returns {"image", "label", "position", "mask", UNREADABLE}.

        See `eval_stream`. An unreadable example becomes padding.
        """

        def decode(content, _):
            return decode_eval(content, self.size, self.resize)

        return _fill(self.source, self.plan(step), self.size, decode, lambda i: ())


def _fill(source, plan, size, decode, others) -> dict[str, np.ndarray]:
    """Reads and decodes the examples of a plan; padding stays black with label 0.

    Args:
      source: of `load_source`.
      plan: {"index", "position", "mask"} of the batch.
      size: height and width of the images.
      decode: (content, place in the batch) -> uint8 [size, size, 3].
      others: place in the batch -> rows to try instead of an unreadable one; padding
        if all of them are unreadable too.
    """
    mask, unreadable = plan["mask"].copy(), []
    real = np.flatnonzero(mask)
    image = np.zeros((mask.size, size, size, 3), np.uint8)
    label = np.zeros(mask.size, np.int32)

    def put(i, row, example) -> bool:
        try:
            if example is None:
                (example,) = source.__getitems__([row])
            image[i] = decode(example["image"], i)
            label[i] = example["label"]
        except MemoryError:
            raise
        except Exception:  # readers and decoders raise all kinds
            image[i] = 0
            unreadable.append(row)
            return False
        return True

    rows = [int(plan["index"][i]) for i in real]
    for i, row, example in zip(real, rows, _read(source, rows), strict=True):
        if not put(i, row, example):
            mask[i] = any(put(i, other, None) for other in others(i))
    return {
        "image": image,
        "label": label,
        "position": plan["position"],
        "mask": mask,
        UNREADABLE: np.array(
            unreadable or [-1], np.int32
        ),  # workers cannot send empty ones
    }


def _read(source, rows) -> list:
    """Examples of rows; None for each if one of them cannot be read."""
    if not rows:  # a batch may hold padding only
        return []
    try:
        return source.__getitems__(rows)
    except MemoryError:
        raise
    except Exception:  # a damaged file; its other examples are read one at a time
        return [None] * len(rows)
