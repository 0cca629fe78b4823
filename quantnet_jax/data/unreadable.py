"""Examples that cannot be read: each is named once and counted, up to a limit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from absl import logging

from quantnet_jax.data.jpeg import decode_eval
from quantnet_jax.data.tfds_source import name_row

_NAMED = 3  # in the error message


class TooManyUnreadable(ValueError):
    """More examples of a set are damaged than the user allows."""


class Unreadable:
    """The unreadable examples that a process has met, each counted once.

    Args:
      limit: how many there may be, at least 0.
    """

    def __init__(self, limit: int = 0):
        if limit < 0:
            raise ValueError(f"max_unreadable={limit}, expected at least 0")
        self.limit = limit
        self._met: dict[str, str] = {}

    @property
    def count(self) -> int:
        """How many different examples it were so far."""
        return len(self._met)

    def add(self, source: Any, rows: Iterable[int]) -> None:
        """Takes rows of a source; those not met before are logged as a warning.

        Args:
          source: of `load_source`.
          rows: that could not be read.

        Raises:
          TooManyUnreadable: there are more than the limit.
        """
        for row in rows:
            name = name_row(source, row)
            if name not in self._met:
                self._met[name] = _reason(source, row)
                if self.count <= self.limit:
                    logging.warning(
                        "unreadable (%d of at most %d): %s: %s",
                        *(self.count, self.limit, name, self._met[name]),
                    )
        if self.count > self.limit:
            named = [f"{name}: {why}" for name, why in self._met.items()][:_NAMED]
            more = self.count - len(named)
            raise TooManyUnreadable(
                f"{self.count} unreadable examples, expected at most "
                f"data.max_unreadable={self.limit}: {'; '.join(named)}"
                f"{f'; and {more} more' if more else ''}; prepare the set again"
            )


def _reason(source, row: int) -> str:
    """What is wrong with an example, found by reading it again, in this process."""
    try:
        (example,) = source.__getitems__([row])
    except Exception as error:
        return _one_line(error)
    content = example["image"]
    try:
        decode_eval(content, 1, 1)
    except Exception as error:
        what = f"found {len(content)} bytes that are no readable image"
        return f"{what} ({_one_line(error)}), expected a JPEG"
    return "readable at the second try"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
