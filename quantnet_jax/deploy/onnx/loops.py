"""Loops, unrolled, and conditions as ONNX nodes."""

import numpy as np

from quantnet_jax.deploy.onnx.elementwise import select
from quantnet_jax.deploy.onnx.graph import Graph, Row, Value, free


def rows() -> dict[str, Row]:
    """{primitive: row} of this file."""
    return {
        "scan": Row(_scan, raw=True),
        "while": Row(_while, raw=True),
        "cond": Row(_cond, raw=True),
    }


def _scan(g, args, eqn):
    p, body = eqn.params, eqn.params["jaxpr"]
    length, first = p["length"], p["num_consts"]
    if free(length):
        raise ValueError(
            "primitive 'scan' runs over the batch: it has no translation to ONNX"
        )
    last = first + p["num_carry"]
    fixed, carry, over = args[:first], args[first:last], args[last:]
    steps: list[list] = [[]] * length
    for i in range(length)[:: -1 if p["reverse"] else 1]:
        g.bounded(eqn)
        outs = g.run(body, [*fixed, *carry, *(_slice(g, x, i) for x in over)])
        carry, steps[i] = outs[: len(carry)], outs[len(carry) :]
    avals = [x.aval for x in eqn.outvars[len(carry) :]]
    stacks = [_stack(g, [t[j] for t in steps], aval) for j, aval in enumerate(avals)]
    return [*carry, *stacks]


def _while(g, args, eqn):
    p = eqn.params
    first, last = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    of_test, of_body, carry = args[:first], args[first:last], args[last:]
    while True:
        g.bounded(eqn)
        (more,) = g.run(p["cond_jaxpr"], [*of_test, *carry])
        if isinstance(more, Value):
            raise ValueError(
                "primitive 'while' runs a number of times that depends on the input: "
                "it has no translation to ONNX"
            )
        if not more:
            return carry
        carry = g.run(p["body_jaxpr"], [*of_body, *carry])


def _cond(g, args, eqn):
    which, *rest = args
    branches, avals = eqn.params["branches"], [x.aval for x in eqn.outvars]
    if not isinstance(which, Value):
        return g.run(branches[int(np.clip(which, 0, len(branches) - 1))], rest)
    outs = [g.run(branch, rest) for branch in branches]  # pure, so both may run
    found, last = list(outs[-1]), len(outs) - 1
    for i in range(last - 1, -1, -1):
        chosen = g.add("Equal", [which, np.asarray(i, np.int32)], ())
        found = [
            select(g, chosen, yes, no, tuple(aval.shape), aval.dtype)
            for yes, no, aval in zip(outs[i], found, avals, strict=True)
        ]
    return found


def _slice(g: Graph, x, i: int):
    """x[i] of what a loop runs over."""
    if not isinstance(x, Value):
        return x[min(i, x.shape[0] - 1)]
    x = g.channels_last(x)
    return g.add("Gather", [x, np.asarray(i, np.int64)], x.shape[1:], axis=0)


def _stack(g: Graph, parts: list, aval):
    """The outputs of all iterations, stacked along a new first axis."""
    if not any(isinstance(x, Value) for x in parts):
        arrays = [np.asarray(x) for x in parts]
        if not arrays:
            return np.zeros(aval.shape, aval.dtype)
        return np.stack(np.broadcast_arrays(*arrays))
    shape = (1, *aval.shape[1:])
    rows_ = [g.expanded(g.channels_last(x), shape[1:]) for x in parts]
    rows_ = [g.reshaped(x, shape) for x in rows_]
    return g.add("Concat", rows_, tuple(aval.shape), axis=0)
