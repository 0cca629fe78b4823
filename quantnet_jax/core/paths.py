"""The walk over a parameter tree: leaves by '/'-joined paths."""

from typing import Any

import jax

from quantnet_jax.core.qtensor import is_qtensor

PyTree = Any


def flatten(params: PyTree) -> dict[str, Any]:
    """{'/'-joined path: leaf} of a parameter tree; QTensors count as leaves.

    Raises:
      ValueError: two leaves have equal paths, as {'a/b': x} and {'a': {'b': x}} do.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_qtensor)
    found: dict[str, Any] = {}
    for path, leaf in leaves:
        name = joined(path)
        if name in found:
            raise ValueError(f"path {name!r} names two leaves; rename one key")
        found[name] = leaf
    return found


def replace(params: PyTree, new: dict[str, Any]) -> PyTree:
    """`params` with the leaves at the given paths replaced."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: new.get(joined(path), leaf), params
    )


def joined(path: Any) -> str:
    """A key path of `jax.tree_util` as a '/'-joined string."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
