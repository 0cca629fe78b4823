"""The order of examples: a pure function of (seed, epoch), for any process count.

The training stream is the endless concatenation of one permutation per epoch. Step t
takes positions [t * B, (t + 1) * B) of it, cutting across the border of two epochs, so
every epoch sees each example exactly once, every batch is full, and any step can be
had without state.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np


@functools.lru_cache(maxsize=4)  # a batch or a chunk of steps touches few epochs
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch.

    Args:
      size: number of examples, at least 1.
      seed: 0 <= seed < 2**64.
      epoch: 0 <= epoch < 2**64.

    Returns:
      int32 [size], read-only, a permutation of 0..size-1.

    Example:
      >>> permutation(5, 0, 0).tolist() != permutation(5, 0, 1).tolist()
      True
    """
    # Sorting raw Philox bits: NumPy keeps the bits of a generator stable between
    # versions, but not what Generator.permutation makes of them.
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    order = np.argsort(bits, kind="stable").astype(np.int32)
    order.setflags(write=False)
    return order


def local_batch_size(
    batch_size: int, process_index: int = 0, process_count: int = 1
) -> int:
    """This process' share of a global batch.

    Args:
      batch_size: examples in a global batch, at least 1.
      process_index: 0 <= process_index < process_count.
      process_count: number of processes.

    Returns:
      batch_size / process_count.

    Raises:
      ValueError: it does not divide, or an argument is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected at least 1")
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index={process_index}, expected 0 to process_count - 1 = "
            f"{process_count - 1}"
        )
    if batch_size % process_count:
        share = batch_size // process_count
        near = [n * process_count for n in (share, share + 1) if n]
        raise ValueError(
            f"batch_size={batch_size} is not divisible by process_count="
            f"{process_count}; nearest that are: {' and '.join(map(str, near))}"
        )
    return batch_size // process_count


def order_at(position: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The example at each position of the endless training stream.

    Args:
      position: integers >= 0, any shape.
      size: number of examples, at least 1.
      seed: 0 <= seed < 2**64.

    Returns:
      int32 of the shape of `position`, values in 0..size-1.
    """
    epoch, place = np.divmod(position, size)
    index = np.empty(position.shape, np.int32)
    for e in np.unique(epoch):
        here = epoch == e
        index[here] = permutation(size, seed, int(e))[place[here]]
    return index


def train_indices(
    step: int,
    *,
    size: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    steps: int | None = None,
) -> dict[str, np.ndarray]:
    """What this process trains on at a step.

    Args:
      step: number of the step, at least 0.
      size: number of training examples, at least 1.
      batch_size: examples in a global batch; may exceed `size`.
      seed: 0 <= seed < 2**64.
      process_index: this process.
      process_count: number of processes; each takes a contiguous slice.
      steps: None for one step; else that many steps from `step` on, stacked in
        front, for a runner that scans over a chunk of steps.

    Returns:
      With B = batch_size / process_count, [B] or [steps, B] arrays: "index" int32,
      row of the set; "position" uint32, running number in the stream (modulo 2**32);
      "mask" float32, all ones.

    Raises:
      ValueError: an argument is out of range, or the batch does not divide.

    Example:
      >>> batch = train_indices(7, size=10, batch_size=4, seed=0)
      >>> batch["position"].tolist()
      [28, 29, 30, 31]
    """
    local = local_batch_size(batch_size, process_index, process_count)
    lowest = {"step": (step, 0), "size": (size, 1), "seed": (seed, 0)}
    lowest["steps"] = (1 if steps is None else steps, 1)
    for name, (value, low) in lowest.items():
        if value < low:
            raise ValueError(f"{name}={value}, expected at least {low}")
    start = (step + np.arange(steps or 1, dtype=np.int64))[:, None] * batch_size
    position = start + process_index * local + np.arange(local)
    if steps is None:
        position = position[0]
    return {
        "index": order_at(position, size, seed),
        "position": (position % 2**32).astype(np.uint32),
        "mask": np.ones(position.shape, np.float32),
    }


def eval_steps(size: int, batch_size: int) -> int:
    """Number of batches that `eval_batches` gives, the same on every process."""
    return -(-size // batch_size)


def eval_batches(
    size: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    first: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches that cover each example exactly once over all processes.

    Args:
      size: number of examples, at least 1.
      batch_size: examples in a global batch, padding included.
      process_index: this process.
      process_count: number of processes; each takes a contiguous slice of a batch.
      first: the batch to begin with, at least 0.

    Returns:
      An iterator of `eval_steps(size, batch_size)` batches of the form of
      `train_indices`; padding has mask 0 and index 0, and "position" is the place in
      the padded sequence.

    Raises:
      ValueError: an argument is out of range, or the batch does not divide.

    Example:
      >>> [b["mask"].tolist() for b in eval_batches(3, 2)]
      [[1.0, 1.0], [1.0, 0.0]]
    """
    local = local_batch_size(batch_size, process_index, process_count)
    if size < 1:
        raise ValueError(f"size={size}, expected at least 1")
    if first < 0:
        raise ValueError(f"first={first}, expected at least 0")

    def batches():
        for step in range(first, eval_steps(size, batch_size)):
            position = step * batch_size + process_index * local + np.arange(local)
            real = position < size
            yield {
                "index": np.where(real, position, 0).astype(np.int32),
                "position": position.astype(np.uint32),
                "mask": real.astype(np.float32),
            }

    return batches()  # an inner generator, so that errors come at the call
