"""Step time, time waiting for data, device memory, and profiler traces."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from quantnet_jax.distributed import hosts

T = TypeVar("T")


class Meter:
    """Times steps between log records, excluding evaluation and checkpointing."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Starts a new record now."""
        self._began, self._waited = time.monotonic(), 0.0

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches; the time until each arrives counts as waiting."""
        iterator = iter(batches)
        while True:
            began = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - began
            yield batch

    def compiled(self, fn: Callable[..., T]) -> Callable[..., T]:
        """Wraps `fn`; calls that compile it are not counted.

        These are the first calls for each shape of the arrays in the last argument.
        """
        called = set()

        def wrapped(*args):
            shapes = tuple(np.shape(x) for x in jax.tree.leaves(args[-1]))
            began = time.monotonic()
            result = fn(*args)
            if shapes not in called:  # its steps run asynchronously, and are counted
                self._began += time.monotonic() - began
            called.add(shapes)
            return result

        return wrapped

    def read(self, steps: int, batch_size: int) -> dict[str, float]:
        """The record of `steps` finished steps.

        Returns:
          'step_time' (seconds), 'examples_per_second', 'data_wait' (fraction of the
          time in which this process waited for its batches) and, where devices report
          it, 'device_memory' (bytes, the peak of the fullest local device; on CPUs
          that of this process).
        """
        took = max(time.monotonic() - self._began, 1e-9)
        record = {
            "step_time": took / max(steps, 1),
            "examples_per_second": batch_size * steps / took,
            "data_wait": min(1.0, self._waited / took),
        }
        memory = hosts.peak_memory()
        return record | ({} if memory is None else {"device_memory": memory})


@contextlib.contextmanager
def tracing(folder: Path | None, *, skip: int = 10, steps: int = 10):
    """Yields `tick(step, result)`, to be called after each dispatch.

    From the first tick at least `skip` steps after the start until `steps` steps later
    the profiler of JAX writes a trace into `folder`, for TensorBoard or XProf.

    Args:
      folder: None for no trace.
      skip: steps before the trace, in which programs are compiled.
      steps: length of the trace.
    """
    first = begun = None
    done = folder is None

    def tick(step: int, result) -> None:
        nonlocal first, begun, done
        first = step if first is None else first
        if done or step < first + skip:
            return
        if begun is None:
            jax.block_until_ready(result)  # earlier steps stay out of the trace
            jax.profiler.start_trace(str(folder))
            begun = step
        elif step >= begun + steps:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            done = True

    try:
        yield tick
    finally:
        if begun is not None and not done:
            jax.profiler.stop_trace()
