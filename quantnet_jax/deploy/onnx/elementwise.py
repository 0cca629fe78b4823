"""Primitives that work element by element, and reductions, as ONNX nodes."""

import numpy as np

from quantnet_jax.deploy.onnx.graph import Graph, Row, Value, shape_of

SAME = {
    **{"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"},
    **{"min": "Min", "pow": "Pow", "neg": "Neg", "abs": "Abs", "floor": "Floor"},
    **{"ceil": "Ceil", "sqrt": "Sqrt", "exp": "Exp", "log": "Log", "tanh": "Tanh"},
    **{"logistic": "Sigmoid", "erf": "Erf", "sign": "Sign", "sin": "Sin", "cos": "Cos"},
    **{"tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh"},
    **{"cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh"},
    **{"ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"},
    **{"eq": "Equal"},
}
"""Primitives -> the ONNX operator that does the same."""
LOGICAL = {"and": "And", "or": "Or", "not": "Not", "xor": "Xor"}
REDUCTIONS = {
    **{"reduce_max": "ReduceMax", "reduce_min": "ReduceMin"},
    **{"reduce_prod": "ReduceProd", "reduce_sum": "ReduceSum"},
}


def rows() -> dict[str, Row]:
    """{primitive: row} of this file."""
    by_element = {name: _same(operator) for name, operator in SAME.items()}
    by_element |= {name: _logical(operator) for name, operator in LOGICAL.items()}
    by_element |= {
        "max": _max,
        "ne": lambda g, args, eqn: _chain(g, args, eqn, "Equal", "Not"),
        "rsqrt": lambda g, args, eqn: _chain(g, args, eqn, "Sqrt", "Reciprocal"),
        "expm1": lambda g, args, eqn: _minus_one(g, _same("Exp")(g, args, eqn), eqn),
        "log1p": _log1p,
        "exp2": lambda g, args, eqn: _same("Pow")(g, [np.float32(2), *args], eqn),
        "erfc": _erfc,
        "rem": lambda g, args, eqn: g.elementwise("Mod", args, shape_of(eqn), fmod=1),
        "square": lambda g, args, eqn: _same("Mul")(g, args * 2, eqn),
        "integer_pow": _integer_pow,
        "round": _round,
        "is_finite": _is_finite,
        "clamp": _clamp,
        "select_n": _select_n,
        "convert_element_type": lambda g, args, eqn: g.cast(
            args[0], eqn.params["new_dtype"]
        ),
    }
    table = {
        name: Row(run, broadcasts=True, layout=True) for name, run in by_element.items()
    }
    table |= {
        name: Row(_reduction(operator), layout=True)
        for name, operator in REDUCTIONS.items()
    }
    table |= {
        "reduce_and": Row(_reduce_bool("ReduceMin")),
        "reduce_or": Row(_reduce_bool("ReduceMax")),
        "argmax": Row(_arg("ArgMax")),
        "argmin": Row(_arg("ArgMin")),
        "cumsum": Row(_cumsum),
        "top_k": Row(_top_k),
    }
    return table


def select(g: Graph, which, yes, no, shape, dtype) -> Value:
    """`yes` where `which`, else `no`."""
    if np.dtype(dtype) != bool:
        return g.elementwise("Where", [which, yes, no], shape)
    unlike = g.elementwise("Not", [which], shape)
    one = g.elementwise("And", [which, yes], shape)
    return g.elementwise("Or", [one, g.elementwise("And", [unlike, no], shape)], shape)


def _dtype(eqn):
    return np.dtype(eqn.outvars[0].aval.dtype)


def _same(operator: str):
    return lambda g, args, eqn: g.elementwise(operator, args, shape_of(eqn))


def _logical(operator: str):
    def run(g, args, eqn):
        if _dtype(eqn).kind != "b":
            raise ValueError(
                f"primitive {eqn.primitive.name!r} of integers has no translation"
            )
        return g.elementwise(operator, args, shape_of(eqn))

    return run


def _chain(g, args, eqn, *operators):
    for operator in operators:
        args = [g.elementwise(operator, args, shape_of(eqn))]
    return args[0]


