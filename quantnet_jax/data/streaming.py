"""Streams ImageNet, or any dataset of JPEGs in TFDS; the only file that knows Grain.

A batch is a pure function of its step, with the order of `order`; Grain only computes
batches ahead, in threads or processes. `prepare` flips training images, on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging

from quantnet_jax.data.batches import UNREADABLE, EvalBatches, TrainBatches
from quantnet_jax.data.files import one_line
from quantnet_jax.data.jpeg import decode_eval
from quantnet_jax.data.order import eval_steps
from quantnet_jax.data.sets.tfds_source import name_row, open_split

_ENDLESS = 2**40  # steps
_LISTED = 3  # unreadable examples in an error message


def load_source(
    name: str = "imagenet2012",
    split: str = "train",
    data_dir: str | Path | None = None,
) -> Any:
    """Opens a split of encoded images.

    Args:
      name: the name of the dataset in TFDS, with the features "image" and "label".
      split: "train" or "validation" for ImageNet.
      data_dir: the data folder of TFDS; None for its default.

    Returns:
      A sequence of {"image": bytes, "label": int, ...}.

    Raises:
      ImportError, FileNotFoundError, ValueError: see `open_split`.
    """
    return open_split(name, split, data_dir, decode=False)


class Unreadable:
    """The unreadable examples that a process has met, each counted once.

    Args:
      limit: how many are allowed, at least 0.
    """

    def __init__(self, limit: int = 0):
        if limit < 0:
            raise ValueError(f"max_unreadable={limit}, expected at least 0")
        self.limit = limit
        self._reasons: dict[str, str] = {}

    @property
    def count(self) -> int:
        """Number of distinct unreadable examples."""
        return len(self._reasons)

    def add(self, source: Any, rows: Iterable[int]) -> None:
        """Counts rows of a source; new ones are logged as a warning.

        Args:
          source: of `load_source`.
          rows: that could not be read.

        Raises:
          ValueError: there are more than the limit.
        """
        for row in rows:
            name = name_row(source, row)
            if name not in self._reasons:
                self._reasons[name] = _reason(source, row)
                if self.count <= self.limit:
                    logging.warning(
                        "unreadable (%d of at most %d): %s: %s",
                        *(self.count, self.limit, name, self._reasons[name]),
                    )
        if self.count > self.limit:
            listed = [f"{name}: {why}" for name, why in self._reasons.items()][:_LISTED]
            more = self.count - len(listed)
            raise ValueError(
                f"{self.count} unreadable examples, expected at most "
                f"data.max_unreadable={self.limit}: {'; '.join(listed)}"
                f"{f'; and {more} more' if more else ''}; fix or remove them"
            )


def _reason(source: Any, row: int) -> str:
    """Why an example is unreadable, found by reading it again, in this process."""
    try:
        (example,) = source.__getitems__([row])
    except Exception as error:
        return one_line(error)
    content = example["image"]
    try:
        decode_eval(content, 224, 256)
    except Exception as error:
        found = f"found {len(content)} bytes that are no readable image"
        return f"{found} ({one_line(error)}), expected an image"
    return "readable at the second try"


def train_stream(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    size: int = 224,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    threads: int = 8,
    workers: int = 0,
    unreadable: Unreadable | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless training batches from a step on.

    Args:
      source: of `load_source`.
      batch_size: examples in a global batch.
      seed: of order and crops; the order is that of `train_indices`.
      size: height and width of the images.
      process_index: this process.
      process_count: number of processes; each yields batch_size / process_count.
      start_step: the first step; resuming needs no other state.
      threads: batches computed at a time (in each worker), and read ahead.
      workers: extra processes; 0 works in this one (decoding releases the GIL). They
        need a program run by absl.app.run, with the usual __main__ guard.
      unreadable: counts unreadable examples, each of which is replaced by the next
        readable one of the stream; None allows none.

    Returns:
      An iterator of {"image": uint8 [B, size, size, 3], "label": int32 [B],
      "position": uint32 [B], "mask": float32 [B], all ones}.

    Raises:
      ImportError: Grain is not installed.
      ValueError: an argument is out of range or the batch does not divide; from the
        iterator: too many examples are unreadable.
    """
    _check(source, size)
    unreadable = Unreadable() if unreadable is None else unreadable
    batches = TrainBatches(
        *(source, batch_size, seed, size, process_index, process_count),
        limit=unreadable.limit,
    )
    batches.plan(start_step)  # bad arguments raise here, before any thread starts
    ahead = _iterate(batches, start_step, _ENDLESS, threads, workers)
    return _counted(ahead, source, unreadable)


def eval_stream(
    source: Any,
    *,
    batch_size: int,
    size: int = 224,
    resize: int = 256,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
    workers: int = 0,
    unreadable: Unreadable | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Evaluation batches: each example exactly once over all processes.

    Args:
      source: of `load_source`.
      batch_size: examples in a global batch, padding included.
      size: height and width of the images.
      resize: length of the shorter side before the center crop, at least `size`.
      process_index, process_count, threads, workers: see `train_stream`.
      unreadable: counts unreadable examples, each of which is masked out; None allows
        none.

    Returns:
      An iterator of `eval_steps(len(source), batch_size)` batches, on every process,
      as `train_stream`; padding is black with label 0, mask 0.

    Raises:
      ImportError, ValueError: see `train_stream`.
    """
    _check(source, size, resize)
    batches = EvalBatches(
        source, batch_size, size, resize, process_index, process_count
    )
    batches.plan(0)
    ahead = _iterate(batches, 0, eval_steps(len(source), batch_size), threads, workers)
    return _counted(ahead, source, unreadable or Unreadable())


def _check(source: Any, size: int, resize: int | None = None) -> None:
    if len(source) == 0:
        raise ValueError("source is empty, expected at least one example")
    if size < 1 or (resize is not None and resize < size):
        raise ValueError(f"size={size}, resize={resize}, expected 1 <= size <= resize")


def _iterate(batches, first: int, stop: int, threads: int, workers: int) -> Iterator:
    """A Grain iterator over batches(first), ..., batches(stop - 1)."""
    try:
        import grain
    except ImportError as error:
        raise ImportError(
            f"streaming needs Grain, which cannot be imported ({error}): "
            "pip install grain"
        ) from error
    if threads < 1 or workers < 0:
        raise ValueError(
            f"threads={threads}, workers={workers}, expected threads >= 1, workers >= 0"
        )
    # Each element is a whole batch, so neither threads nor workers change the order.
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    data = grain.MapDataset.range(first, stop).map(batches).to_iter_dataset(read)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's processes read settings from flags
            raise ValueError(
                f"workers={workers} needs parsed flags, expected a program run by "
                "absl.app.run; else call absl.flags.FLAGS.mark_as_parsed() first, or "
                "use workers=0"
            )
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(data)


def _counted(batches: Iterator, source: Any, unreadable: Unreadable) -> Iterator[dict]:
    """The batches, whose unreadable examples are counted when they are taken.

    Not where batches are computed, which may be other processes, and ahead of time.
    """
    for batch in batches:
        batch = dict(batch)
        rows = batch.pop(UNREADABLE).tolist()
        unreadable.add(source, [row for row in rows if row >= 0])
        yield batch
