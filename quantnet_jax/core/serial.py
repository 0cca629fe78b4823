"""Support of `flax.serialization` for the nodes of this package, without Flax."""

import dataclasses
import sys
from typing import Any

_registered: set[type] = set()


class Serializable:
    """Base of a dataclass that `flax.serialization` stores by its fields.

    Static fields are those of the target that is restored into. Flax is not imported:
    if somebody did, the first object that is made (or copied, as by `jax.tree.map`)
    registers its class.
    """

    def __post_init__(self) -> None:
        flax = sys.modules.get("flax.serialization")
        if type(self) in _registered or not hasattr(flax, "from_state_dict"):
            return
        _registered.add(type(self))
        flax.register_serialization_state(type(self), _state, _restored)  # pyright: ignore


def _state(node: Any) -> dict[str, Any]:
    to_state_dict = sys.modules["flax.serialization"].to_state_dict
    return {name: to_state_dict(getattr(node, name)) for name in _fields(node)}


def _restored(target: Any, state: dict[str, Any]) -> Any:
    if wrong := sorted(state.keys() ^ {*_fields(target)}):
        kind = type(target).__name__
        raise ValueError(f"the state of a {kind} has other fields: {wrong!r:.80}")
    restore = sys.modules["flax.serialization"].from_state_dict
    made = {k: restore(getattr(target, k), state[k], name=k) for k in state}
    return dataclasses.replace(target, **made)


def _fields(node: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(node) if not f.metadata.get("static")]
