"""Declarative constraints of settings: a number in a range, a word of a list, ...

`check(key, value, limit)` refuses everything else in one line that names the key. It
computes nothing with JAX: settings are checked before any device is touched.
"""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from quantnet_jax.common import specs
from quantnet_jax.common.names import nearest, show, unknown

LARGEST = 3.4e38
"""Of a float32."""


class Number(NamedTuple):
    """A finite number: an integer only if `whole`; otherwise integers are accepted.

    Attributes:
      low, high: the range, both ends included.
      whole: only integers.
      above: `low` itself is not allowed.
      below: `high` itself is not allowed.
      zero: 0 is allowed beside the range.
    """

    low: float = -LARGEST
    high: float = LARGEST
    whole: bool = False
    above: bool = False
    below: bool = False
    zero: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low, high = (f"{x:g}" if abs(x) < 1e5 else f"{x}" for x in self[:2])
        text = f"{kind} {'above' if self.above else 'from'} {low}"
        if self.low <= -LARGEST:
            text = kind
        elif self.high >= LARGEST:
            text += "" if self.above else " on"
        if self.high < LARGEST:
            text += f"{' and below' if self.below else ' to'} {high}"
        return text + (", or 0" if self.zero else "")


class Choice(NamedTuple):
    """One of some words, or anything that fits a regular expression."""

    words: tuple[str, ...]
    pattern: str = "(?!)"

    def __str__(self) -> str:
        return f"one of {', '.join(map(repr, self.words))}"


class Flag(NamedTuple):
    """True or False."""

    def __str__(self) -> str:
        return "True or False"


class Text(NamedTuple):
    """Any string."""

    def __str__(self) -> str:
        return "a str"


class Sequence(NamedTuple):
    """A tuple or list.

    Attributes:
      item: what each of one or more items is; None: checked by who knows them.
    """

    item: Number | None = None

    def __str__(self) -> str:
        return "a tuple" + (f" of one or more: {self.item}" if self.item else "")


class Scheduled(NamedTuple):
    """A number; or a mapping that stands for a schedule of such numbers.

    See `quantnet_jax.core.schedules.from_spec`.
    """

    number: Number

    def __str__(self) -> str:
        return f"{self.number}, or a schedule"


Limit = Number | Choice | Flag | Text | Sequence | Scheduled


def check(key: str, value: Any, limit: Limit) -> None:
    """Refuses a value that is not what `limit` says.

    Raises:
      ValueError: one line with the key, the value and what was expected.
    """
    if isinstance(limit, Scheduled) and isinstance(value, Mapping):
        return _check_schedule(key, value, limit)
    if isinstance(limit, Choice):
        known = isinstance(value, str) and (
            value in limit.words or re.fullmatch(limit.pattern, value)
        )
        if not known:
            raise ValueError(f"{key}={show(value)}{nearest(value, limit.words)}")
        return
    number = limit.number if isinstance(limit, Scheduled) else limit
    if isinstance(number, Number):
        kinds = int if number.whole else (int, float)
    else:
        kinds = {Flag: bool, Text: str, Sequence: (tuple, list)}[type(number)]
    wrong_bool = isinstance(value, bool) and not isinstance(number, Flag)
    if wrong_bool or not isinstance(value, kinds):
        raise ValueError(
            f"{key}={show(value)} is a {type(value).__name__}, expected {limit}"
        )
    if isinstance(number, Number) and not _inside(value, number):
        raise ValueError(f"{key}={show(value)}, expected {limit}")
    if isinstance(number, Sequence) and number.item:
        _check_items(key, value, number, number.item)


def _check_items(key: str, items: Any, limit: Sequence, of_item: Number) -> None:
    if not items:
        raise ValueError(f"{key}={show(items)}, expected {limit}")
    for place, item in enumerate(items):
        check(f"{key}[{place}]", item, of_item)


def _inside(value: int | float, limit: Number) -> bool:
    if limit.zero and value == 0:
        return True
    if not -LARGEST <= value <= LARGEST:  # and neither infinite nor nan
        return False
    low, high = limit.low, limit.high
    if not limit.whole:
        # As the programs will see it: 1 - 1e-9 is 1, and 1e-50 is 0.
        low, high, value = (float(np.float32(x)) for x in (low, high, value))
    enough = value > low if limit.above else value >= low
    return bool(enough and (value < high if limit.below else value <= high))


