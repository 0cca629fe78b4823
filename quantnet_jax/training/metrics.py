"""Run records: metrics.jsonl, TensorBoard events, progress display, text tables."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

METRICS_FILE = "metrics.jsonl"
ACCURACIES = ("soft", "hard", "hard_bn", "accuracy")


def jsonable(value: Any) -> Any:
    """Returns `value` as strict JSON data: arrays become lists, NaN and inf null.

    Floats are written with all digits, so they read back equal.

    Raises:
      ValueError: a type that JSON has no word for.
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
    _replace(path, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")


def _replace(path: str | os.PathLike[str], text: str) -> None:
    temporary = f"{os.fspath(path)}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Writer:
    """Appends records to `workdir/metrics.jsonl` and, if importable, TensorBoard.

    Args:
      workdir: folder of the run; created.
      tensorboard: also write events to `workdir/tensorboard` through tensorboardX.
      resume_step: None starts an empty file. A step k keeps the lines up to k: a
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
        self._events: Any = None
        if not active:
            return
        os.makedirs(workdir, exist_ok=True)
        self.path = os.path.join(workdir, METRICS_FILE)
        kept = "" if resume_step is None else _lines_until(self.path, resume_step)
        _replace(self.path, kept)
        self._file = open(self.path, "a", buffering=1, encoding="utf-8")
        if tensorboard:
            self._events = _event_writer(
                os.path.join(workdir, "tensorboard"), resume_step
            )

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
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._events is not None:
            _write_events(self._events, kind, int(step), line)

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        if self._file is not None:
            self._file.flush()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()
        self._file = self._events = None


def _lines_until(path: str, step: int) -> str:
    """Returns the lines of `path` up to `step`, without a line cut off by a crash."""
    if not os.path.exists(path):
        return ""
    kept = []
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    for number, line in enumerate(lines, 1):
        try:
            keep = json.loads(line)["step"] <= step and line.endswith("\n")
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise ValueError(
                    f"{path!r} line {number} is not a record ({line[:40]!r}); remove"
                    " the line, or use another workdir"
                ) from error
            keep = False
        if keep:
            kept.append(line)
    return "".join(kept)


def _event_writer(folder: str, resume_step: int | None) -> Any:
    try:
        import tensorboardX
    except ImportError:
        return None
    # TensorBoard hides events at or above the purge step that older files hold.
    purge = 0 if resume_step is None else resume_step + 1
    return tensorboardX.SummaryWriter(folder, purge_step=purge, write_to_disk=True)


def _write_events(events: Any, kind: str, step: int, record: Mapping[str, Any]) -> None:
    for name, value in record.items():
        if isinstance(value, int | float) and name != "step":
            events.add_scalar(f"{kind}/{name}", value, step)
    for path, layer in record.get("layers", {}).items():
        for name, value in layer.items():
            if isinstance(value, int | float) and name != "bits":
                events.add_scalar(f"layers_{name}/{path}", value, step)
        histogram = layer.get("histogram")
        if histogram and sum(histogram["counts"]):
            edges = np.asarray(histogram["edges"], np.float64)
            counts = np.asarray(histogram["counts"], np.float64)
            centres = (edges[1:] + edges[:-1]) / 2
            events.add_histogram_raw(
                f"weights/{path}",
                min=float(edges[0]),
                max=float(edges[-1]),
                num=float(counts.sum()),
                sum=float((counts * centres).sum()),
                sum_squares=float((counts * centres**2).sum()),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )


class Progress:
    """Shows how far a run is: a bar on a terminal, else one line per log interval.

    Args:
      total: steps of the whole run.
      stream: text stream; standard error by default.
      start: steps done before this process (a resumed run).
      active: False on processes other than 0, which print nothing.
    """

    def __init__(
        self,
        total: int,
        *,
        stream: TextIO | None = None,
        start: int = 0,
        active: bool = True,
    ):
        self._total, self._start, self._active = total, start, active
        self._stream = sys.stderr if stream is None else stream
        self._began = time.monotonic()
        self._shown: dict[str, str] = {}
        self._bar: Any = None
        if active and self._stream.isatty():
            import tqdm

            self._bar = tqdm.tqdm(
                total=total, initial=start, file=self._stream, unit="step", leave=True
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, step: int, record: Mapping[str, Any] | None = None) -> None:
        """Moves to `step`; a record (loss, soft, hard, ...) is shown and remembered.

        Without a terminal only calls with a record print a line.
        """
        if not self._active:
            return
        if record:
            self._shown |= {k: format_metric(k, v) for k, v in record.items()}
            if {"soft", "hard"} <= record.keys():
                gap = _number(record["soft"]) - _number(record["hard"])
                self._shown["gap"] = format_metric("gap", gap)
        text = " ".join(f"{k} {v}" for k, v in self._shown.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            if record:
                self._bar.refresh()
        elif record:
            elapsed = time.monotonic() - self._began
            left = elapsed / max(step - self._start, 1) * (self._total - step)
            print(
                f"step {step}/{self._total} | {text} | {duration(elapsed)} done,"
                f" {duration(left)} left",
                file=self._stream,
                flush=True,
            )

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._active:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def format_metric(name: str, value: Any) -> str:
    """Returns a short text: accuracies in percent, gaps in points, others 4 digits."""
    if isinstance(value, str):
        return value
    number = _number(value)
    if not math.isfinite(number):
        return "-" if value is None else str(number)
    if name in ACCURACIES:
        return f"{100 * number:.2f}%"
    if name == "gap":
        return f"{100 * number:+.2f}pt"
    return str(int(number)) if number == int(number) else f"{number:.4g}"


def duration(seconds: float) -> str:
    """Returns '42s', '3m07s' or '2h05m'."""
    whole = max(int(round(seconds)), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def table(rows: Iterable[Sequence[Any]], headers: Sequence[str]) -> str:
    """Returns a plain-text table; the first column is aligned left, the rest right.

    Raises:
      ValueError: a row has another length than the headers.
    """
    cells = [[str(h) for h in headers]]
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(
                f"row {list(row)!r} has {len(row)} cells, expected {len(headers)}"
            )
        cells.append(["-" if cell is None else str(cell) for cell in row])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)
