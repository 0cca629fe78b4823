"""The walk over a traced function: what is known of its inputs, carried on.

What is followed (multiply-accumulates, the axes of parameters) is a `Facts`; the calls,
loops and conditions of a trace are entered here, once for all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)
"""Primitives that run their one inner program once, on their own operands."""

PRODUCTS = ("conv_general_dilated", "dot_general", "ragged_dot", "ragged_dot_general")


class Facts(NamedTuple):
    """What a walk follows: a fact about each value, and a list of things found.

    Attributes:
      constant: the fact about a value that comes from no input.
      equation: `(eqn, facts of its operands) -> (facts of its results, found)`, for
        every primitive that is no call, scan or condition.
      merge: `(facts, which) -> fact`, of a value that may be any of several: what a
        loop carries (`which` is None), or the result of a condition on `which`.
      repeat: `(found, iterations) -> found`, of a loop from its body.
      branches: `[found of each branch] -> found`.
      enter: `(fact, eqn) -> fact`, of one slice of what a scan runs over.
      leave: `(fact, eqn) -> fact`, of the stacked outputs of a scan's iterations.
    """

    constant: Any
    equation: Callable[[Any, list], tuple[list, list]]
    merge: Callable[[Sequence, Any], Any]
    repeat: Callable[[list, int], list]
    branches: Callable[[list[list]], list]
    enter: Callable[[Any, Any], Any] = lambda fact, eqn: fact
    leave: Callable[[Any, Any], Any] = lambda fact, eqn: fact


def walk(jaxpr: Jaxpr, inputs: Sequence, facts: Facts) -> tuple[list, list]:
    """(facts about the outputs, all that was found, in the order of the trace)."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    found = []

    def read(v) -> Any:
        return (
            facts.constant if isinstance(v, Literal) else known.get(v, facts.constant)
        )

    for eqn in jaxpr.eqns:
        results, new = _equation(eqn, [read(v) for v in eqn.invars], facts)
        known |= zip(eqn.outvars, results, strict=True)
        found += new
    return [read(v) for v in jaxpr.outvars], found


def _equation(eqn, operands: list, facts: Facts) -> tuple[list, list]:
    name, programs = eqn.primitive.name, inner(eqn.params)
    if name == "scan":
        return _scan(eqn, operands, facts)
    if name == "cond":
        which, *operands = operands
        walked = [walk(branch, operands, facts) for branch in programs]
        same = zip(*(results for results, _ in walked), strict=True)
        results = [facts.merge(options, which) for options in same]
        return results, facts.branches([found for _, found in walked])
    if name in CALLS and len(programs) == 1:
        if len(programs[0].invars) == len(operands):
            return walk(programs[0], operands, facts)
    return facts.equation(eqn, operands)


def _scan(eqn, operands: list, facts: Facts) -> tuple[list, list]:
    (body,) = inner(eqn.params["jaxpr"])
    first, carries = eqn.params["num_consts"], eqn.params["num_carry"]
    last = first + carries
    fixed, carry, runs_over = operands[:first], operands[first:last], operands[last:]
    slices = [facts.enter(fact, eqn) for fact in runs_over]
    while True:  # what is carried may come to depend on more; there is finitely much
        results, found = walk(body, fixed + carry + slices, facts)
        pairs = zip(carry, results[:carries], strict=True)
        merged = [facts.merge(pair, None) for pair in pairs]
        if merged == carry:
            break
        carry = merged
    stacks = [facts.leave(fact, eqn) for fact in results[carries:]]
    return carry + stacks, facts.repeat(found, eqn.params["length"])


def holds_product(jaxpr: Jaxpr) -> bool:
    """Whether a convolution or matrix product is anywhere in a program."""
    return any(
        eqn.primitive.name in PRODUCTS or any(map(holds_product, inner(eqn.params)))
        for eqn in jaxpr.eqns
    )


def inner(value: Any) -> list[Jaxpr]:
    """Programs in the parameters of an equation."""
    if isinstance(value, Jaxpr):
        return [value]
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [jaxpr for x in value for jaxpr in inner(x)]