def _check_schedule(key: str, value: Mapping, limit: Scheduled) -> None:
    number = limit.number
    if value.get("schedule") == "exponential" and number.low <= 0:
        number = number._replace(low=0.0, above=True)
    limits = {"value": number, "fraction": Number(0, 1, above=True)}
    for name, (kind, item) in specs.parse(key, value).items():
        if kind in limits:
            check(f"{key}.{name}", item, limits[kind])


def checked(
    factory: Callable | None = None, *, together: Callable[..., str] | None = None
) -> Callable:
    """Decorates a factory of keyword arguments, which then refuses impossible ones.

    What an argument may be stands in its annotation, `Annotated[int, Number(1, 4,
    whole=True)]`; arrays and schedules (callables) pass. A configuration is held to the
    same limits by `check_options`, without a call of the factory.

    Args:
      factory: the function; without it a decorator is returned.
      together: `(**all arguments) -> message`, '' if they fit together; it computes
        nothing with JAX.

    Example:
      >>> from typing import Annotated
      >>> @checked
      ... def q(*, bits: Annotated[int, Number(1, 4, whole=True)] = 1):
      ...     return bits
      >>> q(bits=5)
      Traceback (most recent call last):
      ValueError: bits=5, expected a whole number from 1 to 4
    """
    if factory is None:
        return functools.partial(checked, together=together)

    @functools.wraps(factory)
    def wrapped(*args: Any, **options: Any) -> Any:
        known = limits_of(wrapped)
        passed = {k: v for k, v in options.items() if k in known and not passes(v)}
        check_options("", wrapped, passed)
        return factory(*args, **options)

    wrapped.together = together  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped


def passes(value: Any) -> bool:
    """Whether a value of a factory call is no plain data: an array, a schedule."""
    return callable(value) or hasattr(value, "dtype") or value is None


def check_options(prefix: str, factory: Callable, options: Mapping[str, Any]) -> None:
    """Refuses options that a factory does not have or that are impossible.

    Args:
      prefix: of the keys in errors, such as 'quantizer.lsq.'.
      factory: its `Annotated` keyword arguments are the options.
      options: schedules as plain data.

    Raises:
      ValueError: one line with the key, the value and what was expected.
    """
    limits = limits_of(factory)
    for name, value in options.items():
        if name not in limits:
            owner = prefix.rstrip(".") or factory.__name__
            none = f"unknown config key {prefix + name!r}; {owner!r} has no options"
            raise ValueError(unknown(prefix + name, limits) if limits else none)
        check(prefix + name, value, limits[name])
    together = getattr(factory, "together", None)
    if together and (message := together(**defaults_of(factory) | dict(options))):
        raise ValueError(prefix + message)


@functools.cache
def limits_of(factory: Callable) -> dict[str, Limit]:
    """{option: what it may be}, of the keyword-only arguments of a factory.

    From their `Annotated` types, else from the types of their defaults. Of a class:
    of its attributes that are `Annotated`; other annotations are not looked at.
    """
    if isinstance(factory, type):
        annotations: dict[str, Any] = {}
        for base in reversed(factory.__mro__):
            annotations |= inspect.get_annotations(base)
        marked = {k: getattr(x, "__metadata__", ()) for k, x in annotations.items()}
        return {
            k: m for k, marks in marked.items() for m in marks if isinstance(m, Limit)
        }
    hints = typing.get_type_hints(factory, include_extras=True)
    found: dict[str, Limit] = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        marks = getattr(hints.get(name), "__metadata__", ())
        given = [m for m in marks if isinstance(m, Limit)]
        if not given and parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        kinds = {bool: Flag(), str: Text(), int: Number(whole=True), tuple: Sequence()}
        found[name] = (given or [kinds.get(type(parameter.default), Number())])[0]
    return found


def defaults_of(factory: Callable) -> dict[str, Any]:
    """{option: default} of a factory."""
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
