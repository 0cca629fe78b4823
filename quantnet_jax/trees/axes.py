"""Which axes of a parameter count output units, read from the products of a trace.

Each axis of a value that is made of a parameter is followed back to the axes of that
parameter, through everything that moves numbers without computing with them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from quantnet_jax.trees import moves, trace
from quantnet_jax.trees.moves import Place, Value
from quantnet_jax.trees.paths import flatten

PyTree = Any
OUT, INPUT, WINDOW, STACK = "out", "input", "window", "stack"


class Axes(NamedTuple):
    """What the axes of one parameter count; each axis stands in one of four fields.

    Attributes:
      out: output units.
      inputs: what a unit sums over, the windows of convolutions aside.
      stack: separate tensors: layers of a scan, members of a `vmap`, experts.
      window: positions in the window of a convolution.
      unknown: '' or why the products do not tell; `out` is then the last axis.
    """

    out: tuple[int, ...]
    inputs: tuple[int, ...]
    stack: tuple[int, ...] = ()
    window: tuple[int, ...] = ()
    unknown: str = ""


class _Use(NamedTuple):
    """What the axes of a parameter are to one product.

    Attributes:
      path: of the parameter.
      roles: (axis, role) pairs; or why they are not known.
      counts: False for a look-up and for a product that no input reaches: they tell
        only if there is no other use.
    """

    path: str
    roles: frozenset[tuple[int, str]] | str
    counts: bool


def axes(apply: Callable, params: PyTree, example: PyTree) -> dict[str, Axes]:
    """Finds output, input and stacked axes of every parameter.

    They are those of the products that `apply(params, example)` computes, whatever the
    framework: a convolution or matrix product sums over inputs and windows; axes that
    both operands have (`vmap`, experts), that a scan runs over or that one index picks
    from are stacked; the others count output units. Of a table that is looked up
    (Embed) rows are units; where it is also multiplied (a tied output head), the
    product decides, which for `x @ table.T` says the same. Of a network function, not
    of a loss: nothing is computed, and only forward products are seen.

    Args:
      apply: the network, any traceable function.
      params: tree of arrays or `jax.ShapeDtypeStruct`s.
      example: the second argument of `apply`, likewise, with its batch axis.

    Returns:
      {path: Axes}, for `tree_quantizer(rules, params, axes=...)` and `out="auto"`.
      `unknown` tells where a parameter meets no product (biases), where its products
      contradict each other, or where it goes through something that is not followed.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones((8, 4, 3)), "b": jnp.ones((4, 3))}
      >>> apply = lambda p, x: jnp.einsum("bi,ihd->bhd", x, p["w"]) + p["b"][None]
      >>> found = axes(apply, params, jnp.ones((1, 8)))
      >>> found["w"].out, found["w"].inputs, found["b"].unknown
      ((1, 2), (0,), 'it meets no product')
    """
    closed = jax.make_jaxpr(apply)(params, example)
    leaves = flatten(params)
    inputs = [Value(False, {k: moves.start(x.shape)}) for k, x in leaves.items()]
    inputs += [Value(True, {}) for _ in jax.tree.leaves(example)]
    _, uses = trace.walk(closed.jaxpr, inputs, _FACTS)
    of = lambda path: [use for use in uses if use.path == path]
    return {path: _resolve(leaf.shape, of(path)) for path, leaf in leaves.items()}


def _resolve(shape: Sequence[int], uses: Sequence[_Use]) -> Axes:
    """What all uses of a parameter say together."""
    everything = tuple(range(len(shape)))
    unknown = Axes(everything[-1:], everything[:-1])
    uses = [use for use in uses if use.counts] or uses
    roles: dict[int, set[str]] = {axis: set() for axis in everything}
    for use in uses:
        if isinstance(use.roles, str):
            return unknown._replace(unknown=use.roles)
        for axis, role in use.roles:
            roles[axis].add(role)
    if not uses:
        return unknown._replace(unknown="it meets no product")
    for axis, found in roles.items():
        if found & {INPUT, WINDOW} and found & {OUT, STACK}:
            why = f"axis {axis} is summed over in one product and not in another"
            return unknown._replace(unknown=why)
    # An axis of which a part is stacked counts units all the same: finer ones.
    out = tuple(axis for axis in everything if OUT in roles[axis])
    stack = tuple(axis for axis in everything if roles[axis] == {STACK})
    if not out:  # one unit: an axis of length 1 may say so
        ones = [axis for axis in everything if shape[axis] == 1 and axis not in stack]
        out = tuple(ones[-1:])
    left = [axis for axis in everything if axis not in (*out, *stack)]
    window = tuple(axis for axis in left if roles[axis] == {WINDOW})
    return Axes(out, tuple(a for a in left if a not in window), stack, window)


def _equation(eqn, operands: list[Value]) -> tuple[list[Value], list[_Use]]:
    name, data = eqn.primitive.name, any(value.data for value in operands)
    if name in trace.PRODUCTS:
        return [Value(data, {})], _product(eqn, operands)
    if name == "gather" and operands[0].places:
        return _gather(eqn, *operands)
    if name in moves.MOVES:
        return moves.MOVES[name](eqn, operands), []
    if name in moves.ELEMENTWISE:
        shape = eqn.outvars[0].aval.shape
        return [moves.together(operands, shape)] * len(eqn.outvars), []
    if any(map(trace.holds_product, trace.inner(eqn.params))):
        why = f"it goes into {name!r}, whose products cannot be read from the trace"
        uses = [_Use(path, why, True) for value in operands for path in value.places]
        return [Value(data, {})] * len(eqn.outvars), uses
    why = f"it goes through {name!r} before a product"
    paths = [path for value in operands for path in value.places]
    lost = Value(data, {} if data else dict.fromkeys(paths, why))
    return [lost] * len(eqn.outvars), []


def _product(eqn, operands: Sequence[Value]) -> list[_Use]:
    name, p = eqn.primitive.name, eqn.params
    a, b = operands[:2]
    rank = [len(v.aval.shape) for v in eqn.invars[:2]]
    if name == "conv_general_dilated":
        kernel = p["dimension_numbers"].rhs_spec
        roles = [WINDOW] * rank[1]
        roles[kernel[0]], roles[kernel[1]] = OUT, INPUT
        groups = p["feature_group_count"] * p["batch_group_count"]
        uses = _uses(b, _ungrouped(kernel[0], groups), roles, a.data)
        why = "it is the input of a convolution"
        return uses + [_Use(k, why, b.data) for k in a.places if not a.data]
    if name == "dot_general":
        (contracted, batch), groups = p["dimension_numbers"], ()
    elif name == "ragged_dot_general":
        numbers = p["ragged_dot_dimension_numbers"]
        contracted, batch = numbers.dot_dimension_numbers
        groups = tuple(numbers.rhs_group_dimensions)
    else:
        why = f"it goes into {name!r}"
        return [_Use(k, why, True) for v in operands for k in v.places]
    uses = []
    for side, (value, other) in enumerate(((a, b), (b, a))):
        stacked = (*batch[side], *(groups if side else ()))
        roles = [
            INPUT if i in contracted[side] else STACK if i in stacked else OUT
            for i in range(rank[side])
        ]
        uses += _uses(value, lambda place: place, roles, other.data)
    return uses


def _uses(
    value: Value, ready: Callable[[Place], Place], roles: Sequence[str], counts: bool
) -> list[_Use]:
    """The use of each parameter of an operand whose axes have these roles."""
    uses = []
    for path, place in value.places.items():
        if isinstance(place, str):
            uses.append(_Use(path, place, counts))
            continue
        place = ready(place)
        pairs = zip(place.axes, roles, strict=True)
        found = {(i, role) for atoms, role in pairs for i in moves.sources(atoms)}
        found |= {(i, STACK) for i in place.stacked}
        # Rows that a look-up picks are tensors if there are units in them.
        row = STACK if OUT in {role for _, role in found} else OUT
        found |= {(i, row) for i in place.looked_up}
        uses.append(_Use(path, frozenset(found), counts))
    return uses


def _ungrouped(axis: int, groups: int) -> Callable[[Place], Place]:
    """Takes from the output axis of a grouped convolution what only counts groups.

    `vmap` of a convolution joins the mapped axis and the output channels, in one
    convolution of as many groups.
    """

    def ready(place: Place) -> Place:
        left, stacked, kept = groups, set(place.stacked), []
        *leading, last = place.axes[axis] or [(frozenset(), 1)]
        for sources, size in leading:
            if left > 1 and left % size == 0:
                left //= size
                stacked |= sources
            else:
                kept.append((sources, size))
        new = [*place.axes]
        new[axis] = (*kept, last)
        return place._replace(axes=tuple(new), stacked=frozenset(stacked))

    return ready


def _gather(eqn, table: Value, indices: Value) -> tuple[list[Value], list[_Use]]:
    """A look-up: by several indices it says what rows are, by one it takes a part."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    batch = tuple(map(int, numbers.operand_batching_dims))
    gone = {*map(int, numbers.collapsed_slice_dims), *batch}
    kept = [i for i in range(len(sizes)) if i not in gone]
    shape, index = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape[:-1]
    of_batch = map(int, numbers.start_indices_batching_dims)
    batched = dict(zip(of_batch, batch, strict=True))
    offset = {*map(int, numbers.offset_dims)}
    one = len(index) == len(batched)
    uses = []

    def picked(path: str, place: Place) -> Place:
        of = lambda axes: moves.sources(atom for i in axes for atom in place.axes[i])
        rows = of(gone & {*map(int, numbers.start_index_map)})
        counted = moves.NOTHING if indices.data else rows
        leading = [
            place.axes[batched[i]] if i in batched else moves.whole(counted, n)
            for i, n in enumerate(index)
        ]
        inside = [moves.part(place.axes[i], sizes[i]) for i in kept]
        order = (inside if i in offset else leading for i in range(len(shape)))
        place = place._replace(axes=tuple(axes.pop(0) for axes in order))
        if one:
            return place._replace(stacked=place.stacked | rows)
        roles = {(i, OUT) for i in rows} | {(i, INPUT) for i in of(kept)}
        roles |= {(i, STACK) for i in place.stacked | of(batch)}
        uses.append(_Use(path, frozenset(roles), False))
        return place._replace(looked_up=place.looked_up | (rows - counted))

    places = {
        path: place if isinstance(place, str) else picked(path, place)
        for path, place in table.places.items()
    }
    return [Value(table.data or indices.data, places)], uses


def _branches(found: Iterable[list[_Use]]) -> list[_Use]:
    return [use for uses in found for use in uses]


_FACTS = trace.Facts(
    constant=Value(False, {}),
    equation=_equation,
    merge=moves.merge,
    repeat=lambda uses, length: uses,
    branches=_branches,
    enter=moves.enter,
    leave=moves.leave,
)
