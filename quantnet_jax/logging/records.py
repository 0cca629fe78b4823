"""Run records: metrics.jsonl, TensorBoard events, JSON files."""

import contextlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np

from quantnet_jax.checkpoint.storage import writing
from quantnet_jax.common.files import as_path, in_bucket, write_atomic
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
        self._held = self._bucket = None
        if not active:
            return
        path = as_path(workdir) / METRICS_FILE
        self.path = os.fspath(path)
        folder = workdir
        if in_bucket(workdir):  # where nothing is appended to: copied by `flush`
            self._held = tempfile.TemporaryDirectory()
            self._bucket, folder = as_path(workdir), self._held.name
        with writing(self.path):
            os.makedirs(folder, exist_ok=True)
            write_atomic(path, _lines_until(path, resume_step))
            own = os.path.join(folder, METRICS_FILE)
            if self._bucket:
                write_atomic(own, path.read_bytes())
            self._file = open(own, "a", buffering=1, encoding="utf-8")
        if tensorboard:
            with contextlib.suppress(ImportError):
                self._events = Events(os.path.join(folder, "tensorboard"), resume_step)

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
        """Flushes to the operating system, or to the bucket."""
        if self._file is not None:
            with writing(self.path):
                self._file.flush()
        if self._events is not None:
            self._events.flush()
        self._copy()

    def _copy(self) -> None:
        if self._bucket is None or self._held is None:
            return
        with writing(self.path):
            for path in sorted(pathlib.Path(self._held.name).rglob("*")):
                if path.is_file():
                    name = path.relative_to(self._held.name).as_posix()
                    (self._bucket / name).write_bytes(path.read_bytes())

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._file is not None:
            with writing(self.path):
                self._file.close()
        if self._events is not None:
            self._events.close()
        if self._file is not None:
            self._copy()
        if self._held is not None:
            self._held.cleanup()
        self._file = self._events = self._held = None


def _lines_until(path: Any, step: int | None) -> bytes:
    """Lines of `path` up to `step` (None: no line), without those a crash spoiled."""
    if step is None or not path.is_file():
        return b""
    retained, lines = [], path.read_bytes().splitlines(keepends=True)
    while lines and _step(lines[-1]) is None:  # cut off, or zeros after a loss of power
        lines.pop()
    for number, line in enumerate(lines, 1):
        if (found := _step(line)) is None:
            raise ValueError(
                f"{os.fspath(path)!r} line {number} is not a record ({line[:40]!r}); "
                "remove the line, or use another workdir"
            )
        if found <= step:
            retained.append(line)
    return b"".join(retained)


def _step(line: bytes) -> float | None:
    """The step of a record, None for anything else."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
        return step if isinstance(step, int | float) else None
    return None
