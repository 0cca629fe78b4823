"""The file that ships: packed codes, levels, scales, float rest, and what they mean.

A safetensors file. A quantized tensor at PATH is stored as 'PATH:codes' (packed bytes),
'PATH:levels' and 'PATH:scale', a float one as 'PATH'. The header's metadata hold two
strings: 'quantnet_jax', a JSON object (see `write`), and 'sha256' over that object and
all tensors. Reading executes nothing, and checks the hash before it looks at a tensor.
"""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from quantnet_jax.core.qtensor import QTensor, validate
from quantnet_jax.deploy.packed import Packed, is_packed, unpack_tree

FORMAT = 1
FLOATS = ("float32", "float16")
PARTS = ("codes", "levels", "scale")
LARGEST_SPEC = 10_000_000
"""Characters of the JSON object that are read at most."""

PyTree = Any


def write(
    path: str | os.PathLike,
    params: PyTree,
    spec: Mapping[str, Any],
    *,
    dtype: str = "float32",
) -> dict[str, int]:
    """Writes an artifact, whole or not at all.

    Args:
      path: of the file; its folder must exist.
      params: tree of `Packed` and float32 leaves.
      spec: plain data about the network ('model', 'input', 'classes', ...). 'format',
        'quantized' ({path: {'bits', 'shape'}}) and 'float' (dtype) are added.
      dtype: of float leaves in the file, 'float32' or 'float16'.

    Returns:
      {'payload': bytes of tensors, 'file': bytes of the file}.

    Raises:
      ValueError: an unknown dtype, or a float that float16 cannot hold.
    """
    if dtype not in FLOATS:
        raise ValueError(f"`dtype` is {dtype!r}, expected one of {FLOATS}")
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_packed)[0]
    tensors, quantized = {}, {}
    for key, leaf in leaves:
        name = jax.tree_util.keystr(key, simple=True, separator="/")
        if is_packed(leaf):
            quantized[name] = {"bits": leaf.bits, "shape": list(leaf.shape)}
            for part in PARTS:
                tensors[f"{name}:{part}"] = np.asarray(getattr(leaf, part))
        else:
            tensors[name] = _as_float(name, leaf, dtype)
    spec = dict(spec) | {"format": FORMAT, "quantized": quantized, "float": dtype}
    text = json.dumps(spec, sort_keys=True, allow_nan=False)
    metadata = {"quantnet_jax": text, "sha256": digest(text, tensors)}
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata)
    os.replace(partial, path)
    payload = sum(x.nbytes for x in tensors.values())
    return {"payload": payload, "file": path.stat().st_size}


def read(path: str | os.PathLike) -> tuple[PyTree, dict[str, Any]]:
    """Reads an artifact.

    Returns:
      (nested dict of `Packed` and float32 leaves, spec as given to `write`).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: in one line, what is wrong with the file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as e:
        raise ValueError(f"{path} is no safetensors file, or damaged: {e}") from None
    text = metadata.get("quantnet_jax")
    if text is None or "sha256" not in metadata:
        raise ValueError(f"{path} is no artifact of quantnet_jax: metadata are missing")
    if len(text) > LARGEST_SPEC or digest(text, tensors) != metadata["sha256"]:
        raise ValueError(f"{path} is damaged: its content does not fit its SHA-256")
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: the metadata are no JSON: {e}") from None
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        found = spec.get("format") if isinstance(spec, dict) else spec
        raise ValueError(f"{path}: format {found!r:.80}, expected {FORMAT}")
    try:
        return _tree(tensors, spec), spec
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as e:
        raise ValueError(f"{path}: {e}") from None


def digest(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the JSON text and of name, dtype, shape and bytes of each tensor."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        x = np.ascontiguousarray(tensors[name])
        total.update(f"\n{name}\n{x.dtype}{x.shape}\n".encode())
        total.update(x.tobytes())
    return total.hexdigest()


def _as_float(name: str, leaf: Any, dtype: str) -> np.ndarray:
    x = np.asarray(leaf, np.float32)
    with np.errstate(over="ignore"):
        y = x.astype(dtype)
    if not np.isfinite(y).all():
        raise ValueError(f"{name}: not every number is finite as {dtype}")
    return y


def _tree(tensors: Mapping[str, np.ndarray], spec: Mapping[str, Any]) -> PyTree:
    """Checks the tensors against the spec and puts them at their places."""
    rest, tree = dict(tensors), {}
    quantized = spec.get("quantized")
    if not isinstance(quantized, dict):
        raise ValueError("'quantized' is missing or no object")
    for name, about in quantized.items():
        bits, shape = about.get("bits"), about.get("shape")
        parts = {part: rest.pop(f"{name}:{part}", None) for part in PARTS}
        _put(tree, name, _packed(name, bits, shape, parts))
    for name, x in rest.items():
        if x.dtype.name not in FLOATS or not np.isfinite(x).all():
            raise ValueError(
                f"{name}: {x.dtype}, expected finite {' or '.join(FLOATS)}"
            )
        _put(tree, name, jnp.asarray(x, jnp.float32))
    return tree


def _packed(name: str, bits: Any, shape: Any, parts: dict) -> Packed:
    whole = lambda x: isinstance(x, int) and not isinstance(x, bool) and x > 0
    if not whole(bits) or bits > 8:
        raise ValueError(f"{name}: bits are {bits!r:.80}, expected 1 to 8")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 8
        or not all(map(whole, shape))
    ):
        raise ValueError(f"{name}: shape is {shape!r:.80}, expected positive integers")
    for part, x in parts.items():
        wanted = "uint8" if part == "codes" else "float32"
        if x is None or x.dtype.name != wanted:
            found = "missing" if x is None else x.dtype
            raise ValueError(f"{name}:{part} is {found}, expected {wanted}")
    # The bytes that are there bound what unpacking takes.
    expected = -(-math.prod(shape) * bits // 8)
    if parts["codes"].shape != (expected,):
        raise ValueError(
            f"{name}:codes has shape {parts['codes'].shape}, expected ({expected},)"
        )
    arrays = {part: jnp.asarray(x) for part, x in parts.items()}
    packed = Packed(**arrays, shape=tuple(shape))
    if packed.levels.ndim not in (1, 2) or packed.bits != bits:
        raise ValueError(
            f"{name}:levels of shape {packed.levels.shape} do not fit {bits} bits"
        )
    qt: QTensor = unpack_tree(packed)
    validate(qt, name)
    return packed


def _put(tree: dict, name: str, leaf: Any) -> None:
    """Puts a leaf at a '/'-joined path; two leaves cannot share a place."""
    *folders, last = name.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
        if not isinstance(tree, dict):
            raise ValueError(f"{name!r} lies below another tensor")
    if last in tree:
        raise ValueError(f"{name!r} is there twice")
    tree[last] = leaf