def _max(g, args, eqn):
    rest = [x for x in args if isinstance(x, Value) or np.any(np.asarray(x))]
    if len(rest) == 1 and _dtype(eqn).kind == "f":  # runtimes fuse it
        return g.elementwise("Relu", rest, shape_of(eqn))
    return g.elementwise("Max", args, shape_of(eqn))


def _minus_one(g, x, eqn):
    return g.elementwise("Sub", [x, np.float32(1)], shape_of(eqn))


def _log1p(g, args, eqn):
    more = g.elementwise("Add", [args[0], np.float32(1)], shape_of(eqn))
    return g.elementwise("Log", [more], shape_of(eqn))


def _erfc(g, args, eqn):
    return g.elementwise(
        "Sub", [np.float32(1), _same("Erf")(g, args, eqn)], shape_of(eqn)
    )


def _integer_pow(g, args, eqn):
    y = eqn.params["y"]
    x = args[0] if y >= 0 else g.elementwise("Reciprocal", args, shape_of(eqn))
    if abs(y) == 2:
        return g.elementwise("Mul", [x, x], shape_of(eqn))
    return g.elementwise("Pow", [x, _dtype(eqn).type(abs(y))], shape_of(eqn))


def _round(g, args, eqn):
    shape = shape_of(eqn)
    if int(eqn.params["rounding_method"]) == 1:
        return g.elementwise("Round", args, shape)
    size = g.elementwise("Abs", args, shape)
    size = g.elementwise("Add", [size, np.float32(0.5)], shape)
    size = g.elementwise("Floor", [size], shape)
    sign = g.elementwise("Sign", args, shape)
    return g.elementwise("Mul", [sign, size], shape)


def _is_finite(g, args, eqn):
    found = [g.elementwise(x, args, shape_of(eqn)) for x in ("IsNaN", "IsInf")]
    return g.elementwise("Not", [_same("Or")(g, found, eqn)], shape_of(eqn))


def _clamp(g, args, eqn):
    low, x, high = args
    x = g.elementwise("Max", [x, low], shape_of(eqn))
    return g.elementwise("Min", [x, high], shape_of(eqn))


def _select_n(g, args, eqn):
    which, *cases = args
    if len(cases) != 2:
        raise ValueError("primitive 'select_n' of more than two has no translation")
    return select(g, which, cases[1], cases[0], shape_of(eqn), _dtype(eqn))


def _reduction(operator: str):
    def run(g, args, eqn):
        x, axes = args[0], tuple(eqn.params["axes"])
        rank = len(x.shape)
        if x.channels_first and axes == tuple(range(1, rank - 1)):
            axes = tuple(range(2, rank))
        else:
            x = g.channels_last(x)
        if operator == "ReduceSum":  # its axes are an input, those of others not yet
            axes = np.asarray(axes, np.int64)
            return g.add(operator, [x, axes], shape_of(eqn), keepdims=0)
        return g.add(operator, [x], shape_of(eqn), axes=axes, keepdims=0)

    return run


def _reduce_bool(operator: str):
    def run(g, args, eqn):
        x, axes = g.cast(args[0], np.int32), tuple(eqn.params["axes"])
        x = g.add(operator, [x], shape_of(eqn), axes=axes, keepdims=0)
        return g.cast(x, bool)

    return run


def _arg(operator: str):
    def run(g, args, eqn):
        (axis,) = eqn.params["axes"]
        x = g.add(operator, args, shape_of(eqn), axis=axis, keepdims=0)
        return g.cast(x, eqn.params["index_dtype"])

    return run


def _cumsum(g, args, eqn):
    axis, reverse = np.asarray(eqn.params["axis"], np.int64), eqn.params["reverse"]
    return g.add("CumSum", [args[0], axis], shape_of(eqn), reverse=int(reverse))


def _top_k(g, args, eqn):
    rank, axis = len(shape_of(eqn)), eqn.params.get("axis", -1)
    k = np.asarray([eqn.params["k"]], np.int64)
    values, index = g.add_all(
        "TopK", [args[0], k], [shape_of(eqn)] * 2, axis=axis % rank, largest=1, sorted=1
    )
    return [values, g.cast(index, eqn.outvars[1].aval.dtype)]
