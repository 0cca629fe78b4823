"""Forward pass with packed weights: each layer unpacks its own, or counts bits.

Convolutions are intercepted, so the networks do not depend on packed weights.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.activations import ActivationQuantizer, as_activation
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.deploy.format.packed import Packed, Words, is_packed, leaves, values
from quantnet_jax.models.layers import replace_convolutions
from quantnet_jax.ops import popcount
from quantnet_jax.trees.paths import joined

PyTree = Any
CACHE = 2**24
"""Bytes of unpacked weights that fit a cache; larger ones are unpacked on demand."""


def apply(model: Any, params: PyTree, x: jax.Array) -> jax.Array:
    """`model.apply({"params": params}, x)`, where leaves may be `Packed` or `Words`.

    Args:
      model: one of `quantnet_jax.models`, `folded`.
      params: its parameters.
      x: floating (N, H, W, C).
    """
    kernels = {_layer(path): x for path, x in leaves(params) if is_packed(x)}
    size = sum(4 * math.prod(leaf.shape) for leaf in kernels.values())

    def instead(layer, path, x):
        leaf = kernels.get(path)
        if leaf is None:
            return None
        if isinstance(leaf, Words):
            return popcount.binary_conv2d(
                x,
                leaf.words,
                scale=leaf.scale,
                strides=layer.strides,
                padding=layer.padding,
            )
        return layer.product(x, values(_after(x, leaf) if size > CACHE else leaf))

    def outside(leaf):  # what no convolution takes
        return values(leaf) if is_packed(leaf) and len(leaf.shape) != 4 else leaf

    rest = jax.tree.map(outside, params, is_leaf=is_packed)
    with replace_convolutions(instead):
        return model.apply({"params": rest}, x)


def countable(model: Any, params: PyTree, shape: Sequence[int]) -> tuple[str, ...]:
    """Paths of the layers whose products can be bit counts, equal bit for bit.

    Those are convolutions of float32 signs with binary weights, levels (-1, +1) and one
    scale for each output channel. Not for use inside jit (it reads values).

    Args:
      model: one of `quantnet_jax.models`, `folded`.
      params: its parameters, tree of `Packed` and float leaves.
      shape: (H, W, C) of the images.
    """
    quantizer: Any = getattr(model, "act_quant", None)
    found: list[Any] = (
        [*quantizer.values()] if isinstance(quantizer, Mapping) else [quantizer]
    )
    if model.dtype != jnp.float32 or quantizer is None:
        return ()
    if not all(map(gives_signs, found)):
        return ()
    paths = []

    def note(layer, path, x):
        if layer.quantized_input and layer.groups == 1:
            paths.append(path)

    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    with replace_convolutions(note):
        jax.eval_shape(model.init, jax.random.key(0), image)
    binary = {_layer(path) for path, leaf in leaves(params) if _is_binary(leaf)}
    return tuple(path for path in paths if path in binary)


def gives_signs(quantizer: Quantizer | ActivationQuantizer) -> bool:
    """Whether a quantizer of activations without parameters is the sign."""
    x = np.asarray([-3.0, -0.6, -1e-30, -0.0, 0.0, 1e-30, 0.4, 2.0], np.float32)
    if jax.tree.leaves(jax.eval_shape(quantizer.init, jax.random.key(0), x)):
        return False
    y = as_activation(quantizer).value((), jnp.asarray(x))
    return bool((np.asarray(y) == np.where(x >= 0, 1.0, -1.0)).all())


def on_cpu(params: PyTree) -> bool:
    """Whether parameters are in the memory of a CPU."""
    arrays = map(jnp.asarray, jax.tree.leaves(params))
    return {device.platform for x in arrays for device in x.devices()} == {"cpu"}


def with_words(params: PyTree, paths: Sequence[str]) -> PyTree:
    """`params` with the kernels of the given layers as `Words`."""

    def one(key, leaf):
        path = joined(key)
        if not is_packed(leaf) or _layer(path) not in paths:
            return leaf
        codes = np.unpackbits(np.asarray(leaf.codes), bitorder="little")
        codes = codes[: math.prod(leaf.shape)].reshape(leaf.shape)
        words = jnp.asarray(popcount.pack_kernel(codes))
        scale = np.broadcast_to(np.asarray(leaf.scale).reshape(-1), leaf.shape[-1:])
        return Words(words, jnp.asarray(scale), leaf.shape)

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_packed)


def _layer(path: str) -> str:
    """Path of the layer that a kernel belongs to."""
    return path.removesuffix("/kernel")


def _is_binary(leaf: Any) -> bool:
    return (
        isinstance(leaf, Packed)
        and leaf.levels.shape == (2,)
        and np.asarray(leaf.levels).tolist() == [-1.0, 1.0]
        and all(size == 1 for size in leaf.scale.shape[:-1])
    )


def _after(x: jax.Array, leaf: Packed) -> Packed:
    """The same weights, but they wait for the input of their layer.

    Weights depend on no input, so XLA would unpack those of all layers first; what does
    not fit into the cache is then written to memory and read back.
    """
    never = jnp.any(x[:1, 0, 0, 0] > jnp.inf)
    return dataclasses.replace(leaf, codes=leaf.codes ^ never.astype(jnp.uint8))
