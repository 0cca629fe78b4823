"""Plain text for people: tables and durations."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(
    rows: Iterable[Sequence[Any]],
    headers: Sequence[str],
    *,
    left: int = 1,
    total: Sequence[Any] | None = None,
) -> str:
    """Returns a plain-text table.

    Args:
      rows: cells; None is shown as '-'.
      headers: of the columns.
      left: how many columns are aligned left; the others are aligned right.
      total: a last row below a rule of its own.

    Raises:
      ValueError: a row has another length than the headers.

    Example:
      >>> print(table([["conv", 9], ["head", None]], ["layer", "bits"]))
      layer  bits
      -----  ----
      conv      9
      head      -
    """
    cells = [list(headers), *rows, *([] if total is None else [total])]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(
                f"row {list(row)!r} has {len(row)} cells, expected {len(headers)}"
            )
    texts = [["-" if x is None else str(x) for x in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]

    def line(row):
        pairs = enumerate(zip(row, widths, strict=True))
        return "  ".join(
            x.ljust(n) if i < left else x.rjust(n) for i, (x, n) in pairs
        ).rstrip()

    rule = "  ".join("-" * n for n in widths)
    lines = list(map(line, texts))
    if total is not None:
        lines.insert(-1, rule)
    return "\n".join([lines[0], rule, *lines[1:]])


def duration(seconds: float) -> str:
    """Returns '42s', '3m07s' or '2h05m'."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
