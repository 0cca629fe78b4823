"""Words of messages: what an unknown name may have meant, a value on one line."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

MOST = 30
"""Words of a message that lists what is known."""
ALIASES = {
    **{"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size"},
    **{"mom": "momentum", "opt": "optimizer", "ema": "ema_decay", "act": "activation"},
}
"""Usual short names -> the keys."""


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """'; did you mean ...?', '' if no known word is near."""
    known = list(known)
    close = [x for x in known if x == ALIASES.get(str(word))]
    close = close or difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest(word: Any, known: Iterable[str]) -> str:
    """'; did you mean ...? (known: ...)'."""
    known = list(known)
    words = ", ".join(x or repr(x) for x in known[:MOST]) or "none"
    more = f" and {len(known) - MOST} more" if len(known) > MOST else ""
    return f"{did_you_mean(word, known)} (known: {words}{more})"


def closest(word: str, known: list[str], most: int = 8) -> str:
    """All known words, or of many those that `word` may have meant."""
    if len(known) <= 2 * most:
        return ", ".join(known)
    near = difflib.get_close_matches(word, known, n=most, cutoff=0.0)
    return ", ".join(sorted(near)) + f" and {len(known) - most} more"


def unknown(key: str, known: Iterable[str]) -> str:
    """The message for a key (dotted) that is none of `known` on its level."""
    return f"unknown config key {key!r}{nearest(key.rsplit('.', 1)[-1], sorted(known))}"


def dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested mappings.

    Example:
      >>> dotted({"seed": 0, "data": {"name": "mnist"}})
      {'seed': 0, 'data.name': 'mnist'}
    """
    found = {}
    for key, value in config.items():
        inner = isinstance(value, Mapping)
        found |= dotted(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return found


def reason(error: BaseException, most: int = 300) -> str:
    """The message of an error on one line, cut where it is long; else its type."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def show(value: Any) -> str:
    """`repr` on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 80 else text[:77] + "..."
