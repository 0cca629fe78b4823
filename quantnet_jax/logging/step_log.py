"""Asynchronous logging of training metrics: checked and averaged on the host."""

import math
from typing import Any

import jax
import numpy as np

from quantnet_jax.logging.meter import Meter
from quantnet_jax.logging.records import Writer


class Diverged(ArithmeticError):
    """A number of a step is infinite or NaN.

    Args:
      step: the first such step.
      loss: of that step.
      name, value: of the number.
    """

    def __init__(self, step: int, loss: float, name: str, value: float):
        super().__init__(
            f"diverged at step {step}: loss {loss:.6g}, {name} {value:.6g}"
        )


class StepLog:
    """Collects metrics on the devices, so that the host need not wait for each step.

    Args:
      writer: of the run.
      meter: its clock.
      batch_size: examples of a step.
      rows: metrics of earlier steps that no record holds yet (a resumed run).
    """

    def __init__(
        self,
        writer: Writer,
        meter: Meter,
        batch_size: int,
        rows: list[dict[str, float]],
    ):
        self._writer, self._meter, self._batch_size = writer, meter, batch_size
        self._on_devices: list[tuple[int, dict[str, Any]]] = []
        self._steps = 0
        self.rows = list(rows)

    def add(self, step: int, count: int, values: dict[str, Any]) -> None:
        """Adds the metrics of the `count` steps that end with `step`."""
        self._on_devices.append((step - count + 1, values))
        self._steps += count

    def fetch(self) -> None:
        """Moves metrics from the devices into `rows`.

        Raises:
          Diverged: a number is not finite.
        """
        waiting, self._on_devices = self._on_devices, []
        for first, values in jax.device_get(waiting):
            columns = {name: np.atleast_1d(value) for name, value in values.items()}
            for i in range(len(columns["loss"])):
                row = {name: float(column[i]) for name, column in columns.items()}
                check_finite(first + i, row["loss"], row)
                self.rows.append(row)

    def record(self, step: int, **more: float) -> dict[str, float]:
        """Writes the mean over the steps since the last record, `more`, and times.

        Raises:
          Diverged: a number is not finite.
        """
        self.fetch()
        row = {k: sum(r[k] for r in self.rows) / len(self.rows) for k in self.rows[0]}
        row |= more | self._meter.read(self._steps, self._batch_size)
        self._writer.write("train", step, row)
        self._steps = 0
        self.rows.clear()
        return row


def check_finite(step: int, loss: float, numbers: dict[str, float]) -> None:
    """Raises Diverged for the first number that is infinite or NaN."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise Diverged(step, loss, name, value)
