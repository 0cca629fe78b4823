"""The walk over a parameter tree: leaves by '/'-joined paths."""

from collections.abc import Callable
from typing import Any

import jax

from quantnet_jax.core.qtensor import is_qtensor

PyTree = Any


def named(tree: PyTree, is_leaf: Callable[[Any], bool]) -> list[tuple[str, Any]]:
    """[('/'-joined path, leaf)] of any tree, in the order of `jax.tree.leaves`.

    What a box of Flax holds (`nn.with_partitioning`, a variable of nnx) has the path of
    the box: 'dense/kernel', not 'dense/kernel/value'.
    """
    found = []
    stop = lambda x: is_leaf(x) or _is_box(x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=stop):
        inner = jax.tree_util.tree_leaves_with_path(x, is_leaf=is_leaf)
        if len(inner) == 1:
            inner = [((), inner[0][1])]
        found += [(joined((*path, *key)), leaf) for key, leaf in inner]
    return found


def flatten(params: PyTree) -> dict[str, Any]:
    """{'/'-joined path: leaf} of a parameter tree; QTensors count as leaves.

    Raises:
      ValueError: two leaves have equal paths, as {'a/b': x} and {'a': {'b': x}} do.
    """
    found: dict[str, Any] = {}
    for name, leaf in named(params, is_qtensor):
        if name in found:
            raise ValueError(f"path {name!r} names two leaves; rename one key")
        found[name] = leaf
    return found


def replace(params: PyTree, new: dict[str, Any]) -> PyTree:
    """`params` with the leaves at the given paths replaced."""
    structure = jax.tree.structure(params, is_leaf=is_qtensor)
    leaves = [new.get(name, leaf) for name, leaf in named(params, is_qtensor)]
    return jax.tree.unflatten(structure, leaves)


def joined(path: Any) -> str:
    """A key path of `jax.tree_util` as a '/'-joined string."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_box(x: object) -> bool:
    """Whether `x` is a box of linen or a variable of nnx; Flax is not imported here."""
    return hasattr(type(x), "replace_boxed") or hasattr(type(x), "from_metadata")
