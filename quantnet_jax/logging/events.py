"""TensorBoard events of a run; the one file that knows tensorboardX."""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantnet_jax.checkpoint.storage import writing


class Events:
    """Writes events in the calling thread, which so gets the error of a full disk.

    (The writer of tensorboardX has its own thread; once that dies of an error, later
    calls hang.)

    Args:
      folder: of the events file; created.
      resume_step: of a resumed run; TensorBoard hides earlier events above it. None
        hides all earlier events.

    Raises:
      ImportError: tensorboardX is not installed.
      StorageError: here and below: the file cannot be written.
    """

    def __init__(self, folder: str, resume_step: int | None):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        proto: Any = event_pb2  # made at run time
        self._summary, self._event = summary, proto.Event
        self._folder = folder
        # TensorBoard hides events at or above the step of such an event.
        purge = 0 if resume_step is None else resume_step + 1
        start = proto.SessionLog(status=proto.SessionLog.START)
        with writing(folder):
            os.makedirs(folder, exist_ok=True)
            self._writer = event_file_writer.EventsWriter(
                os.path.join(folder, "events")
            )
            self._writer.write_event(self._event(step=purge, session_log=start))

    def write(self, kind: str, step: int, record: Mapping[str, Any]) -> None:
        """Writes the numbers of a record; see `records.Writer.write`."""
        found = []
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                found.append(self._summary.scalar(f"{kind}/{name}", value))
        for path, layer in record.get("layers", {}).items():
            for name, value in layer.items():
                if isinstance(value, int | float) and name != "bits":
                    found.append(self._summary.scalar(f"layers_{name}/{path}", value))
            histogram = layer.get("histogram")
            if histogram and sum(histogram["counts"]):
                found.append(self._histogram(f"weights/{path}", histogram))
        with writing(self._folder):
            for summary in found:
                event = self._event(step=step, wall_time=time.time(), summary=summary)
                self._writer.write_event(event)

    def _histogram(self, name: str, histogram: Mapping[str, Any]) -> Any:
        edges = np.asarray(histogram["edges"], np.float64)
        counts = np.asarray(histogram["counts"], np.float64)
        centres = (edges[1:] + edges[:-1]) / 2
        return self._summary.histogram_raw(
            name,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=float(counts.sum()),
            sum=float((counts * centres).sum()),
            sum_squares=float((counts * centres**2).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
        )

    def flush(self) -> None:
        """Flushes to the operating system."""
        with writing(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        with writing(self._folder):
            self._writer.close()
