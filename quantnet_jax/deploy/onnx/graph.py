"""From a traced network to an ONNX graph.

Walks the equations of a jaxpr. Equations of weights alone are evaluated; each of the
others becomes one ONNX node. Images are channels-last up to the first convolution and
channels-first from there on, which costs one transposition.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import helper, numpy_helper

from quantnet_jax.core.trace import CALLS

OPSET = 17
IR_VERSION = 8
"""Old enough for any onnxruntime since 1.12 (2022)."""

BATCH = 1_000_003
"""Traced in place of the batch size: no other axis is this long."""

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)
"""Permutations of NHWC to NCHW, and back."""

SAME_NAME = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max"},
    **{"min": "Min", "neg": "Neg", "abs": "Abs", "floor": "Floor", "sqrt": "Sqrt"},
    **{"exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid"},
    **{"ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"},
    **{"eq": "Equal", "and": "And", "or": "Or", "not": "Not", "sign": "Sign"},
}
"""Primitives that work element by element -> the ONNX operator that does the same."""


class Value(NamedTuple):
    """A tensor of the graph: its name, shape as JAX sees it, and its layout there."""

    name: str
    shape: tuple[int, ...]
    channels_first: bool = False


def convert(function: Callable, shape: Sequence[int], *, name: str) -> onnx.ModelProto:
    """The ONNX model of a function of one batch of uint8 images.

    Args:
      function: `uint8[N, H, W, C] -> float32[N, ...]`, traceable, with its weights
        inside as float arrays.
      shape: (H, W, C).
      name: of the graph; its input is called 'images', its output 'outputs'.

    Returns:
      A checked model; the batch size is free.

    Raises:
      ValueError: the function does something that has no translation here.
    """
    images = jax.ShapeDtypeStruct((BATCH, *shape), np.uint8)
    traced = jax.make_jaxpr(function)(images)
    graph = Graph()
    (out,) = graph.run(traced, [Value("images", images.shape)])
    name_of_output = graph.name_of(graph.channels_last(out))
    graph.nodes.append(helper.make_node("Identity", [name_of_output], ["outputs"]))
    info = lambda name, kind, shape: helper.make_tensor_value_info(
        name, getattr(onnx.TensorProto, kind), ["N", *shape]
    )
    inputs = [info("images", "UINT8", shape)]
    outputs = [info("outputs", "FLOAT", traced.out_avals[0].shape[1:])]
    proto = helper.make_graph(graph.nodes, name, inputs, outputs, graph.initializers)
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="quantnet_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class Graph:
    """Nodes and initializers of the graph being built.

    A number in it is a `Value`, or an array that no image reaches. Such an array may
    have axes of length 1 where JAX would repeat it for each example of the batch.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._names: dict[tuple, str] = {}

    def run(self, program: Jaxpr | ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        """Outputs of a jaxpr for given inputs."""
        jaxpr = getattr(program, "jaxpr", program)
        known = dict(zip(jaxpr.constvars, getattr(program, "consts", ()), strict=True))
        known.update(zip(jaxpr.invars, args, strict=True))
        read = lambda x: x.val if isinstance(x, Literal) else known[x]
        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(x) for x in eqn.invars])
            known.update(zip(eqn.outvars, outs, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def equation(self, eqn: Any, args: list[Any]) -> list[Any]:
        """Outputs of one equation."""
        primitive, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
        if primitive in CALLS:
            keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
            return self.run(next(filter(None, map(eqn.params.get, keys))), args)
        if not any(isinstance(x, Value) for x in args):
            if BATCH not in shape:
                out = eqn.primitive.bind(*args, **eqn.params)
                return list(out) if eqn.primitive.multiple_results else [out]
            if primitive == "broadcast_in_dim":
                axes = eqn.params["broadcast_dimensions"]
                return [_repeat_later(args[0], axes, shape)]
        if primitive in SAME_NAME:
            return [self.elementwise(primitive, args, shape)]
        handler = getattr(self, f"_{primitive}", None)
        if handler is None:
            raise ValueError(
                f"primitive {primitive!r} of the network has no translation to ONNX"
            )
        return [handler(args, eqn.params, tuple(shape))]

    def add(self, operator: str, inputs, shape, first=False, **attributes) -> Value:
        """The `Value` of a new node."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        names = [self.name_of(x) for x in inputs]
        self.nodes.append(helper.make_node(operator, names, [name], name, **attributes))
        return Value(name, tuple(shape), first)

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
        """A `Value` or an array of rank 4 in the layout NCHW; others as they are."""
        if not isinstance(x, Value):
            return np.transpose(np.asarray(x), FIRST) if np.ndim(x) == 4 else x
        if len(x.shape) != 4 or x.channels_first:
            return x
        return self.add("Transpose", [x], x.shape, True, perm=FIRST)

    def channels_last(self, x: Any) -> Any:
        """A `Value` or an array in the layout that JAX sees."""
        if not isinstance(x, Value) or not x.channels_first:
            return x
        return self.add("Transpose", [x], x.shape, perm=LAST)

    def elementwise(self, primitive: str, args: list[Any], shape) -> Value:
        """One of `SAME_NAME`."""
        args, first = self.alike(args)
        if primitive == "max":
            rest = [x for x in args if isinstance(x, Value) or np.any(np.asarray(x))]
            if len(rest) == 1:  # runtimes fuse it with the convolution
                return self.add("Relu", rest, shape, first)
        return self.add(SAME_NAME[primitive], args, shape, first)

    def alike(self, args: list[Any]) -> tuple[list[Any], bool]:
        """Arguments in one layout, and whether that is NCHW."""
        first = any(isinstance(x, Value) and x.channels_first for x in args)
        return ([self.channels_first(x) for x in args] if first else args), first

    def _convert_element_type(self, args, params, shape) -> Value:
        to = helper.np_dtype_to_tensor_dtype(np.dtype(params["new_dtype"]))
        return self.add("Cast", args, shape, args[0].channels_first, to=to)

    def _square(self, args, params, shape) -> Value:
        return self.add("Mul", args * 2, shape, args[0].channels_first)

    def _integer_pow(self, args, params, shape) -> Value:
        power = np.float32(params["y"])
        return self.add("Pow", [args[0], power], shape, args[0].channels_first)

    def _name(self, args, params, shape) -> Value:
        """A marked tensor keeps its name; of rank 4 it is channels-first."""
        x, name = self.channels_first(args[0]), params["name"]
        self.nodes.append(helper.make_node("Identity", [x.name], [name], name))
        return x._replace(name=name)

    def _select_n(self, args, params, shape) -> Value:
        (which, no, yes), first = self.alike(args)
        return self.add("Where", [which, yes, no], shape, first)

    def _conv_general_dilated(self, args, params, shape) -> Value:
        numbers = params["dimension_numbers"]
        layout = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
        image, kernel = args
        fits = layout == (FIRST, (3, 2, 0, 1), FIRST) and not isinstance(kernel, Value)
        if not fits or {*params["lhs_dilation"], params["batch_group_count"]} != {1}:
            raise ValueError("a convolution is not of NHWC images with HWIO weights")
        kernel = np.transpose(np.asarray(kernel), (3, 2, 0, 1))
        return self.add(
            "Conv",
            [self.channels_first(image), kernel],
            shape,
            True,
            kernel_shape=kernel.shape[2:],
            strides=params["window_strides"],
            pads=_pads(params["padding"]),
            dilations=params["rhs_dilation"],
            group=params["feature_group_count"],
        )

    def _reduce_window_max(self, args, params, shape) -> Value:
        sizes = {k: tuple(params[k]) for k in ("window_dimensions", "window_strides")}
        outer = [x[i] for x in sizes.values() for i in (0, -1)]
        dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
        if len(shape) != 4 or {*outer} != {1} or dilated:
            raise ValueError("a max-pool is not one over the height and width of NHWC")
        return self.add(
            "MaxPool",
            [self.channels_first(args[0])],
            shape,
            True,
            kernel_shape=sizes["window_dimensions"][1:3],
            strides=sizes["window_strides"][1:3],
            pads=_pads(params["padding"][1:3]),
        )

    def _reduce_sum(self, args, params, shape) -> Value:
        x, axes = args[0], tuple(params["axes"])
        if axes == (1, 2) and x.channels_first:
            axes = (2, 3)
        else:
            x = self.channels_last(x)
        return self.add("ReduceSum", [x, np.asarray(axes, np.int64)], shape, keepdims=0)

    def _dot_general(self, args, params, shape) -> Value:
        contract, batch = params["dimension_numbers"]
        ranks = [len(x.shape) for x in args]
        if ranks != [2, 2] or [*map(tuple, contract)] != [(1,), (0,)] or any(batch):
            raise ValueError("a product is not one of two matrices")
        return self.add("MatMul", args, shape)

    def _pad(self, args, params, shape) -> Value:
        x, value = args
        low, high, inner = np.asarray(params["padding_config"], np.int64).T
        if min(*low, *high) < 0 or inner.any():
            raise ValueError("a pad cuts, or spreads its input")
        if x.channels_first:
            low, high = low[list(FIRST)], high[list(FIRST)]
        pads = np.concatenate([low, high])
        return self.add("Pad", [x, pads, value], shape, x.channels_first)

    def _concatenate(self, args, params, shape) -> Value:
        (args, first), axis = self.alike(args), params["dimension"]
        if axis == 0:
            raise ValueError("a concatenation goes over the batch")
        axis = FIRST.index(axis) if first else axis
        return self.add("Concat", args, shape, first, axis=axis)

    def _slice(self, args, params, shape) -> Value:
        x = args[0]
        steps = params["strides"] or (1,) * len(shape)
        parts = np.asarray([params["start_indices"], params["limit_indices"], steps])
        if x.shape[0] != shape[0]:
            raise ValueError("a slice goes over the batch")
        parts = parts[:, list(FIRST)] if x.channels_first else parts
        starts, ends, steps = parts.astype(np.int64)[:, 1:]
        axes = np.arange(1, len(shape), dtype=np.int64)
        return self.add(
            "Slice", [x, starts, ends, axes, steps], shape, x.channels_first
        )

    def _transpose(self, args, params, shape) -> Value:
        x, order = self.channels_last(args[0]), params["permutation"]
        return self.add("Transpose", [x], shape, perm=order)

    def _reshape(self, args, params, shape) -> Value:
        sizes = np.asarray([-1 if size == BATCH else size for size in shape], np.int64)
        return self.add("Reshape", [self.channels_last(args[0]), sizes], shape)

    _squeeze = _reshape

    def _broadcast_in_dim(self, args, params, shape) -> Value:
        x, axes = args[0], params["broadcast_dimensions"]
        added = [size for i, size in enumerate(shape) if i not in axes]
        if {*added} - {1} or x.shape != tuple(shape[i] for i in axes):
            raise ValueError("a tensor that depends on the images is repeated")
        return self._reshape(args, params, shape)


def _repeat_later(x: Any, axes: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """An array at the given axes of a shape with the batch in it: length 1 there."""
    x = np.asarray(x)
    sizes = [1] * len(shape)
    for axis, size in zip(axes, x.shape, strict=True):
        sizes[axis] = size
    return x.reshape(sizes)


def _pads(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """((top, bottom), (left, right)) -> [top, left, bottom, right]."""
    return [int(pair[i]) for i in (0, 1) for pair in pairs]
