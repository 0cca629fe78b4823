"""Evaluates a traced function and hands over what its products do with parameters.

A product is a convolution or a matrix product. It belongs to the parameter that one of
its operands is, perhaps transposed, reshaped or cast on the way; of a scanned loop,
each iteration has its own part of the parameter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from quantnet_jax.posttrain import rows
from quantnet_jax.trees import trace
from quantnet_jax.trees.paths import flatten

PyTree = Any
PRODUCTS = {"conv_general_dilated": rows.of_conv, "dot_general": rows.of_dot}
MOVES = (
    *("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev"),
    *("slice", "copy", "copy_p", "convert_element_type", "name"),
)
"""Primitives of one operand that put each number somewhere, once."""


class Use(NamedTuple):
    """A product that reads a parameter.

    Attributes:
      path: of the parameter.
      matrix: int32 (groups, N, M): where in the flattened parameter each weight is, of
        N inputs and M output units; groups have inputs of their own.
      rows: `(x, take=None) -> float32 (groups, rows, N)`: the inputs of these weights,
        of the other operand x of the product; of all rows, or those of the numbers
        `take(how many there are)`.
    """

    path: str
    matrix: np.ndarray
    rows: rows.Reader


class _Origin(NamedTuple):
    """A value that is (a part of) a parameter; `places` in it, of the value's shape."""

    path: str
    places: np.ndarray


def evaluate(
    apply: Callable,
    params: PyTree,
    example: PyTree,
    visit: Callable[[Use, jax.Array], jax.Array],
) -> PyTree:
    """`apply(params, example)`, with a word on each product that reads a parameter.

    Args:
      apply: any traceable function.
      params: tree of arrays.
      example: tree of arrays.
      visit: `(use, x) -> x`, called in the order of the trace; x is the operand that
        meets the weights, and what is returned takes its place.

    Raises:
      ValueError: a product with a parameter in a `while` loop, a condition or a
        kernel, where it cannot be reached.

    Example:
      >>> seen = []
      >>> def visit(use, x):
      ...     seen.append((use.path, use.matrix.shape, use.rows(x, None).shape))
      ...     return x
      >>> layer = lambda p, x: x @ p["kernel"]
      >>> _ = evaluate(layer, {"kernel": jnp.ones((2, 3))}, jnp.ones((5, 2)), visit)
      >>> seen
      [('kernel', (1, 2, 3), (1, 5, 2))]
    """
    closed, shape = jax.make_jaxpr(apply, return_shape=True)(params, example)
    leaves, origins = [], []
    for path, leaf in flatten(params).items():
        size = np.arange(np.size(leaf), dtype=np.int32)
        leaves.append(leaf)
        origins.append(_Origin(path, size.reshape(np.shape(leaf))))
    others = jax.tree.leaves(example)
    origins += [None] * len(others)
    values, _ = _run(closed.jaxpr, closed.consts, [*leaves, *others], origins, visit)
    return jax.tree.unflatten(jax.tree.structure(shape), values)


def _run(jaxpr: Jaxpr, consts, args, origins, visit) -> tuple[list, list]:
    """Values and origins of the results."""
    known = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= dict(zip(jaxpr.invars, args, strict=True))
    of = dict(zip(jaxpr.invars, origins, strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else known[v]
    origin = lambda v: None if isinstance(v, Literal) else of.get(v)
    for eqn in jaxpr.eqns:
        found = _equation(
            eqn, [read(v) for v in eqn.invars], [origin(v) for v in eqn.invars], visit
        )
        for v, value, where in zip(eqn.outvars, *found, strict=True):
            known[v] = value
            if where is not None:
                of[v] = where
    return [read(v) for v in jaxpr.outvars], [origin(v) for v in jaxpr.outvars]


def _equation(eqn, values: list, origins: list, visit) -> tuple[list, list]:
    name, none = eqn.primitive.name, [None] * len(eqn.outvars)
    tagged = [i for i, o in enumerate(origins) if o is not None]
    if not tagged:
        return _bind(eqn, values), none
    if name in PRODUCTS:
        if len(tagged) == 1:
            (side,) = tagged
            path, places = origins[side]
            matrix, reader = PRODUCTS[name](eqn, side, places)
            if matrix is not None:
                use = Use(path, matrix, reader)
                values[1 - side] = visit(use, values[1 - side])
        return _bind(eqn, values), none
    if name in MOVES and len(values) == 1:
        path, places = origins[0]
        moved = places if name == "convert_element_type" else _move(eqn, places)
        if moved.size == np.unique(moved).size:
            none = [_Origin(path, moved)]
        return _bind(eqn, values), none
    programs = trace.inner(eqn.params)
    if not any(map(trace.holds_product, programs)):
        return _bind(eqn, values), none
    if name == "scan":
        return _scan(eqn, values, origins, visit)
    if name in trace.CALLS and len(programs) == 1:
        return _run(programs[0], _consts(eqn), values, origins, visit)
    paths = ", ".join(sorted({repr(origins[i].path) for i in tagged}))
    raise ValueError(
        f"{name!r} holds products of {paths}, whose inputs cannot be read; expected "
        "them in plain calls and scans"
    )


def _scan(eqn, values: list, origins: list, visit) -> tuple[list, list]:
    """A scanned loop, iteration by iteration."""
    p = eqn.params
    jaxpr, fixed, carried = p["jaxpr"], p["num_consts"], p["num_carry"]
    last = fixed + carried
    carry, stacked = values[fixed:last], []
    steps = range(p["length"])
    for i in reversed(steps) if p["reverse"] else steps:
        parts = [x[i] for x in values[last:]]
        where = [None if o is None else o._replace(places=o.places[i])
                 for o in origins[last:]]  # fmt: skip
        of = [*origins[:fixed], *[None] * carried, *where]
        args = [*values[:fixed], *carry, *parts]
        results, _ = _run(jaxpr.jaxpr, jaxpr.consts, args, of, visit)
        carry, rest = results[:carried], results[carried:]
        stacked.append(rest)
    if p["reverse"]:
        stacked.reverse()
    collected = [jnp.stack(x) for x in zip(*stacked, strict=True)]
    return [*carry, *collected], [None] * len(eqn.outvars)


def _bind(eqn, values: list) -> list:
    params = eqn.primitive.get_bind_params(eqn.params)
    found = eqn.primitive.bind(*values, **params)
    return list(found) if eqn.primitive.multiple_results else [found]


def _move(eqn, places: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        (moved,) = _bind(eqn, [jnp.asarray(places)])
        return np.asarray(moved)


def _consts(eqn) -> list:
    """Constants of the one program of a call."""
    closed = [x for x in eqn.params.values() if isinstance(x, ClosedJaxpr)]
    return closed[0].consts if closed else []
