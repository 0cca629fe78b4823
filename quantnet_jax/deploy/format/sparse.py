"""Sparse tensors in a file: a bit for each weight, and codes of those other than 0."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from quantnet_jax.core.qtensor import QTensor, code_bits
from quantnet_jax.deploy.format.packed import Packed, pack_tree


def split(
    codes: np.ndarray, levels: np.ndarray, bits: int, shape: tuple[int, ...]
) -> dict[str, Any] | None:
    """Packed codes without those of the level 0, where that takes fewer bytes.

    Args:
      codes: packed, see `quantnet_jax.core.packing.pack`.
      levels: the table; one for the whole tensor that has 0 once, else None is
        returned.
      bits: of a code.
      shape: of the tensor.

    Returns:
      {'mask': uint8, a bit for each weight, 0 where it is 0; 'codes': those of the
      others, packed with the bits of a table without 0, those above it less by 1;
      'zero': its code, 'pruned': number of zeros}, or None.
    """
    zeros = np.flatnonzero(np.asarray(levels) == 0)
    if np.ndim(levels) != 1 or len(zeros) != 1 or len(levels) < 3:
        return None
    dense, zero = unpack(np.asarray(codes), bits, shape).reshape(-1), zeros[0]
    kept = dense != zero
    rest = dense[kept] - (dense[kept] > zero).astype(np.uint8)
    fewer = pack(rest, code_bits(len(levels) - 1))
    mask = np.packbits(kept, bitorder="little")
    if fewer.size + mask.size >= np.size(codes):
        return None
    pruned = int(dense.size - kept.sum())
    return {"mask": mask, "codes": fewer, "zero": int(zero), "pruned": pruned}


def split_leaf(leaf: QTensor | Packed) -> dict[str, Any] | None:
    """`split` of a tensor whose values are known; of shapes alone None."""
    if isinstance(leaf.codes, jax.ShapeDtypeStruct):
        return None
    packed = pack_tree(leaf)
    return split(packed.codes, packed.levels, packed.bits, tuple(leaf.shape))


def dense(
    name: str, about: Mapping[str, Any], mask: Any, parts: Mapping[str, Any]
) -> np.ndarray:
    """The packed codes of a sparse tensor, by `join`; errors name the tensor.

    Args:
      name: of the tensor.
      about: 'shape' and 'zero', from a file.
      mask: of the file, or None.
      parts: 'codes' and 'levels' of the file, or None.
    """
    shape: Any = about.get("shape")
    levels = parts["levels"]
    listed = isinstance(shape, list) and 1 <= len(shape) <= 8
    if not listed or not all(map(is_count, shape)):
        raise ValueError(f"{name}: shape is {shape!r:.80}, expected positive integers")
    if any(x is None for x in (mask, levels, parts["codes"])):
        raise ValueError(f"{name}: mask, codes or levels are missing")
    if levels.ndim != 1 or not 3 <= len(levels) <= 256:
        raise ValueError(f"{name}:levels of shape {levels.shape} have no mask")
    try:
        size = math.prod(shape)
        return join(mask, parts["codes"], about["zero"], len(levels), size)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from None


def join(
    mask: np.ndarray, codes: np.ndarray, zero: Any, levels: int, size: int
) -> np.ndarray:
    """Inverse of `split`: the packed codes of all weights.

    Args:
      mask, codes, zero: of `split`, perhaps from a hostile file.
      levels: of the table, at least 3.
      size: number of weights.

    Raises:
      ValueError: they do not fit.
    """
    if type(zero) is not int or not 0 <= zero < levels:
        raise ValueError(f"'zero' is {zero!r:.80}, expected a code below {levels}")
    if mask.dtype != np.uint8 or mask.shape != (-(-size // 8),):
        raise ValueError(f"mask of {mask.shape} {mask.dtype} for {size} weights")
    kept = np.unpackbits(mask, count=size, bitorder="little").astype(bool)
    bits, count = code_bits(levels - 1), int(kept.sum())
    if codes.dtype != np.uint8 or codes.shape != (-(-count * bits // 8),):
        raise ValueError(f"codes of {codes.shape} {codes.dtype} for {count} weights")
    rest = unpack(codes, bits, (count,))
    if count and rest.max() >= levels - 1:
        raise ValueError(f"code {rest.max()} is outside the table of {levels}")
    dense = np.full(size, zero, np.uint8)
    dense[kept] = rest + (rest >= zero).astype(np.uint8)
    return pack(dense, code_bits(levels))


def is_count(x: Any, largest: int = 2**31 - 1) -> bool:
    """Whether a value of a JSON file is an integer from 1 to `largest`."""
    return isinstance(x, int) and not isinstance(x, bool) and 0 < x <= largest


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """`quantnet_jax.core.packing.pack` in NumPy."""
    planes = codes.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)
    return np.packbits((planes & 1).reshape(-1), bitorder="little")


def unpack(packed: np.ndarray, bits: int, shape: Any) -> np.ndarray:
    """`quantnet_jax.core.packing.unpack` in NumPy."""
    count = int(np.prod(shape, dtype=np.int64)) * bits
    planes = np.unpackbits(packed, count=count, bitorder="little").reshape(-1, bits)
    return np.packbits(planes, axis=-1, bitorder="little").reshape(shape)
