"""From a JAX function to a checked ONNX model."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper

from quantnet_jax.deploy.onnx.graph import BATCH, Graph, Value, free
from quantnet_jax.deploy.onnx.table import TABLE
from quantnet_jax.trees import paths

PyTree = Any
OPSET = 17
IR_VERSION = 8
"""Old enough for any onnxruntime since 1.12 (2022)."""


def convert(
    function: Callable,
    inputs: Sequence[PyTree],
    *,
    name: str,
    batch: bool = True,
    names: tuple[str, str] = ("input", "output"),
) -> onnx.ModelProto:
    """The ONNX model of a function.

    Args:
      function: of `inputs`, traceable, with its weights inside as float arrays.
      inputs: trees of arrays or shapes, one for each argument.
      name: of the graph.
      batch: whether the first axis of every input is the batch, whose size is free.
      names: of an input and an output that are alone; else, see `leaf_names`.

    Raises:
      ValueError: in one line, what has no translation here.
    """
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.tree.leaves(inputs)]
    if batch:
        shapes = [_with_batch(x) for x in shapes]
    treedef = jax.tree.structure(tuple(inputs))
    closed, out = jax.make_jaxpr(
        lambda *leaves: function(*jax.tree.unflatten(treedef, leaves)),
        return_shape=True,
    )(*shapes)
    if not jax.tree.leaves(out):
        raise ValueError("the network has no outputs, expected arrays")
    of_inputs = leaf_names(inputs[0] if len(inputs) == 1 else tuple(inputs), names[0])
    values = [Value(n, x.shape) for n, x in zip(of_inputs, shapes, strict=True)]
    of_batch = [x for x in values if x.shape and x.shape[0] == BATCH]
    graph = Graph(TABLE, of_batch[0] if batch and of_batch else None)
    found = graph.run(closed, values)
    outs, of_outputs = jax.tree.leaves(out), leaf_names(out, names[1])
    if twice := {*of_inputs} & {*of_outputs}:
        raise ValueError(f"{sorted(twice)[0]!r} is the name of an input and an output")
    for x, n, like in zip(found, of_outputs, outs, strict=True):
        x = graph.name_of(graph.expanded(graph.channels_last(x), like.shape))
        graph.nodes.append(helper.make_node("Identity", [x], [n]))
    proto = helper.make_graph(
        graph.nodes,
        name,
        [_info(n, x) for n, x in zip(of_inputs, shapes, strict=True)],
        [_info(n, x) for n, x in zip(of_outputs, outs, strict=True)],
        graph.initializers,
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="quantnet_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def leaf_names(tree: PyTree, alone: str) -> list[str]:
    """Names of the leaves: '/'-joined keys, `alone` for a leaf without any.

    Example:
      >>> leaf_names(0, "input"), leaf_names({"a": 0, "b": (0, 0)}, "input")
      (['input'], ['a', 'b/0', 'b/1'])
      >>> leaf_names((0, 0), "input")
      ['input_0', 'input_1']
    """
    joined = [name for name, _ in paths.named(tree, lambda x: False)]
    named = lambda n: f"{alone}_{n}" if n[0].isdigit() else n
    return [named(n) if n else alone for n in joined]


def _with_batch(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((BATCH, *x.shape[1:]) if x.shape else (), x.dtype)


def _info(name: str, x: Any) -> onnx.ValueInfoProto:
    size = lambda n: n if not free(n) else "N" if n == BATCH else f"{n // BATCH}N"
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(x.dtype))
    return helper.make_tensor_value_info(name, kind, list(map(size, x.shape)))
