"""Streams ImageNet, or any set of JPEGs in TFDS; the one file that knows Grain.

A batch is a pure function of its step, with the order of `stream`; Grain only computes
batches ahead in threads or processes and keeps the place. The flip of training images
is left to `prepare`, on the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quantnet_jax.data.decoded import UNREADABLE, EvalBatches, TrainBatches
from quantnet_jax.data.stream import eval_batches, eval_steps, train_indices
from quantnet_jax.data.tfds_source import open_split
from quantnet_jax.data.unreadable import Unreadable

_ENDLESS = 2**40  # steps


def load_source(
    name: str = "imagenet2012",
    split: str = "train",
    data_dir: str | Path | None = None,
) -> Any:
    """Opens a split whose images are handed out as encoded JPEG bytes.

    Args:
      name: the name of the set in TFDS, with the features "image" and "label".
      split: "train" or "validation" for ImageNet.
      data_dir: the data folder of TFDS; None for its default.

    Returns:
      A sequence of {"image": bytes, "label": int, ...}.

    Raises:
      ImportError, FileNotFoundError, ValueError: see `open_split`.
    """
    return open_split(name, split, data_dir, decode=False)


class Stream:
    """Iterator over batches that counts the unreadable examples of each.

    The counting is done here and not where batches are made, which may be in other
    processes and ahead of time.
    """

    def __init__(self, batches, source, unreadable: Unreadable):
        self._batches, self._source, self._unreadable = batches, source, unreadable

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = dict(next(self._batches))
        rows = batch.pop(UNREADABLE).tolist()
        self._unreadable.add(self._source, [row for row in rows if row >= 0])
        return batch

    def get_state(self) -> Any:
        """Where the iterator is, for `set_state`."""
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        """Goes on where the iterator was that gave `state`."""
        self._batches.set_state(state)


def _iterate(batches, first: int, stop: int, threads: int, workers: int):
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
        from absl import flags  # Grain's processes read their settings from flags

        if not flags.FLAGS.is_parsed():
            raise ValueError(
                f"workers={workers} needs parsed flags, expected a program run by "
                "absl.app.run; else call absl.flags.FLAGS.mark_as_parsed() first, or "
                "use workers=0"
            )
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(data)


def _check(source, size: int, resize: int | None = None) -> None:
    if len(source) == 0:
        raise ValueError("source is empty, expected at least one example")
    if size < 1 or (resize is not None and resize < size):
        raise ValueError(f"size={size}, resize={resize}, expected 1 <= size <= resize")


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
) -> Stream:
    """Endless training batches from a step on.

    Resume either by `start_step` (no state is needed) or by the iterator's
    `get_state()` / `set_state(state)`, on an iterator made with the same arguments.

    Args:
      source: of `load_source`.
      batch_size: examples in a global batch.
      seed: of order and crops; the order is that of `train_indices`.
      size: height and width of the images.
      process_index: this process.
      process_count: number of processes; each yields batch_size / process_count.
      start_step: the first step.
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
    # The first plan is made here, so that bad arguments are told before any thread.
    train_indices(
        start_step,
        size=len(source),
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    unreadable = Unreadable() if unreadable is None else unreadable
    batches = TrainBatches(
        *(source, batch_size, seed, size, process_index, process_count),
        limit=unreadable.limit,
    )
    ahead = _iterate(batches, start_step, _ENDLESS, threads, workers)
    return Stream(ahead, source, unreadable)


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
) -> Stream:
    """Evaluation batches: each example exactly once over all processes.

    Args:
      source: of `load_source`.
      batch_size: examples in a global batch, padding included.
      size: height and width of the images.
      resize: length of the shorter side before the centre crop, at least `size`.
      process_index, process_count, threads, workers: see `train_stream`.
      unreadable: counts unreadable examples, each of which is masked out; None allows
        none.

    Returns:
      An iterator of `eval_steps(len(source), batch_size)` batches, on every process,
      of the form of `train_stream`; padding is black with label 0, mask 0.

    Raises:
      ImportError, ValueError: see `train_stream`.
    """
    _check(source, size, resize)
    eval_batches(len(source), batch_size, process_index, process_count)
    batches = EvalBatches(
        source, batch_size, size, resize, process_index, process_count
    )
    ahead = _iterate(batches, 0, eval_steps(len(source), batch_size), threads, workers)
    return Stream(ahead, source, unreadable or Unreadable())
