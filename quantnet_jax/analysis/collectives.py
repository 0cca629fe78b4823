"""What a compiled program sends between devices, read from its text."""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter"),
    *("all-to-all", "collective-permute", "collective-broadcast", "ragged-all-to-all"),
)
_OPERATION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<kind>[a-z][a-z-]*)"
    r"\((?P<operands>[^()]*)\)"
)
_ARRAY = re.compile(r"\b([a-z]+)(\d*)([a-z0-9]*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One operation between devices.

    Attributes:
      kind: one of `KINDS`.
      arrays: type and shape of each array, such as 'f32[3,3,16,16]', as it is before
        it is scattered, or after it was gathered.
      bytes: of these arrays.
    """

    kind: str
    arrays: tuple[str, ...]
    bytes: int


def collectives(text: str) -> list[Collective]:
    """The operations between devices in the text of a compiled program.

    Args:
      text: `jitted.lower(...).compile().as_text()`; what stands in the body of a loop
        counts once, however often the loop runs.

    Example:
      >>> collectives("%sum = f32[2,4]{1,0} all-reduce(%x), channel_id=1")
      [Collective(kind='all-reduce', arrays=('f32[2,4]',), bytes=32)]
    """
    types: dict[str, str] = {}
    lines = [m for m in map(_OPERATION.match, text.splitlines()) if m]
    for line in lines:
        types[line["name"]] = line["type"]
    found = []
    for line in lines:
        kind = line["kind"].removesuffix("-start")
        if kind not in KINDS:
            continue
        given = [
            array
            for name in re.findall(r"%([\w.-]+)", line["operands"])
            for array in _arrays(types.get(name, ""))
        ]
        made = _arrays(line["type"])
        if kind == "all-gather":
            # What only starts outputs its operands too, before the results.
            given = made[len(given) :] if line["kind"].endswith("-start") else made
        elif kind == "all-reduce":
            given = made
        names = tuple(f"{kind}[{shape}]" for kind, shape, _ in given)
        found.append(Collective(kind, names, sum(size for *_, size in given)))
    return found


def volume(found: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """{kind: {'operations', 'arrays', 'bytes'}} of the kinds that occur."""
    total: dict[str, dict[str, int]] = {}
    for one in found:
        sums = total.setdefault(one.kind, {"operations": 0, "arrays": 0, "bytes": 0})
        sums["operations"] += 1
        sums["arrays"] += len(one.arrays)
        sums["bytes"] += one.bytes
    return total


def expected_bytes(params: Any, batch_stats: Any) -> dict[str, int]:
    """What one step of data-parallel training has to reduce, in bytes.

    Args:
      params: all that is trained, with that of the quantizer.
      batch_stats: of BatchNorm, that is synchronized: a mean and a variance of each
        channel are averaged in the forward pass, and their gradients in the backward.

    Returns:
      {'gradients', 'statistics', 'statistics_gradients'}.
    """
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    return {
        "gradients": size(params),
        "statistics": size(batch_stats),
        "statistics_gradients": size(batch_stats),
    }


def _arrays(text: str) -> list[tuple[str, str, int]]:
    """(type, shape, bytes) of each array in a type, which may be a tuple."""
    found = []
    for letters, bits, rest, shape in _ARRAY.findall(text):
        if letters == "token":
            continue
        size = 8 if letters == "pred" else int(bits)
        count = math.prod(int(n) for n in shape.split(",") if n)
        found.append((letters + bits + rest, shape, -(-count * size // 8)))
    return found
