"""What a person at the terminal sees of a run: progress, numbers, text tables."""

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

ACCURACIES = ("soft", "hard", "hard_bn", "packed", "exported", "float", "accuracy")


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


def summary(result: dict) -> str:
    """The table at the end of a run: accuracies, gaps, and the gap of each layer.

    Args:
      result: as in result.json; 'float', 'hard_bn', 'packed' and 'exported' may be
        absent.
    """
    names = {"float": "float", "soft": "soft", "hard": "hard", "packed": "packed"}
    names |= {"exported": "exported", "hard_bn": "hard + BN"}
    gaps = {"gap": "soft - hard", "gap_bn": "soft - (hard + BN)"}
    rows = [(names[k], format_metric(k, result[k])) for k in names if k in result]
    rows += [(gaps[k], format_metric("gap", result[k])) for k in gaps if k in result]
    parts = [table(rows, [result["method"], f"{result['examples']} images"])]
    layers = [
        (
            path,
            "x".join(map(str, layer["shape"])),
            format_metric("distance", layer["distance"]),
            format_metric("undecided", layer["undecided"]),
        )
        for path, layer in result["layers"].items()
    ]
    if layers:
        headers = ["layer", "shape", "soft-hard distance", "undecided"]
        parts.append(table(layers, headers))
    return "\n" + "\n\n".join(parts)
