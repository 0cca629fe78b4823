"""Run records: metrics.jsonl, TensorBoard events, JSON files."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np

from quantnet_jax.checkpoint.storage import writing
from quantnet_jax.core.files import write_atomic
from quantnet_jax.logging.events import Events

METRICS_FILE = "metrics.jsonl"


def jsonable(value: Any) -> Any:
    """Returns `value` as strict JSON data: arrays become lists, NaN and inf null.

    Floats are written with all digits, so they read back equal.

    Raises:
      ValueError: a type that JSON cannot represent.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        # Extension types (bfloat16) have no `tolist` to Python floats.
        known = array if array.dtype.kind in "biufU" else array.astype(np.float64)
        return jsonable(known.tolist())
    raise ValueError(
        f"cannot write {type(value).__name__} ({value!r:.60}) as JSON; give numbers,"
        " strings, lists, dicts or arrays"
    )


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as strict JSON; a reader sees the old file or the new one."""
    text = json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n"
    with writing(path):
        write_atomic(path, text)


class Writer:
    """Appends records to `workdir/metrics.jsonl` and, if importable, TensorBoard.

    Args:
      workdir: folder of the run; created.
      tensorboard: also write events to `workdir/tensorboard` by tensorboardX.
      resume_step: None starts an empty file. Step k retains the lines up to k: a
        resumed run then writes the same file as an uninterrupted one, provided the
        lines of step k were written before the checkpoint of step k was saved.
      active: False on processes other than 0, which write nothing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        tensorboard: bool = True,
        resume_step: int | None = None,
        active: bool = True,
    ):
        self._file: TextIO | None = None
        self._events: Events | None = None
        if not active:
            return
        os.makedirs(workdir, exist_ok=True)
        self.path = os.path.join(workdir, METRICS_FILE)
        with writing(self.path):
            write_atomic(self.path, _lines_until(self.path, resume_step))
        self._file = open(self.path, "a", buffering=1, encoding="utf-8")
        if tensorboard:
            with contextlib.suppress(ImportError):
                folder = os.path.join(workdir, "tensorboard")
                self._events = Events(folder, resume_step)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, kind: str, step: int, record: Mapping[str, Any]) -> None:
        """Writes one line `{"step", "kind", **record}`.

        Args:
          kind: "train", "eval" or "layers".
          step: number of finished steps.
          record: scalars; for "layers" `{"layers": {path: {..., "histogram"}}}`.
        """
        if self._file is None:
            return
        line = jsonable({"step": int(step), "kind": kind, **record})
        with writing(self.path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._events is not None:
            self._events.write(kind, int(step), line)

    def flush(self) -> None:
        """Flushes to the operating system."""
        if self._file is not None:
            with writing(self.path):
                self._file.flush()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._file is not None:
            with writing(self.path):
                self._file.close()
        if self._events is not None:
            self._events.close()
        self._file = self._events = None


def _lines_until(path: str, step: int | None) -> str:
    """Lines of `path` up to `step` (None: no line), without one cut off by a crash."""
    if step is None or not os.path.exists(path):
        return ""
    retained = []
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                retained.append(line)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise ValueError(
                    f"{path!r} line {number} is not a record ({line[:40]!r}); remove"
                    " the line, or use another workdir"
                ) from error
    return "".join(retained)
