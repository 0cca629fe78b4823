"""What is wrong with the sections of a configuration that describe optimizers."""

from collections.abc import Mapping
from typing import Any

from quantnet_jax.common.limits import Number, Sequence, Text, check
from quantnet_jax.common.names import show, unknown
from quantnet_jax.common.patterns import check_pattern
from quantnet_jax.config.ranges import OPTIMIZER, OURS

USED_BY = {"optimizer": "options", "schedule": "schedule_options"}
"""Key that may name a function of optax -> key of its arguments."""


def completed(row: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `optimizers` as a section, with what it lacks from 'weights'.

    `options` and `schedule_options`, arguments of an optax function, are not taken over
    where the row names one of our optimizers or schedules.
    """
    given = {k: v for k, v in row.items() if k != "pattern"}
    unused = {o: () for k, o in USED_BY.items() if given.get(k) in OURS[k]}
    return {**weights, **unused, **given}


def check_row(key: str, row: Any, weights: Mapping) -> None:
    """Refuses a row of `optimizers` that is wrong.

    Args:
      key: of the row, such as 'optimizers[0]'.
      row: 'pattern', and keys of 'weights'.
      weights: that section, whose values a row lacks.

    Raises:
      ValueError: one line with the key, its value and what was expected.
    """
    if not isinstance(row, Mapping) or "pattern" not in row:
        raise ValueError(
            f"{key}={show(row)}, expected {{'pattern': ...}} and keys of 'weights'"
        )
    check(f"{key}.pattern", row["pattern"], Text())
    check_pattern(f"{key}.pattern", row["pattern"])
    given = {k: v for k, v in row.items() if k != "pattern"}
    for option, value in given.items():
        if option not in weights:
            raise ValueError(unknown(f"{key}.{option}", weights))
        check(f"{key}.{option}", value, OPTIMIZER.get(option) or Sequence())
    check_section(key, completed(row, weights))


def check_section(section: str, c: Mapping) -> None:
    """Refuses options that are no pairs or not used, and bad milestones.

    Args:
      section: 'weights', 'meta' or a row of `optimizers`.
      c: its values.

    Raises:
      ValueError: one line with the key, its value and what was expected.
    """
    for kind, key in USED_BY.items():
        for pair in c[key]:
            if (
                not isinstance(pair, list | tuple)
                or len(pair) != 2
                or not isinstance(pair[0], str)
            ):
                raise ValueError(
                    f"{section}.{key}={show(c[key])}, expected (name, value) pairs"
                )
        if c[key] and c[kind] in OURS[kind]:
            raise ValueError(
                f"{section}.{key}={show(c[key])}, expected () with "
                f"{section}.{kind}={c[kind]!r}, which is none of optax"
            )
    _check_milestones(section, c)


def _check_milestones(section: str, c: Mapping) -> None:
    key, milestones = f"{section}.milestones", c["milestones"]
    for milestone in milestones:
        check(key, milestone, Number(0, 1, above=True, below=True))
    if list(milestones) != sorted(set(milestones)):
        raise ValueError(f"{key}={show(milestones)}, expected ascending fractions")
    if c["schedule"] != "steps":
        return
    if not milestones:
        raise ValueError(f"{key}=(), expected some with {section}.schedule='steps'")
    if milestones[0] < c["warmup"]:
        raise ValueError(
            f"{key}={show(milestones)}, expected none in the warm-up, "
            f"{section}.warmup={c['warmup']}"
        )
