"""The artifact: packed codes, levels, scales, float tensors, and what they mean.

A safetensors file. A quantized tensor at PATH is stored as 'PATH:codes' (packed bytes),
'PATH:levels' and 'PATH:scale', a sparse one with 'PATH:mask' where that is smaller, a
float one as 'PATH'. The header's metadata hold two
strings: 'quantnet_jax', a JSON object (see `write`), and 'sha256' over that object and
all tensors. Reading executes nothing, checks the hash before it looks at a tensor, and
needs memory in proportion to the file. The hash detects damage, not malice: everything
else in the file is checked as well.
"""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from quantnet_jax.common.files import write_atomic
from quantnet_jax.core.qtensor import QTensor, code_bits, validate
from quantnet_jax.deploy.format import sparse, structure
from quantnet_jax.deploy.format.packed import Packed, Words, leaves, nested, pack_tree
from quantnet_jax.deploy.format.sparse import is_count

FORMAT = 2
FLOATS = ("float32", "float16")
PARTS = ("codes", "levels", "scale")
FILE_KEYS = ("format", "quantized", "float", "dtypes", "plain", "tree")
"""Keys of the JSON object that `write` adds: version, {path: {'bits', 'shape'}}, dtype
of float32 leaves in the file, {path: dtype} of other leaves, whether the paths alone
describe the tree, and if not, its nodes (see `structure`)."""
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("uint64", "bfloat16", "float16", "float64"),
)
MOST = 2**15
"""Maximum number of tensors."""
LARGEST_SPEC = 4_000_000
"""Maximum length of the JSON object in characters."""
LONGEST = 500
"""Maximum length of an error message about the content of a file."""
NO_FILE = "packed words of bit counts cannot be saved; load with popcount=False"
"""The error of a leaf that is `Words`."""

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
      params: any pytree of `QTensor`, `Packed`, arrays of `DTYPES` or float32, and
        Python numbers. `QTensor`s are packed.
      spec: JSON data about the network, see `NetworkSpec.to_json` for those that
        `deploy.load` reads. `FILE_KEYS` are added.
      dtype: of float32 leaves in the file, 'float32' or 'float16'.

    Returns:
      {'payload': bytes of tensors, 'file': bytes of the file}.

    Raises:
      ValueError: an unknown dtype, a leaf that the file cannot hold (not finite, of
        another dtype, no array), a `Packed` whose parts do not fit, `Words`, two
        tensors of one name, a key that is no string or integer, or a path that is too
        deep.
    """
    if dtype not in FLOATS:
        raise ValueError(f"`dtype` is {dtype!r}, expected one of {FLOATS}")
    nodes = structure.encode(params)
    plain = structure.is_plain(nodes)
    params = pack_tree(params)
    tensors, quantized, dtypes = {}, {}, {}
    for name, leaf in leaves(params):
        if isinstance(leaf, Words):
            raise ValueError(f"{name}: {NO_FILE}")
        if isinstance(leaf, Packed):
            quantized[name] = {"bits": leaf.bits, "shape": list(leaf.shape)}
            parts = _parts(name, leaf)
            if made := sparse.split(
                parts["codes"], parts["levels"], leaf.bits, leaf.shape
            ):
                quantized[name] |= {"zero": made["zero"]}
                parts |= {k: made[k] for k in ("mask", "codes")}
            new = {f"{name}:{part}": x for part, x in parts.items()}
        elif type(leaf) in (bool, int, float):
            continue  # is among the nodes
        else:
            kind = _dtype(name, leaf)
            if kind != "float32":
                dtypes[name] = kind
            new = {name: _as(name, leaf, dtype if kind == "float32" else kind)}
        if both := tensors.keys() & new.keys():
            raise ValueError(f"two tensors have the name {min(both)!r}")
        tensors |= new
    spec = dict(spec) | {"format": FORMAT, "quantized": quantized, "float": dtype}
    spec |= {"dtypes": dtypes, "plain": plain} | ({} if plain else {"tree": nodes})
    text = json.dumps(spec, sort_keys=True, allow_nan=False)
    metadata = {"quantnet_jax": text, "sha256": digest(text, tensors)}
    # Not by the library's own writer, whose files only their owner can read.
    content = _sorted(save(tensors, metadata))
    write_atomic(path, content)
    payload = sum(x.nbytes for x in tensors.values())
    return {"payload": payload, "file": len(content)}


def read(
    path: str | os.PathLike, *, like: PyTree = None
) -> tuple[PyTree, dict[str, Any]]:
    """Reads an artifact.

    Args:
      path: of the file.
      like: tree of the structure that was written, arrays or shapes; needed if it has
        other nodes than dicts, lists and tuples.

    Returns:
      (tree of `Packed` and NumPy leaves, spec as given to `write` with `FILE_KEYS`).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: in one line, what is wrong with the file, or that `like` is missing or
        has other nodes, paths or shapes.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            if len(names) > MOST:  # each takes a while
                raise ValueError(f"{len(names)} tensors, expected at most {MOST}")
            tensors = {name: file.get_tensor(name) for name in names}
    except Exception as e:  # the library documents no list of them
        raise ValueError(
            f"{path} is not a safetensors file, or damaged: {describe(e)}"
        ) from None
    text = metadata.get("quantnet_jax")
    if text is None or "sha256" not in metadata:
        raise ValueError(f"{path} is not an artifact of quantnet_jax: no metadata")
    if len(text) > LARGEST_SPEC or digest(text, tensors) != metadata["sha256"]:
        raise ValueError(f"{path} is damaged: SHA-256 mismatch")
    try:
        spec = json.loads(text, parse_constant=_refuse)
        if not isinstance(spec, dict) or spec.get("format") != FORMAT:
            found = spec.get("format") if isinstance(spec, dict) else spec
            raise ValueError(f"format {found!r:.80}, expected {FORMAT}")
        found, nodes = _leaves(tensors, spec), spec.get("tree")
        if type(plain := spec.get("plain", True)) is not bool:
            raise ValueError(f"plain={plain!r:.80}, expected true or false")
        if plain:
            nodes = structure.encode(nested(found.items()))
        return structure.build(nodes, found, like), spec
    except Exception as e:  # a hostile file can raise anything
        raise ValueError(f"{path}: {describe(e)}") from None


