"""An ONNX graph in the making: walks a jaxpr, a row of a table for each primitive.

Equations of weights alone are evaluated. Convolutions make their images channels-first;
these stay so until an equation wants the axes of JAX, which costs one transposition.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import helper, numpy_helper

from quantnet_jax.trees.trace import CALLS, inner

BATCH = 1_000_003
"""Traced in place of a free batch size: a prime, longer than any other axis. An axis
or a number that is a multiple of it stands for that multiple of the batch size."""
MOST = 20_000
"""Most nodes of a graph with unrolled loops."""
LARGEST = np.iinfo(np.int64).max
DTYPES = ("float32", "bool", "uint8", "int8", "int16", "int32", "int64", "uint32")


class Value(NamedTuple):
    """A tensor of the graph: its name, shape as JAX sees it, and its layout there."""

    name: str
    shape: tuple[int, ...]
    channels_first: bool = False


class Row(NamedTuple):
    """How a primitive is translated.

    Attributes:
      run: `(graph, args, eqn) -> Value or array, or a list of them`.
      broadcasts: works element by element; axes of constants may have length 1.
      layout: takes channels-first values, too.
      raw: takes arguments as they are.
    """

    run: Callable[["Graph", list, Any], Any]
    broadcasts: bool = False
    layout: bool = False
    raw: bool = False


def free(size: int) -> bool:
    """Whether an axis is a multiple of the batch."""
    return size >= BATCH and size % BATCH == 0


class Graph:
    """Nodes and initializers of the graph being built.

    A number in it is a `Value`, or an array that no input reaches. Such an array may
    have axes of length 1 where JAX repeats it, if the batch is among its axes.
    """

    def __init__(self, table: Mapping[str, Row], batch: Value | None = None) -> None:
        """`batch`: an input whose first axis is the batch, None if none is free."""
        self.table, self.batch = table, batch
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._names: dict[tuple, str] = {}
        self._sizes: dict[int, Value] = {}

    def run(self, program: Jaxpr | ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        """Outputs of a jaxpr for given inputs."""
        jaxpr = getattr(program, "jaxpr", program)
        known = dict(zip(jaxpr.constvars, getattr(program, "consts", ()), strict=True))
        known.update(zip(jaxpr.invars, args, strict=True))
        read = lambda x: _value(x) if isinstance(x, Literal) else known[x]
        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(x) for x in eqn.invars])
            known.update(zip(eqn.outvars, outs, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def equation(self, eqn: Any, args: list[Any]) -> list[Any]:
        """Outputs of one equation."""
        name = eqn.primitive.name
        if name in CALLS:
            return self.run(_program(eqn), args)
        row = self.table.get(name)
        shapes = [tuple(x.aval.shape) for x in eqn.invars]
        outs = [tuple(x.aval.shape) for x in eqn.outvars]
        if outs and all(0 in shape for shape in outs):  # nothing to compute
            return [np.zeros(x.aval.shape, x.aval.dtype) for x in eqn.outvars]
        known = not any(isinstance(x, Value) for x in args)
        if known:
            sized = any(free(size) for shape in (*shapes, *outs) for size in shape)
            if not sized:
                out = eqn.primitive.bind(*args, **eqn.params)
                return list(out) if eqn.primitive.multiple_results else [out]
            if row and row.broadcasts:
                same = np.broadcast_arrays(*map(np.asarray, args))
                return [eqn.primitive.bind(*same, **eqn.params)]
        row = _checked(eqn, row)
        if not (row.raw or row.broadcasts):
            args = [
                x if isinstance(x, Value) else self.expanded(x, shape)
                for x, shape in zip(args, shapes, strict=True)
            ]
        if not (row.raw or row.layout or row.broadcasts):
            args = [self.channels_last(x) for x in args]
        if not row.raw:
            args = [self._number(x) for x in args]
        made = row.run(self, args, eqn)
        return list(made) if isinstance(made, list) else [made]

    def add(self, operator: str, inputs, shape, first=False, **attributes) -> Value:
        """The `Value` of a new node."""
        return self.add_all(operator, inputs, [shape], first, **attributes)[0]

    def add_all(self, operator: str, inputs, shapes, first=False, **attributes):
        """The `Value`s of a new node with several outputs."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        outs = [name, *(f"{name}_{i}" for i in range(1, len(shapes)))]
        names = [self.name_of(x) for x in inputs]
        self.nodes.append(helper.make_node(operator, names, outs, name, **attributes))
        pairs = zip(outs, shapes, strict=True)
        return [Value(out, tuple(shape), first) for out, shape in pairs]

    def name_of(self, x: Any) -> str:
        """Name of a `Value`, or of the initializer that holds an array."""
        if isinstance(x, Value):
            return x.name
        array = np.asarray(x)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = f"constant_{len(self._names)}"
            self.initializers.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]

    def channels_first(self, x: Any) -> Any:
        """A `Value` or an array in the layout N, C, ...; below rank 3 as it is."""
        rank = len(x.shape) if isinstance(x, Value) else np.ndim(x)
        order = to_first(rank)
        if not isinstance(x, Value):
            return np.transpose(np.asarray(x), order) if rank > 2 else x
        if rank < 3 or x.channels_first:
            return x
        return self.add("Transpose", [x], x.shape, True, perm=order)

    def channels_last(self, x: Any) -> Any:
        """A `Value` or an array in the layout that JAX sees."""
        if not isinstance(x, Value) or not x.channels_first:
            return x
        return self.add("Transpose", [x], x.shape, perm=to_last(len(x.shape)))

    def alike(self, args: Sequence[Any]) -> tuple[list[Any], bool]:
        """Arguments in one layout, and whether that is channels-first."""
        first = any(isinstance(x, Value) and x.channels_first for x in args)
        return [self.channels_first(x) for x in args] if first else list(args), first

    def elementwise(self, operator: str, args: Sequence[Any], shape, **more) -> Value:
        """A node of an operator that broadcasts."""
        args, first = self.alike(args)
        return self.add(operator, args, shape, first, **more)

    def permuted(self, x: Any, order: Sequence[int]) -> Any:
        """A `Value` (channels-last) or an array with its axes in another order."""
        order = tuple(order)
        if order == tuple(range(len(order))):
            return x
        if not isinstance(x, Value):
            return np.transpose(np.asarray(x), order)
        shape = tuple(x.shape[i] for i in order)
        return self.add("Transpose", [x], shape, perm=order)

    def reshaped(self, x: Any, shape: Sequence[int]) -> Any:
        """A `Value` (channels-last) or an array of another shape."""
        if tuple(x.shape) == tuple(shape):
            return x
        if not isinstance(x, Value):
            return np.reshape(np.asarray(x), shape)
        if sum(map(free, shape)) > 1:
            raise ValueError("a reshape has the batch on two axes")
        sizes = np.asarray([-1 if free(size) else size for size in shape], np.int64)
        return self.add("Reshape", [x, sizes], shape)

    def expanded(self, x: Any, shape: Sequence[int]) -> Any:
        """A `Value` (channels-last) or an array, repeated along axes of length 1."""
        if tuple(np.shape(x) if not isinstance(x, Value) else x.shape) == tuple(shape):
            return x
        if not any(map(free, shape)) and not isinstance(x, Value):
            return np.broadcast_to(np.asarray(x), shape)
        return self.add("Expand", [x, self.sizes(shape)], shape)

    def sizes(self, shape: Sequence[int]) -> Any:
        """A shape as an int64 vector."""
        if not any(map(free, shape)):
            return np.asarray(shape, np.int64)
        parts = [self.size(n) if free(n) else np.asarray([n], np.int64) for n in shape]
        return self.add("Concat", parts, (len(parts),), axis=0)

    def size(self, multiple: int) -> Value:
        """A multiple of the batch size, int64[1]."""
        if BATCH not in self._sizes:
            one = self.add("Shape", [self.batch], (1,), start=0, end=1)
            self._sizes[BATCH] = one
        if multiple not in self._sizes:
            factor = np.asarray([multiple // BATCH], np.int64)
            self._sizes[multiple] = self.add("Mul", [self.size(BATCH), factor], (1,))
        return self._sizes[multiple]

    def cast(self, x: Any, dtype: Any) -> Any:
        """A `Value` or an array of another dtype."""
        if not isinstance(x, Value):
            return np.asarray(x).astype(dtype)
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.add("Cast", [x], x.shape, x.channels_first, to=to)

    def bounded(self, eqn: Any) -> None:
        """Refuses a loop that makes too many nodes."""
        if len(self.nodes) > MOST:
            raise ValueError(
                f"primitive {eqn.primitive.name!r}, unrolled, makes more than "
                f"{MOST:,} ONNX nodes: it has no translation"
            )

    def _number(self, x: Any) -> Any:
        """A scalar that is the batch size becomes the real one."""
        if isinstance(x, Value) or self.batch is None or np.ndim(x):
            return x
        number = np.asarray(x)
        if number.dtype.kind not in "iuf" or not np.isfinite(number):
            return x
        # Float32 rounds a large multiple.
        times = round(number.item() / BATCH)
        if not 1 <= times <= 2**16 or number.dtype.type(times * BATCH) != number:
            return x
        size = self.add("Squeeze", [self.size(times * BATCH)], ())
        return self.cast(size, number.dtype)


def to_first(rank: int) -> tuple[int, ...]:
    """Permutation of N, ..., C to N, C, ...."""
    return (0, rank - 1, *range(1, rank - 1))


def to_last(rank: int) -> tuple[int, ...]:
    """Permutation of N, C, ... to N, ..., C."""
    return (0, *range(2, rank), 1)


def _value(literal: Literal) -> np.ndarray:
    return np.asarray(literal.val, literal.aval.dtype)  # pyright: ignore


def _program(eqn: Any) -> Any:
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return next(filter(None, map(eqn.params.get, keys)), None) or inner(eqn.params)[0]


def _checked(eqn: Any, row: Row | None) -> Row:
    name = eqn.primitive.name
    if row is None:
        raise ValueError(
            f"primitive {name!r} of the network has no translation to ONNX"
        )
    for out in eqn.outvars:
        if str(out.aval.dtype) not in DTYPES:
            raise ValueError(
                f"primitive {name!r} computes in {out.aval.dtype}, expected float32, "
                "integers or booleans: few ONNX runtimes have others"
            )
        if any(size > BATCH // 2 and not free(size) for size in out.aval.shape):
            raise ValueError(f"primitive {name!r} cuts or extends the batch")
    return row


def shape_of(eqn: Any) -> tuple[int, ...]:
    """Shape of the first result of an equation."""
    return tuple(eqn.outvars[0].aval.shape)
