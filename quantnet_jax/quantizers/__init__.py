"""The list of quantizers, from which the law suite, the docs and the configs are made.

To add one: write its file with a factory, import it here, add one row to MEMBERS.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

from quantnet_jax.core import schedules
from quantnet_jax.core.base import Quantizer, identity
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import binary_ste, tanh_sign


class Member(NamedTuple):
    """One quantizer of the library and what the law suite may expect of it.

    Attributes:
      factory: keyword-only factory with defaults for everything.
      forward: 'soft' (annealed towards hard), 'hard' (straight-through) or 'float'.
      bits: widths it offers.
      learned: what `qparams` holds, '' for nothing.
      reference: paper, with '(reconstruction)' where we had to fill holes.
    """

    factory: Callable[..., Quantizer]
    forward: str
    bits: tuple[int, ...]
    learned: str
    reference: str


MEMBERS: dict[str, Member] = {
    "identity": Member(identity, "float", (), "", "full precision"),
    "quantnet": Member(
        quantnet,
        "soft",
        (1, 2, 3, 4),
        "sub-network",
        "arXiv 2009.04626 (reconstruction)",
    ),
    "tanh_sign": Member(tanh_sign, "soft", (1, 2, 3, 4), "", "arXiv 1902.00730"),
    "binary_ste": Member(binary_ste, "hard", (1,), "", "arXiv 1603.05279"),
}


def names() -> list[str]:
    """Names that `create` knows, sorted."""
    return sorted(MEMBERS)


def create(name: str, *, total_steps: int = 1, **options) -> Quantizer:
    """Makes a quantizer from plain data; the one place where a name becomes functions.

    Args:
      name: one of `names()`.
      total_steps: optimizer steps of the run, to which schedules are stretched.
      **options: arguments of the factory. A mapping stands for a schedule, see
        `quantnet_jax.core.schedules.from_spec`.

    Raises:
      ValueError: unknown name or option, with the nearest known one; or what the
        factory or the schedule refuses.

    Example:
      >>> sharpness = dict(schedule="exponential", start=0.3, end=50.0, until=0.9)
      >>> q = create("tanh_sign", total_steps=100, sharpness=sharpness)
    """
    if name not in MEMBERS:
        raise ValueError(f"unknown quantizer {name!r}{nearest(name, names())}")
    factory = MEMBERS[name].factory
    known = list(inspect.signature(factory).parameters)
    for key in options:
        if key not in known:
            raise ValueError(
                f"quantizer {name!r} has no option {key!r}{nearest(key, known)}"
            )
    made = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            try:
                value = schedules.from_spec(dict(value), total_steps)
            except ValueError as e:
                raise ValueError(f"quantizer {name!r}, option {key!r}: {e}") from None
        made[key] = value
    return factory(**made)


def nearest(name: str, known: list[str]) -> str:
    """'; did you mean ...? known: ...' for an error message."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known) or 'none'})"
