"""Own trees: packed into one verified file, and run by the user's own `apply`."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.common.files import staged
from quantnet_jax.deploy.format import artifact
from quantnet_jax.deploy.format.packed import float_tree, is_packed
from quantnet_jax.deploy.predictor import Predictor, check_popcount, from_artifact
from quantnet_jax.deploy.stablehlo import inputs_of
from quantnet_jax.trees.tree import dequantize_tree

PyTree = Any
UNVERIFIED = ".unverified"
_unpack = jax.jit(float_tree)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TreePredictor:
    """A loaded tree with a function of it; call it with the inputs of that function.

    Attributes:
      apply: `(params, *inputs) -> outputs` for packed `params`, a pure function, to be
        jitted or mapped; None if the file was loaded without a function.
      params: tree of `Packed` and other leaves; the weights stay packed in memory.
      info: as given to `quantnet_jax.save`.
      run: the user's function of float parameters, jitted.
    """

    apply: Callable[..., Any] | None
    params: PyTree
    info: Mapping[str, Any]
    run: Callable[..., Any]

    def __call__(self, *inputs: Any) -> Any:
        """Outputs of the user's function, equal bit for bit to those of the hard tree.

        Raises:
          TypeError: the file was loaded without a function.
        """
        if self.apply is None:
            raise TypeError("the file was loaded without `apply`, which calls need")
        # Not one program with `run`: that is compiled as for any other parameters.
        return self.run(_unpack(self.params), *inputs)

    def __repr__(self) -> str:
        found = jax.tree.leaves(self.params, is_leaf=is_packed)
        packed = sum(map(is_packed, found))
        size = sum(getattr(x, "nbytes", 0) for x in found)
        return f"TreePredictor({len(found)} leaves, {packed} packed, {size:,} bytes)"


def save(
    path: str | os.PathLike,
    tree: PyTree,
    *,
    apply: Callable[..., Any] | None,
    example: Any,
    info: Mapping[str, Any],
) -> dict[str, int]:
    """See `quantnet_jax.save`."""
    if (apply is None) != (example is None):
        missing, given = ("apply", "example")[:: 1 if apply is None else -1]
        raise ValueError(f"`{missing}` is missing; `{given}` alone verifies nothing")
    path = pathlib.Path(path)
    with staged(path, UNVERIFIED) as beside:
        sizes = artifact.write(beside, tree, {"info": dict(info)})
        if apply is not None:
            inputs = inputs_of(example)
            found = load(beside, apply=apply, like=tree)
            wanted = jax.jit(apply)(dequantize_tree(float_tree(tree)), *inputs)
            if problem := _difference(found(*inputs), wanted):
                raise ValueError(
                    f"{path}: what is read predicts otherwise than the tree: "
                    f"{problem}; nothing was written"
                )
    return sizes


def load(
    path: str | os.PathLike,
    *,
    apply: Callable[..., Any] | None = None,
    like: PyTree = None,
    popcount: bool | str = "auto",
) -> Predictor | TreePredictor:
    """See `quantnet_jax.load`."""
    check_popcount(popcount)
    params, header = artifact.read(path, like=like)
    if "model" in header and apply is None and like is None:
        return from_artifact(path, params, header, popcount=popcount)

    def packed_apply(params: PyTree, *inputs: Any) -> Any:
        """Outputs for packed parameters."""
        return apply(float_tree(params), *inputs)  # pyright: ignore

    return TreePredictor(
        None if apply is None else packed_apply,
        jax.tree.map(_on_device, params),
        header.get("info", {}),
        jax.jit(apply or packed_apply),
    )


def _on_device(x: Any) -> Any:
    """An array of JAX, unless it would lose bits (64-bit numbers) or is a number."""
    if not isinstance(x, np.ndarray):
        return x
    moved = jnp.asarray(x)
    return moved if moved.dtype == x.dtype else x


def _difference(found: PyTree, wanted: PyTree) -> str:
    """What differs between two trees of outputs, '' if all bits are equal."""
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return "another structure of the outputs"
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    for one, other in (map(np.asarray, pair) for pair in pairs):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return f"{one.dtype}{one.shape}, expected {other.dtype}{other.shape}"
        if one.tobytes() != other.tobytes():
            count = int(np.sum(one != other))
            return f"{count} of {one.size} outputs differ"
    return ""
