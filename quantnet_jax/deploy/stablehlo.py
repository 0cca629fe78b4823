"""StableHLO programs of networks, by `jax.export`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from quantnet_jax.deploy.format.packed import float_tree, pack_tree
from quantnet_jax.deploy.predictor import Predictor
from quantnet_jax.trees.tree import dequantize_tree

PyTree = Any
PLATFORMS = ("cpu", "cuda", "tpu")
WINDOW = (
    f"made by jax {jax.__version__}; runs by a jaxlib up to three weeks older, or six "
    "months newer"
)


def to_stablehlo(
    apply: Callable, tree: PyTree, example: PyTree, *, batch: bool = True
) -> bytes:
    """Any network as a serialized `jax.export` program of its inputs.

    The packed weights are constants in it. Whoever loads it needs jax alone, within its
    window (by the compatibility guarantees of `jax.export`).

    Args:
      apply: `(params, *inputs) -> outputs`, a traceable function of float arrays.
      tree: parameters, with `QTensor`, packed and other leaves.
      example: input of `apply`, or a tuple of inputs: arrays or shapes, or trees of
        them, of any dtype.
      batch: whether the first axis of every input is the batch, whose size is then
        free. False: the shapes of the example alone.

    Returns:
      The program, for `jax.export.deserialize(bytearray(program)).call(*inputs)`.

    Raises:
      ValueError: in one line, a program that is of one batch size only.

    Example:
      >>> apply = lambda params, x: 2.0 * x @ params["w"]
      >>> program = to_stablehlo(apply, {"w": jnp.ones((2, 1))}, jnp.ones((1, 2)))
      >>> jax.export.deserialize(bytearray(program)).call(jnp.ones((3, 2))).shape
      (3, 1)
    """
    return serialized(fixed(apply, pack_tree(tree)), inputs_of(example), batch)


def of_predictor(predictor: Predictor) -> bytes:
    """The program of a loaded network: uint8 images -> outputs, any batch size.

    That of a predictor that counts bits does so on every device.
    """
    images = jax.ShapeDtypeStruct((1, *predictor.spec.shape), jnp.uint8)
    run = lambda images: predictor.apply(predictor.params, images)
    return serialized(run, (images,), True)


def serialized(run: Callable, inputs: tuple, batch: bool) -> bytes:
    """The program of a function of inputs; see `to_stablehlo`."""
    (size,) = jax.export.symbolic_shape("batch")

    def shape(x):
        sizes = (size, *x.shape[1:]) if batch and x.shape else x.shape
        return jax.ShapeDtypeStruct(sizes, x.dtype)

    exporting = jax.export.export(jax.jit(run), platforms=PLATFORMS)
    try:
        exported = exporting(*jax.tree.map(shape, inputs))
    except Exception as e:
        if not batch:
            raise
        first = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(
            f"the network does not run with a free batch size ({first}); expected a "
            "batch on the first axis of every input, its size read as x.shape[0] and "
            "not as len(x), or batch=False"
        ) from e
    return bytes(exported.serialize())


def fixed(apply: Callable, tree: PyTree) -> Callable:
    """`(*inputs) -> outputs` of `apply`, with the float values of a tree inside."""
    on_device = lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x
    tree = jax.tree.map(on_device, tree)
    return lambda *inputs: apply(dequantize_tree(float_tree(tree)), *inputs)


def inputs_of(example: PyTree) -> tuple:
    """The inputs of `apply(params, *inputs)`: a tuple, or the example alone."""
    return example if isinstance(example, tuple) else (example,)
