"""Patterns of terms of the loss: what they may be, and what they match."""

import re
from collections.abc import Iterable
from typing import Any

import jax

from quantnet_jax.common.limits import Number, Text, check
from quantnet_jax.common.names import closest, show
from quantnet_jax.common.patterns import fault
from quantnet_jax.trees import tree

PyTree = Any
TARGET = Number(1, 1e3)
"""Of a kurtosis."""


def unfit(*, pattern: str, targets: Iterable = (), **others: Any) -> str:
    """What is wrong with patterns among the options of a term, '' if nothing is."""
    del others
    for row in targets:
        try:
            of_path, target = row
            check("", of_path, Text())
            check("", target, TARGET)
        except (TypeError, ValueError):
            expected = f"expected (pattern, target) rows, a target {TARGET}"
            return f"targets={show(targets)}, {expected}"
        if message := fault("targets", of_path):
            return message
    return fault("pattern", pattern)


def matching(params: PyTree, pattern: str) -> dict[str, jax.Array]:
    """{path: parameter} of those whose path a pattern matches.

    Raises:
      ValueError: begins with 'pattern=': it matches none.
    """
    leaves = tree.flatten(params)
    found = {p: w for p, w in leaves.items() if re.fullmatch(pattern, p)}
    if not found:
        raise ValueError(
            f"pattern={pattern!r} matches no parameter; the paths are "
            + closest(pattern, sorted(leaves))
        )
    return found


def no_sparse(pattern: str) -> ValueError:
    """The error of a pattern that matches no kernel of a sparse convolution."""
    return ValueError(
        f"pattern={pattern!r} matches no sparse convolution; expected some, of a "
        "network such as model.name='sparse2d'"
    )
