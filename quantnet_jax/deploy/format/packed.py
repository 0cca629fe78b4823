"""Weights whose codes stay packed in memory until a compiled function unpacks them."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax.core.packing import pack, unpack
from quantnet_jax.core.qtensor import QTensor, dequantize, is_qtensor, trim
from quantnet_jax.core.serial import Serializable
from quantnet_jax.trees.paths import named

PyTree = Any
DEEPEST = 64
"""Maximum number of names in the path of a tensor."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed(Serializable):
    """A QTensor with packed codes.

    Attributes:
      codes: uint8[ceil(n bits / 8)], see `quantnet_jax.core.packing.pack`.
      levels: as in QTensor.
      scale: as in QTensor.
      shape: of the weights. Static.
    """

    codes: jax.Array
    levels: jax.Array
    scale: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return QTensor(self.codes, self.levels, self.scale).bits

    @property
    def nbytes(self) -> int:
        """Bytes of codes, levels and scale."""
        return self.codes.nbytes + self.levels.nbytes + self.scale.nbytes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Words:
    """Binary weights of a layer that counts bits, see `ops.popcount`.

    Attributes:
      words: of `popcount.pack_kernel`, uint32[..., ceil(Cin / 32), Cout].
      scale: float32[Cout].
      shape: of the weights. Static.
    """

    words: jax.Array
    scale: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def is_packed(x: object) -> bool:
    """True for a `Packed` and for `Words`."""
    return isinstance(x, Packed | Words)


def is_quantized(x: object) -> bool:
    """True for a `QTensor`, a `Packed` and for `Words`."""
    return is_packed(x) or is_qtensor(x)


def leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """('/'-joined path, leaf) of a tree; `QTensor`, `Packed`, `Words` are leaves."""
    return named(tree, is_quantized)


def nested(items: Iterable[tuple[str, Any]]) -> PyTree:
    """Nested dicts from leaves at '/'-joined paths."""
    root: PyTree = {}
    for name, leaf in items:
        *folders, last = name.split("/")
        if len(folders) >= DEEPEST:
            raise ValueError(f"{name[:80]!r}... has more than {DEEPEST} parts")
        tree = root
        for folder in folders:
            tree = tree.setdefault(folder, {})
            if not isinstance(tree, dict):
                raise ValueError(f"{name!r} is below another tensor")
        if last in tree:
            raise ValueError(f"{name!r} appears twice")
        tree[last] = leaf
    return root


def unflatten(like: PyTree, found: Mapping[str, Any]) -> PyTree:
    """The leaves as a tree of the structure of `like`."""
    wanted = leaves(like)
    names = [name for name, _ in wanted]
    if wrong := sorted(set(names) ^ found.keys()) or len(names) != len(found):
        raise ValueError(f"`like` and the file differ in their paths: {wrong!r:.80}")
    shape = lambda x: tuple(getattr(x, "shape", ()))
    for name, leaf in wanted:
        if shape(leaf) != shape(found[name]):
            raise ValueError(
                f"{name!r} has shape {shape(found[name])}, `like` {shape(leaf)}"
            )
    treedef = jax.tree.structure(like, is_leaf=is_quantized)
    return jax.tree.unflatten(treedef, [found[name] for name in names])


def pack_tree(params: PyTree) -> PyTree:
    """Packs every QTensor of a tree, trimmed (`qtensor.trim`); float leaves stay."""

    def one(x):
        if not is_qtensor(x):
            return x
        x = trim(x)
        return Packed(pack(x.codes, x.bits), x.levels, x.scale, tuple(x.shape))

    return jax.tree.map(one, params, is_leaf=is_qtensor)


def unpack_tree(params: PyTree) -> PyTree:
    """The QTensors of a packed tree; float leaves stay. Inverse of `pack_tree`."""

    def one(x):
        if not isinstance(x, Packed):
            return x
        return QTensor(unpack(x.codes, x.bits, x.shape), x.levels, x.scale)

    return jax.tree.map(one, params, is_leaf=is_packed)


def float_tree(params: PyTree) -> PyTree:
    """Float32 values of a packed tree, equal bit for bit to those of its QTensors."""
    return jax.tree.map(
        lambda x: values(x) if is_packed(x) else x, params, is_leaf=is_packed
    )


def values(x: Packed | Words) -> jax.Array:
    """Float32 `levels[codes] * scale`.

    Binary codes choose between two numbers: a select costs less than a table look-up.
    """
    if isinstance(x, Words):
        ones = (1,) * (len(x.shape) - 1)
        place = jnp.arange(32, dtype=jnp.uint32).reshape(*ones, 32, 1)
        bits = (x.words[..., None, :] >> place) & jnp.uint32(1)
        bits = bits.reshape(*x.shape[:-2], -1, x.shape[-1])[..., : x.shape[-2], :]
        scale = x.scale.reshape(*ones, -1)
        return jnp.where(bits == 1, scale, -scale)
    if x.levels.shape != (2,):
        return dequantize(QTensor(unpack(x.codes, x.bits, x.shape), x.levels, x.scale))
    size = math.prod(x.shape)
    shifts = jnp.arange(8, dtype=jnp.uint8)[None]
    bit = (x.codes[:, None] >> shifts) & jnp.uint8(1)
    bit = bit.reshape(-1)[:size].reshape(x.shape)
    return jnp.where(bit == 1, x.levels[1], x.levels[0]) * x.scale
