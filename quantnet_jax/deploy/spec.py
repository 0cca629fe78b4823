"""The spec of an exported network: architecture, input, task, origin."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax import models, quantizers
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.deploy.artifact import FILE_KEYS, FLOATS, is_count

LARGEST_SIDE = 4096
"""Upper limit of height, width and channels: bounds the memory of an image."""
LARGEST_OUTPUT = 2**20
"""Upper limit of the channels of the output."""
LARGEST_CONSTANT = 1e6
"""Upper limit of mean and standard deviation, and of the inverse of the latter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network of `quantnet_jax.models` as it ships; checked when it is made.

    Attributes:
      model: 'name' and options of `models.create`, as JSON data.
      outputs: channels of the output.
      shape: (H, W, C) of the uint8 images.
      mean, std: of each channel, of pixels scaled to [0, 1].
      dtype: that the network computes in.
      activation: 'name' and options of the activation quantizer, or None.
      popcount: whether bit counts decided every example of the export as the float
        products did; None if they were not compared.
      floats: dtype of float tensors in the file, 'float32' or 'float16'.
      task: name of the task, see `quantnet_jax.tasks`.
      info: JSON data of the task.
      origin: JSON data about how the network was made: 'method', 'data', 'versions'.

    Raises:
      ValueError: a field is not of that form.
    """

    model: Mapping[str, Any]
    outputs: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "float32"
    activation: Mapping[str, Any] | None = None
    popcount: bool | None = None
    floats: str = "float32"
    task: str = ""
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("model", "activation"):
            value = getattr(self, key)
            named = isinstance(value, Mapping) and isinstance(value.get("name"), str)
            if not named and (key == "model" or value is not None):
                raise ValueError(f"{key} is {value!r:.80}, expected a name and options")
        for key in ("info", "origin"):
            _require(key, getattr(self, key), Mapping, "an object")
        for key in ("task", "dtype"):
            _require(key, getattr(self, key), str, "a string")
        _require("popcount", self.popcount, bool | None, "true, false or null")
        if self.floats not in FLOATS:
            raise ValueError(f"floats is {self.floats!r:.80}, expected one of {FLOATS}")
        if not is_count(self.outputs, LARGEST_OUTPUT):
            raise ValueError(
                f"outputs is {self.outputs!r:.80}, expected 1 to {LARGEST_OUTPUT}"
            )
        shape = _sequence(self.shape)
        if len(shape) != 3 or not all(is_count(x, LARGEST_SIDE) for x in shape):
            raise ValueError(
                f"shape is {self.shape!r:.80}, expected [height, width, channels], "
                f"each from 1 to {LARGEST_SIDE}"
            )
        object.__setattr__(self, "shape", shape)
        for key in ("mean", "std"):
            value = getattr(self, key)
            numbers = _sequence(value)
            if len(numbers) != shape[2] or not all(map(_is_real, numbers)):
                raise ValueError(
                    f"{key} is {value!r:.80}, expected a number for each channel"
                )
            object.__setattr__(self, key, tuple(map(float, numbers)))
        if min(self.std) * LARGEST_CONSTANT < 1:
            raise ValueError(f"std is {self.std!r:.80}, expected positive numbers")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "NetworkSpec":
        """The spec in the header of an artifact, as `deploy.read` returns it.

        Raises:
          ValueError: a key is missing or unknown, or its value is not valid.
        """
        given = {k: v for k, v in data.items() if k not in FILE_KEYS}
        known = [f.name for f in dataclasses.fields(cls) if f.name != "floats"]
        if wrong := sorted(set(known) ^ given.keys()):
            kind = "missing" if wrong[0] in known else "unknown"
            raise ValueError(f"key {wrong[0]!r:.80} is {kind}")
        return cls(**given, floats=data["float"])

    def to_json(self) -> dict[str, Any]:
        """Plain data for `deploy.write`, which adds `floats` itself."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del data["floats"]
        return data

    def network(
        self,
        *,
        folded: bool = True,
        wrap: Callable[[Quantizer], Quantizer] = lambda q: q,
    ) -> Any:
        """The linen network.

        Args:
          folded: with normalizations folded to two vectors, as it ships.
          wrap: applied to the activation quantizer.

        Raises:
          ValueError, TypeError: `model` or `activation` has a wrong option.
        """
        options, made = dict(self.model), {}
        if self.activation is not None:
            act = dict(self.activation)
            name = act.pop("name")
            made["act_quant"] = wrap(quantizers.create_activation(name, **act))
            factory = quantizers.ACTIVATIONS[name].factory
            known = inspect.signature(factory).parameters
            for key, value in act.items():
                _check_type(f"activation.{key}", value, known[key].default)
        model = models.create(
            options.pop("name"),
            outputs=self.outputs,
            folded=folded,
            dtype=self.dtype,
            **options,
            **made,
        )
        defaults = {f.name: f.default for f in dataclasses.fields(model)}
        defaults["act"] = "relu"  # by name in a file, by value in the network
        for key, value in options.items():
            _check_type(f"model.{key}", value, defaults[key])
        return model

    def input(self, batch: int = 1) -> jax.ShapeDtypeStruct:
        """Shape and dtype of normalized images."""
        return jax.ShapeDtypeStruct((batch, *self.shape), jnp.float32)

    def normalize(self, images: jax.Array) -> jax.Array:
        """The network's input for uint8 images (N, H, W, C), in its compute dtype.

        Forward: (images / 255 - mean) / std
        """
        per_channel = lambda x: jnp.reshape(jnp.asarray(x), (1, 1, 1, -1))
        x = images.astype(jnp.float32) / 255.0
        x = (x - per_channel(self.mean)) / per_channel(self.std)
        return x.astype(self.dtype)


def _sequence(value: Any) -> tuple:
    return tuple(value) if isinstance(value, list | tuple) else ()


def _is_real(x: Any) -> bool:
    return type(x) in (int, float) and abs(x) <= LARGEST_CONSTANT


def _require(key: str, value: Any, kind: Any, expected: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{key} is {value!r:.80}, expected {expected}")


def _check_type(name: str, value: Any, default: Any) -> None:
    """Refuses 'no' for False, which would be true, and the like."""
    whole_float = type(default) is float and type(value) is int
    if type(value) is not type(default) and not whole_float:
        raise ValueError(
            f"{name} is {value!r:.80}, expected a {type(default).__name__}"
        )
