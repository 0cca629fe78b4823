"""Regular expressions of settings."""

import re

from quantnet_jax.common.names import show


def fault(key: str, pattern: str) -> str:
    """Why a value is no regular expression, in one line; '' if it is one."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as e:
        return f"{key}={show(pattern)} is not a regular expression: {e}"
    return ""


def check_pattern(key: str, pattern: str) -> None:
    """Refuses what is no regular expression.

    Raises:
      ValueError: one line with the key, the value and what is wrong.
    """
    if message := fault(key, pattern):
        raise ValueError(message)
