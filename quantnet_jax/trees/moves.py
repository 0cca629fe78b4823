"""Where the axes of a parameter go: reshapes, transposes, slices, scans, look-ups.

An axis of a value is a product of atoms, the slowest first. An atom says of which axes
of the parameter it counts positions, and how many; of none if it only repeats.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

Atom = tuple[frozenset[int], int]
NOTHING: frozenset[int] = frozenset()


class Place(NamedTuple):
    """Where one parameter is in a value.

    Attributes:
      axes: the atoms of each axis of the value.
      stacked: axes of the parameter from which this value is one position.
      looked_up: those from which an input picks positions.
      scans: (scan, axes that it runs over), from the outermost.
      ones: axes of the parameter of length 1, from which nothing can be picked.
    """

    axes: tuple[tuple[Atom, ...], ...]
    stacked: frozenset[int] = NOTHING
    looked_up: frozenset[int] = NOTHING
    scans: tuple[tuple[int, frozenset[int]], ...] = ()
    ones: frozenset[int] = NOTHING

    def picked(self, atoms: Iterable[Atom]) -> "Place":
        """The same where these atoms, of length 1, are no axes any more."""
        return self._replace(stacked=self.stacked | (sources(atoms) - self.ones))


class Value(NamedTuple):
    """What is known of a value.

    Attributes:
      data: whether the input of the network reaches it.
      places: {path: where that parameter is in it, or why that is not known}.
    """

    data: bool
    places: dict[str, Place | str]


def start(shape: Sequence[int]) -> Place | str:
    """The place of a parameter in itself."""
    if not math.prod(shape):
        return "it has no elements"
    axes = tuple(whole(frozenset([i]), n) for i, n in enumerate(shape))
    return Place(axes, ones=frozenset(i for i, n in enumerate(shape) if n == 1))


def sources(atoms: Iterable[Atom]) -> frozenset[int]:
    """Axes of the parameter of which atoms count positions."""
    return NOTHING.union(*(found for found, _ in atoms))


def together(values: Sequence[Value], shape: Sequence[int]) -> Value:
    """The result of an operation element by element."""
    some = [value for value in values if value.data or value.places]
    if len(some) > 1 and any(value.data for value in some):
        return Value(True, {})
    places: dict[str, Place | str] = {}
    for value in some:
        for path, place in value.places.items():
            if not isinstance(place, str) and len(place.axes) < len(shape):  # a scalar
                place = place._replace(axes=tuple(whole(NOTHING, n) for n in shape))
            places[path] = _unite(places.get(path, place), place)
    return Value(any(value.data for value in some), places)


def merge(options: Sequence[Value], which: Value | None) -> Value:
    """A value that is one of several."""
    first, *others = options
    data = any(x.data for x in options) or (which is not None and which.data)
    if all(x.places == first.places for x in others):
        return Value(data, first.places)
    if data:
        return Value(True, {})
    places = dict(first.places)
    for option in others:
        for path, place in option.places.items():
            places[path] = _unite(places.get(path, place), place)
    return Value(False, places)


def enter(value: Value, eqn: Any) -> Value:
    """One slice of what a scan runs over."""

    def taken(place: Place) -> Place:
        found = sources(place.axes[0])
        scans = (*place.scans, (id(eqn), found))
        stacked = place.stacked | found
        return place._replace(axes=place.axes[1:], stacked=stacked, scans=scans)

    return each(value, taken)


def leave(value: Value, eqn: Any) -> Value:
    """A stacked output of a scan."""

    def put_back(place: Place) -> Place:
        found = dict(place.scans).get(id(eqn), NOTHING)
        axes = (whole(found, eqn.params["length"]), *place.axes)
        scans = tuple(scan for scan in place.scans if scan[0] != id(eqn))
        return place._replace(axes=axes, stacked=place.stacked - found, scans=scans)

    return each(value, put_back)


def _reshape(eqn, place: Place) -> Place:
    order = eqn.params.get("dimensions")
    axes = place.axes if order is None else [place.axes[i] for i in order]
    pool = [atom for atoms in axes for atom in atoms if atom[1] > 1]
    place = place.picked(atom for atoms in axes for atom in atoms if atom[1] == 1)
    new = []
    for size in eqn.params["new_sizes"]:
        group = []
        while size > 1:
            found, length = pool.pop(0)
            if size % length == 0:
                group.append((found, length))
                size //= length
                continue
            if length % size:  # the axes do not part here: all the rest is one
                found = found | sources(pool)
                length *= math.prod(n for _, n in pool)
                pool = []
            group.append((found, size))
            pool.insert(0, (found, length // size))
            size = 1
        new.append(tuple(group))
    return place._replace(axes=tuple(new))


def _squeeze(eqn, place: Place) -> Place:
    gone = {i % len(place.axes) for i in eqn.params["dimensions"]}
    return _without(place.picked(a for i in gone for a in place.axes[i]), gone)


def _broadcast(eqn, place: Place) -> Place:
    shape, to = eqn.outvars[0].aval.shape, eqn.params["broadcast_dimensions"]
    axes = [whole(NOTHING, n) for n in shape]
    for i, axis in enumerate(to):
        if eqn.invars[0].aval.shape[i] == shape[axis]:
            axes[axis] = place.axes[i]
        else:
            place = place.picked(place.axes[i])
    return place._replace(axes=tuple(axes))


def _unstack(eqn, place: Place) -> Place:
    axis = eqn.params["axis"]
    return _without(place.picked(place.axes[axis]), {axis})


def _tile(eqn, place: Place) -> Place:
    pairs = zip(eqn.params["reps"], place.axes, strict=True)
    return place._replace(axes=tuple(whole(NOTHING, n) + x for n, x in pairs))


def _transpose(eqn, place: Place) -> Place:
    return place._replace(axes=tuple(place.axes[i] for i in eqn.params["permutation"]))


def _reduce(eqn, place: Place) -> Place:
    return _without(place, set(eqn.params["axes"]))


def _resize(shape: Sequence[int], place: Place) -> Place:
    parts = zip(place.axes, shape, strict=True)
    return place._replace(axes=tuple(part(atoms, n) for atoms, n in parts))


def _one(move: Callable[[Any, Place], Place]) -> Callable:
    """A rule for all results of an equation that moves its first operand."""

    def rule(eqn, operands: Sequence[Value]) -> list[Value]:
        moved = each(operands[0], lambda place: move(eqn, place))
        data = any(value.data for value in operands)
        return [moved._replace(data=data)] * len(eqn.outvars)

    return rule


def _parts(eqn, operands: Sequence[Value]) -> list[Value]:
    """Slices, paddings and splits: axes that keep what they count, of new lengths."""
    first, data = operands[0], any(value.data for value in operands)
    return [
        each(first, lambda place, v=v: _resize(v.aval.shape, place))._replace(data=data)
        for v in eqn.outvars
    ]


def _join(eqn, operands: Sequence[Value]) -> list[Value]:
    """`concatenate`, or `stack` along a new axis."""
    if any(value.data for value in operands):
        return [Value(True, {})]
    shape = eqn.outvars[0].aval.shape

    def widened(place: Place) -> Place:
        axes, at = place.axes, eqn.params.get("axis")
        new = axes if at is None else (*axes[:at], (), *axes[at:])
        return _resize(shape, place._replace(axes=new))

    return [together([each(value, widened) for value in operands], shape)]


MOVES: dict[str, Callable[[Any, Sequence[Value]], list[Value]]] = {
    "reshape": _one(_reshape),
    "squeeze": _one(_squeeze),
    "transpose": _one(_transpose),
    "broadcast_in_dim": _one(_broadcast),
    **dict.fromkeys(("slice", "dynamic_slice", "pad", "split"), _parts),
    "unstack": _one(_unstack),
    "tile": _one(_tile),
    **dict.fromkeys(("concatenate", "stack"), _join),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _one(_reduce)),
    "optimization_barrier": lambda eqn, operands: list(operands),
}
"""Primitives that move numbers, or reduce axes -> places in their results."""

ELEMENTWISE = frozenset(
    (
        *("add", "sub", "mul", "div", "rem", "max", "min", "pow", "integer_pow"),
        *("neg", "sign", "abs", "floor", "ceil", "round", "sqrt", "rsqrt", "cbrt"),
        *("square", "exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "sin"),
        *("cos", "tan", "erf", "erfc", "erf_inv", "clamp", "select_n", "nextafter"),
        *("is_finite", "not", "and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge"),
        *("add_any", "convert_element_type", "reduce_precision", "stop_gradient"),
        *("copy", "copy_p", "name", "sharding_constraint", "rev", "cumsum"),
    )
)
"""Primitives whose results have the axes of their operands."""


def whole(found: frozenset[int], length: int) -> tuple[Atom, ...]:
    """The atoms of an axis that counts positions of these axes of the parameter."""
    return ((found, length),) if length > 1 or found else ()


def part(atoms: tuple[Atom, ...], length: int) -> tuple[Atom, ...]:
    """Atoms of an axis that gets another length."""
    if math.prod(n for _, n in atoms) == length:
        return atoms
    return whole(sources(atoms), length)


def _without(place: Place, gone: set[int]) -> Place:
    kept = tuple(atoms for i, atoms in enumerate(place.axes) if i not in gone)
    return place._replace(axes=kept)


def each(value: Value, move: Callable[[Place], Place]) -> Value:
    """The value with all places that are known moved."""
    new = {k: x if isinstance(x, str) else move(x) for k, x in value.places.items()}
    return value._replace(places=new)


def _unite(a: Place | str, b: Place | str) -> Place | str:
    """Both places of one parameter in one value."""
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else b
    axes = tuple(_both(x, y) for x, y in zip(a.axes, b.axes, strict=True))
    scans = a.scans + tuple(scan for scan in b.scans if scan not in a.scans)
    stacked, looked_up = a.stacked | b.stacked, a.looked_up | b.looked_up
    return Place(axes, stacked, looked_up, scans, a.ones)


def _both(a: tuple[Atom, ...], b: tuple[Atom, ...]) -> tuple[Atom, ...]:
    if [n for _, n in a] == [n for _, n in b]:
        pairs = zip(a, b, strict=True)
        return tuple((x | y, n) for (x, n), (y, _) in pairs)
    if not (sources(a) and sources(b)):
        return a if sources(a) else b
    return whole(sources(a) | sources(b), math.prod(n for _, n in a))