def digest(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the JSON text and of name, dtype, shape and bytes of each tensor."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        x = tensors[name]
        total.update(f"\n{name}\n{x.dtype}{x.shape}\n".encode())
        total.update(x.tobytes())  # in row-major order
    return total.hexdigest()


def describe(e: Exception) -> str:
    """One printable line for an exception caused by the content of a file."""
    text = " ".join(str(e).split())[:LONGEST]
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    plain = isinstance(e, ValueError | SafetensorError) and shown
    return shown if plain else f"{type(e).__name__}: {shown}"


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _parts(name: str, leaf: Packed) -> dict[str, np.ndarray]:
    """The arrays of a quantized tensor, checked as `read` does."""
    parts = {
        # The writer needs row-major arrays; `order` keeps scalars scalar.
        "codes": np.asarray(leaf.codes, order="C"),
        "levels": _as(f"{name}:levels", leaf.levels, "float32"),
        "scale": _as(f"{name}:scale", leaf.scale, "float32"),
    }
    _packed(name, leaf.bits, list(leaf.shape), parts)
    return parts


def _dtype(name: str, leaf: Any) -> str:
    """Name of the dtype of an array that a file can hold."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise ValueError(f"{name} is a {type(leaf).__name__}, expected an array")
    if (kind := str(leaf.dtype)) not in ("float32", *DTYPES):
        raise ValueError(f"{name}: a file cannot hold {kind} values")
    return kind


def _as(name: str, leaf: Any, dtype: str) -> np.ndarray:
    """A finite, row-major NumPy array of a dtype."""
    with np.errstate(over="ignore"):
        x = np.asarray(leaf).astype(jnp.dtype(dtype), order="C")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: not every number is finite as {dtype}")
    return x


def _leaves(tensors: Mapping[str, np.ndarray], spec: Mapping[str, Any]) -> dict:
    """{path: leaf}; checks the tensors against the spec."""
    rest, found = dict(tensors), {}
    dtypes = spec.get("dtypes", {})
    if not isinstance(dtypes, dict) or not {*dtypes.values()} <= {*DTYPES}:
        raise ValueError(f"'dtypes' is {dtypes!r:.80}, expected names of dtypes")
    quantized, dtype = spec.get("quantized"), spec.get("float")
    if not isinstance(quantized, dict):
        raise ValueError("'quantized' is missing or no object")
    if dtype not in FLOATS:
        raise ValueError(f"'float' is {dtype!r:.80}, expected one of {FLOATS}")
    for name, about in quantized.items():
        if not isinstance(about, dict):
            raise ValueError(f"{name}: {about!r:.80}, expected bits and shape")
        parts = {part: rest.pop(f"{name}:{part}", None) for part in PARTS}
        if "zero" in about:
            mask = rest.pop(f"{name}:mask", None)
            parts |= {"codes": sparse.dense(name, about, mask, parts)}
        found[name] = _packed(name, about.get("bits"), about.get("shape"), parts)
    for name, x in rest.items():
        kind = dtypes.get(name, "float32")
        if x.dtype.name not in (dtype, dtypes.get(name)):
            raise ValueError(f"{name} is {x.dtype}, expected {dtype}")
        if not np.isfinite(x).all():
            raise ValueError(f"{name}: not every number is finite")
        if name in found:
            raise ValueError(f"{name!r} appears twice")
        found[name] = x.astype(jnp.dtype(kind), copy=False)
    return found


def _packed(name: str, bits: Any, shape: Any, parts: dict[str, Any]) -> Packed:
    """Everything is checked in NumPy, before JAX sees a number of the file."""
    if not is_count(bits, 8):
        raise ValueError(f"{name}: bits are {bits!r:.80}, expected 1 to 8")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 8
        or not all(map(is_count, shape))
    ):
        raise ValueError(f"{name}: shape is {shape!r:.80}, expected positive integers")
    for part, x in parts.items():
        wanted = "uint8" if part == "codes" else "float32"
        if x is None or x.dtype.name != wanted:
            found = "missing" if x is None else x.dtype
            raise ValueError(f"{name}:{part} is {found}, expected {wanted}")
    # The size of the file bounds the memory of unpacking.
    expected = -(-math.prod(shape) * bits // 8)
    if parts["codes"].shape != (expected,):
        raise ValueError(
            f"{name}:codes has shape {parts['codes'].shape}, expected ({expected},)"
        )
    size = (0, *parts["levels"].shape)[-1]
    if not 2 <= size <= 256 or code_bits(size) != bits:
        raise ValueError(
            f"{name}:levels of shape {parts['levels'].shape} do not fit {bits} bits"
        )
    codes: Any = np.broadcast_to(np.uint8(0), shape)
    if size < 2**bits:  # else every code is in the table
        codes = sparse.unpack(parts["codes"], bits, shape)
    validate(QTensor(codes, parts["levels"], parts["scale"]), name)
    return Packed(**parts, shape=tuple(shape))


def _sorted(content: bytes) -> bytes:
    """The same safetensors file with sorted metadata: equal input, equal bytes."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
