"""Terminal output of a run: progress, and the table at its end."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from quantnet_jax.common.text import duration, table
from quantnet_jax.logging.scores import (
    PLAIN,
    SCORES,
    Unit,
    further,
    show,
    unit_of,
)


class Progress:
    """Shows the progress of a run: a bar on a terminal, else one line per log interval.

    Args:
      total: steps of the whole run.
      unit: of the primary metric.
      stream: text stream; standard error by default.
      start: steps done before this process (a resumed run).
      active: False on processes other than 0, which print nothing.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: Unit = PLAIN,
        stream: TextIO | None = None,
        start: int = 0,
        active: bool = True,
    ):
        self._total, self._start, self._active = total, start, active
        self._stream, self._unit = stream or sys.stderr, unit
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
        """Moves to `step`; a record (loss, soft, hard, gap, ...) is shown from now on.

        Without a terminal only calls with a record print a line.
        """
        if not self._active:
            return
        if record:
            self._shown |= {k: show(k, v, self._unit) for k, v in record.items()}
        text = " ".join(f"{k} {v}" for k, v in self._shown.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            if record:
                self._bar.refresh()
        elif record:
            elapsed = time.monotonic() - self._began
            left = elapsed / max(step - self._start, 1) * (self._total - step)
            times = f"{duration(elapsed)} done, {duration(left)} left"
            self.write(f"step {step}/{self._total} | {text} | {times}")

    def write(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        elif self._active:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def summary(result: Mapping[str, Any]) -> str:
    """The table at the end of a run: scores, gaps, and the gap of each layer.

    Args:
      result: as in result.json; any score or gap may be absent.
    """
    unit = unit_of(result.get("metric"))
    gap = "soft - {}" if unit.higher_is_better else "{} - soft"
    captions = SCORES | {
        "gap": gap.format("hard"),
        "gap_bn": gap.format("(hard + BN)"),
        **further(result),
    }
    rows = [(v, show(k, result[k], unit)) for k, v in captions.items() if k in result]
    title = " ".join(filter(None, (result["method"], unit.name)))
    parts = [table(rows, [title, f"{result['examples']} examples"])]
    layers = [
        (
            path,
            "x".join(map(str, layer["shape"])),
            *(show(key, layer[key], unit) for key in ("distance", "undecided")),
        )
        for path, layer in result["layers"].items()
    ]
    if layers:
        headers = ["layer", "shape", "soft-hard distance", "undecided"]
        parts.append(table(layers, headers))
    return "\n" + "\n\n".join(parts)
