"""The order of examples: a pure function of (seed, epoch), for any process count.

The training stream is the endless concatenation of one permutation per epoch. Step t
takes positions [t * B, (t + 1) * B) of it, across epoch boundaries, so every epoch
contains each example exactly once, every batch is full, and no step needs state.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np


@functools.lru_cache(maxsize=4)  # a batch overlaps few epochs
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
    # Sorted raw Philox bits: NumPy guarantees stable bits of a bit generator between
    # versions, but no stable Generator.permutation.
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    order = np.argsort(bits, kind="stable").astype(np.int32)
    order.setflags(write=False)
    return order


def local_batch_size(
    batch_size: int, process_index: int = 0, process_count: int = 1
) -> int:
    """Examples of a global batch on each process.

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
) -> dict[str, np.ndarray]:
    """The training examples of this process at a step.

    Args:
      step: number of the step, at least 0.
      size: number of training examples, at least 1.
      batch_size: examples in a global batch; may exceed `size`.
      seed: 0 <= seed < 2**64.
      process_index: this process.
      process_count: number of processes; each takes a contiguous slice.

    Returns:
      With B = batch_size / process_count: "index" int32 [B], row of the dataset;
      "position" uint32 [B], position in the stream (modulo 2**32); "mask" float32 [B],
      all ones.

    Raises:
      ValueError: an argument is out of range, or the batch does not divide.

    Example:
      >>> batch = train_indices(7, size=10, batch_size=4, seed=0)
      >>> batch["position"].tolist()
      [28, 29, 30, 31]
    """
    local = local_batch_size(batch_size, process_index, process_count)
    _check_least(step=(step, 0), size=(size, 1), seed=(seed, 0))
    position = step * batch_size + process_index * local + np.arange(local)
    return {
        "index": order_at(position, size, seed),
        "position": (position % 2**32).astype(np.uint32),
        "mask": np.ones(position.shape, np.float32),
    }


def eval_steps(size: int, batch_size: int) -> int:
    """Number of batches of an evaluation, the same on every process."""
    return -(-size // batch_size)


def eval_indices(
    step: int,
    *,
    size: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, np.ndarray]:
    """The evaluation examples of this process in a batch.

    Args:
      step: number of the batch, 0 to `eval_steps(size, batch_size)` - 1.
      size: number of examples, at least 1.
      batch_size: examples in a global batch, padding included.
      process_index: this process.
      process_count: number of processes; each takes a contiguous slice.

    Returns:
      As `train_indices`; padding has mask 0 and index 0, and "position" is the place in
      the padded sequence.

    Raises:
      ValueError: an argument is out of range, or the batch does not divide.
    """
    local = local_batch_size(batch_size, process_index, process_count)
    _check_least(step=(step, 0), size=(size, 1))
    position = step * batch_size + process_index * local + np.arange(local)
    real = position < size
    return {
        "index": np.where(real, position, 0).astype(np.int32),
        "position": position.astype(np.uint32),
        "mask": real.astype(np.float32),
    }


def eval_batches(size: int, batch_size: int, **process: int) -> Iterator[dict]:
    """All batches of `eval_indices`: each example exactly once over all processes.

    Args:
      size: number of examples, at least 1.
      batch_size: examples in a global batch, padding included.
      **process: `process_index` and `process_count`.

    Raises:
      ValueError: at the call, see `eval_indices`.

    Example:
      >>> [b["mask"].tolist() for b in eval_batches(3, 2)]
      [[1.0, 1.0], [1.0, 0.0]]
    """
    batch = functools.partial(eval_indices, size=size, batch_size=batch_size, **process)
    batch(0)
    return map(batch, range(eval_steps(size, batch_size)))


def _check_least(**limits: tuple[int, int]) -> None:
    for name, (value, low) in limits.items():
        if value < low:
            raise ValueError(f"{name}={value}, expected at least {low}")
