"""The nodes of a tree as JSON: the tree that is read is the one that was written.

A leaf is '*'; a Python number {'value': number}; any other node [kind, [[key, child],
...]], where kind is 'dict', 'list', 'tuple', 'None' or, of other kinds of pytrees,
'class NAME'. Those need an example when they are read.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax

from quantnet_jax.deploy.format.packed import DEEPEST, is_quantized, unflatten
from quantnet_jax.trees.paths import joined

PyTree = Any
LEAF = "*"
NUMBER = "a finite number, of 32 bits if it is whole"
KINDS = {dict: "dict", list: "list", tuple: "tuple", type(None): "None"}


def encode(tree: PyTree, path: tuple[str, ...] = ()) -> Any:
    """The nodes of a tree.

    Raises:
      ValueError: a path is too deep, a dict has other keys than strings or integers, or
        a Python number is none that JAX takes.
    """
    name = "/".join(path)
    if len(path) > DEEPEST:
        raise ValueError(f"{name[:80]!r}... has more than {DEEPEST} parts")
    if type(tree) in (bool, int, float):
        if not _is_number(tree):
            raise ValueError(f"{name}={tree!r:.80}, expected {NUMBER}")
        return {"value": tree}
    kind = KINDS.get(type(tree))
    if kind == "dict":
        if not any({*map(type, tree)} <= {one} for one in (str, int)):
            where = f" of {name!r}" if path else ""
            raise ValueError(
                f"keys {[*tree]!r:.80}{where} are not all strings or all integers"
            )
        items = [(key, tree[key]) for key in sorted(tree)]
    elif kind:
        items = list(enumerate(tree or ()))
    else:
        below = lambda x: x is not tree or is_quantized(x)
        found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=below)
        if [key for key, _ in found] == [()]:
            return LEAF
        kind = f"class {type(tree).__name__}"
        items = [(joined(key), child) for key, child in found]
    return [kind, [[k, encode(child, (*path, str(k)))] for k, child in items]]


def is_plain(node: Any, root: bool = True) -> bool:
    """Whether paths alone describe the tree: dicts with strings as keys."""
    if node == LEAF:
        return not root
    if isinstance(node, Mapping) or node[0] != "dict" or not node[1]:
        return False
    return all(
        isinstance(key, str) and "/" not in key and is_plain(child, False)
        for key, child in node[1]
    )


def build(nodes: Any, found: Mapping[str, Any], like: PyTree = None) -> PyTree:
    """The tree of a file.

    Args:
      nodes: as `encode` gives them, but from a file; None of a file without them.
      found: {path: leaf}.
      like: tree with the nodes that were written; needed for those of other kinds.

    Raises:
      ValueError: in one line, what is wrong with the nodes, or that `like` is missing
        or differs.
    """
    if nodes is None and like is None:
        raise ValueError("the tree is not of dicts alone, expected `like`")
    found = dict(found) | ({} if nodes is None else _numbers(nodes, ()))
    if like is None:
        tree = _decode(nodes, found, ())
        if found:
            raise ValueError(f"{min(found)!r} is not in the tree")
        return tree
    tree = unflatten(like, found)
    if nodes is not None:
        _compare(nodes, encode(like), ())
    return tree


def _is_number(x: Any) -> bool:
    """Whether JAX takes a Python number: without x64 its integers have 32 bits."""
    if type(x) is int:
        return -(2**31) <= x < 2**31
    return type(x) in (bool, float) and math.isfinite(x)


def _numbers(node: Any, path: tuple[str, ...]) -> dict[str, bool | int | float]:
    """{path: number} of the leaves that are Python numbers; checks all nodes."""
    name = "/".join(path)
    if node == LEAF:
        return {}
    if isinstance(node, Mapping):
        x: Any = node.get("value")
        if not _is_number(x):
            raise ValueError(f"{name!r}: {node!r:.80}, expected {NUMBER}")
        return {name: x}
    match node:
        case [str(kind), list(items)] if all(
            isinstance(x, list) and len(x) == 2 and type(x[0]) in (str, int)
            for x in items
        ):
            keys = [key for key, _ in items]
        case _:
            raise ValueError(f"{name!r}: {node!r:.80} is no node of a tree")
    ordered = kind not in ("list", "tuple") or keys == list(range(len(keys)))
    known = kind in KINDS.values() or kind.startswith("class ")
    if len(path) > DEEPEST or not known or not ordered or len({*keys}) < len(keys):
        raise ValueError(f"{name!r}: {node!r:.80} is no node of a tree")
    found = {}
    for key, child in items:
        found |= _numbers(child, (*path, str(key)))
    return found


def _decode(node: Any, found: dict[str, Any], path: tuple[str, ...]) -> PyTree:
    """A tree of dicts, lists and tuples; takes its leaves out of {path: leaf}."""
    name = "/".join(path)
    if _is_leaf(node):
        if name not in found:
            raise ValueError(f"{name!r} is missing")
        return found.pop(name)
    kind, items = node
    if kind.startswith("class "):
        where = f"{name!r} is" if path else "the tree is"
        raise ValueError(f"{where} a {kind.removeprefix('class ')}, expected `like`")
    children = {key: _decode(child, found, (*path, str(key))) for key, child in items}
    match kind:
        case "dict":
            return children
        case "list":
            return list(children.values())
        case "tuple":
            return tuple(children.values())
    return None


def _is_leaf(node: Any) -> bool:
    return node == LEAF or isinstance(node, Mapping)


def _compare(node: Any, like: Any, path: tuple[str, ...]) -> None:
    """Refuses an example whose nodes are not those of the file."""
    name = "/".join(path)
    if _is_leaf(node) and _is_leaf(like):
        return
    kinds = ["a leaf" if _is_leaf(x) else x[0] for x in (node, like)]
    if kinds[0] != kinds[1]:
        where = repr(name) if path else "the tree"
        raise ValueError(f"{where} is {kinds[0]} in the file, {kinds[1]} in `like`")
    keys = [[key for key, _ in x[1]] for x in (node, like)]
    if keys[0] != keys[1]:
        raise ValueError(
            f"{name!r} has keys {keys[0]!r:.60} in the file, {keys[1]!r:.60} in `like`"
        )
    for (key, one), (_, other) in zip(node[1], like[1], strict=True):
        _compare(one, other, (*path, str(key)))
