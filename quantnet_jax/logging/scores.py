"""How scores are shown: the primary metric of a task in its unit, others in 4 digits.

Records hold the primary metric of a run under the keys of `SCORES`, and under 'metric'
its name, unit and direction (`quantnet_jax.tasks.Metric`).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

SCORES = {
    "float": "float",
    "soft": "soft",
    "hard": "hard",
    "packed": "packed",
    "exported": "exported",
    "hard_bn": "hard + BN",
}
"""Key in a record -> caption, for each form of the network that is evaluated."""


class Unit(NamedTuple):
    """The unit of a primary metric.

    Attributes:
      name: of the metric, such as 'psnr'; '' if unknown.
      suffix: of values, such as '%' or 'dB'.
      points: suffix of differences; 'pt' for percentages.
      factor: what recorded values are multiplied by.
      higher_is_better: whether a gap is soft - hard, or hard - soft.

    Example:
      >>> unit = unit_of({"name": "share", "unit": "%"})
      >>> unit.value(0.9), unit.difference(0.005)
      ('90.00%', '+0.50pt')
      >>> unit = unit_of({"name": "psnr", "unit": " dB"})
      >>> unit.value(31.236), unit.difference(-0.5)
      ('31.24 dB', '-0.50 dB')
      >>> unit_of(None).value(0.123456)
      '0.1235'
    """

    name: str = ""
    suffix: str = ""
    points: str = ""
    factor: float = 1.0
    higher_is_better: bool = True

    def number(self, value: float) -> str:
        """A value without its suffix; two decimals if there is one."""
        return f"{self.factor * value:.2f}" if self.suffix else f"{value:.4g}"

    def value(self, value: Any) -> str:
        """A value with its suffix, '-' for None."""
        return _finite(value) or self.number(value) + self.suffix

    def signed(self, difference: float) -> str:
        """A difference of two values with its sign, without a suffix."""
        return ("-" if difference < 0 else "+") + self.number(abs(difference))

    def difference(self, value: Any) -> str:
        """A difference with sign and suffix, '-' for None."""
        return _finite(value) or self.signed(value) + self.points

    def gap(self, better: float, worse: float) -> float:
        """By how much the second value is worse than the first."""
        return better - worse if self.higher_is_better else worse - better


PLAIN = Unit()


def unit_of(metric: Mapping[str, Any] | None) -> Unit:
    """The unit in a record's 'metric'; `PLAIN` without one.

    Args:
      metric: {'name', 'unit', 'higher_is_better'}; each may be missing. The unit '%' is
        of fractions, any other is a suffix.
    """
    metric = metric or {}
    suffix = str(metric.get("unit") or "")
    percent = suffix == "%"
    return Unit(
        name=str(metric.get("name") or ""),
        suffix=suffix,
        points="pt" if percent else suffix,
        factor=100.0 if percent else 1.0,
        higher_is_better=bool(metric.get("higher_is_better", True)),
    )


def further(result: Mapping[str, Any]) -> dict[str, str]:
    """{key: caption} of what a result has beyond the primary metric of its forms."""
    found = {
        "interval": "95 % interval, ±",
        "hard_train": "hard, training data",
        "generalization_gap": "generalization gap",
    }
    others = [key.removesuffix("_hard") for key in result if key.endswith("_hard")]
    found |= {f"{x}_hard": f"{x.replace('_', ' ')}, hard" for x in others}
    return {key: caption for key, caption in found.items() if key in result}


def show(name: str, value: Any, unit: Unit) -> str:
    """Text for the entry `name` of a record."""
    if isinstance(value, str):
        return value
    if name.removesuffix("_train") in (*SCORES, "interval"):
        return unit.value(value)
    if name in ("gap", "gap_bn", "generalization_gap"):
        return unit.difference(value)
    return _finite(value) or (
        str(int(value)) if value == int(value) else f"{value:.4g}"
    )


def _finite(value: Any) -> str:
    """'-' for None, 'nan' or 'inf' for those, '' for a number that can be shown."""
    if value is None:
        return "-"
    return "" if math.isfinite(value) else str(float(value))
