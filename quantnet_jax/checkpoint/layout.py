"""What a checkpoint holds: a state as flat items, and back (no Orbax here)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.trees.paths import flatten

WEIGHTS, REST = "weights", "optimizer"
"""Items of a checkpoint. 'weights' is all that evaluation and warm starts read; the
optimizer may be larger."""

_OF_WEIGHTS = ("params", "batch_stats", "ema")


class Restored(NamedTuple):
    """What a restore returns.

    Attributes:
      step: of the checkpoint.
      state: arrays, as the caller's tree, or a flat dict of `load_arrays`.
      extra: JSON values saved with the state.
      aux: auxiliary NumPy arrays saved with the state.
    """

    step: int
    state: Any
    extra: dict[str, Any]
    aux: dict[str, np.ndarray]


class Damaged(ValueError):
    """A checkpoint folder that cannot be read."""

    def __init__(self, folder: str, error: Exception):
        super().__init__(
            f"checkpoint {folder!r} is damaged or incomplete ({short(error)})"
        )


def short(error: Exception) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120] if lines else ''}"


def stored(state: Any, processes: int) -> dict[str, dict[str, Any]]:
    """The items of a state, as they are saved.

    Args:
      state: pytree of JAX or NumPy arrays.
      processes: of the run.

    Raises:
      ValueError: a leaf is no array, or an item is empty.
    """
    for name, leaf in flatten(state).items():
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise ValueError(
                f"state leaf {name!r} is {type(leaf).__name__}, expected a JAX or"
                " NumPy array"
            )
    items = split(state)
    for item, leaves in items.items():
        if not leaves:
            raise ValueError(
                f"state has no arrays for the item {item!r} (first leaf:"
                f" {next(iter(flatten(state)), '-')!r}); expected fields 'params' and"
                " 'step'"
            )
    return jax.tree.map(_addressable, items) if processes > 1 else items


def _addressable(leaf: Any) -> Any:
    """What Orbax takes from several processes.

    It saves an array over all processes, each writing its own part, but refuses one
    that a single process addresses, as those of pmap. These are equal everywhere:
    copied to the host, the first process saves them.
    """
    return np.array(leaf) if getattr(leaf, "is_fully_addressable", True) else leaf


def split(state: Any) -> dict[str, dict[str, Any]]:
    """{item: {path: leaf}} of a state; leaves without elements are not stored."""
    items: dict[str, dict[str, Any]] = {WEIGHTS: {}, REST: {}}
    for name, leaf in flatten(state).items():
        if np.prod(leaf.shape, dtype=np.int64) > 0:
            item = WEIGHTS if name.split("/", 1)[0] in _OF_WEIGHTS else REST
            items[item][name] = leaf
    return items


def check_fits(items: Mapping[str, Any], metadata: Mapping[str, Any], folder: str):
    """Refuses arrays of another shape or dtype.

    Args:
      items: {item: {path: leaf}} of the state that the caller built.
      metadata: {item: {path: description}} of the checkpoint.
      folder: of the checkpoint.

    Raises:
      ValueError: names the first path that differs.
    """
    built = {name: leaf for leaves in items.values() for name, leaf in leaves.items()}
    saved = {name: x for arrays in metadata.values() for name, x in arrays.items()}
    for name in [*built, *(k for k in saved if k not in built)]:
        was = describe(saved[name]) if name in saved else "nothing"
        now = describe(built[name]) if name in built else "nothing"
        if was != now:
            raise ValueError(
                f"checkpoint {folder!r} is of another architecture: {name!r} was saved"
                f" as {was}, the config builds {now}; restore with the config of that"
                " run, or use another workdir"
            )


def target(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of a restored array; by default the default device."""
    # A new scalar lives on the default device, whichever the user chose.
    place = getattr(leaf, "sharding", None) or jnp.zeros(()).sharding
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def rebuild(like: Any, arrays: Mapping[str, Any]) -> Any:
    """The tree `like` of restored arrays; what is not stored is empty."""
    leaves = [
        arrays[name] if name in arrays else jnp.zeros(leaf.shape, leaf.dtype)
        for name, leaf in flatten(like).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def averaged(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The averaged weights (`ema`) on the host if a run has them, else its weights."""
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    prefix = "ema/"
    average = {
        name.removeprefix(prefix): x
        for name, x in arrays.items()
        if name.startswith(prefix)
    }
    return average or arrays


def describe(leaf: Any) -> str:
    """Returns 'float32[3,3,16,16]' for an array or its description."""
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
