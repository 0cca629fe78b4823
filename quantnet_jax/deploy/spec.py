"""The spec of an exported network: architecture, input, task, origin."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax import activations, models
from quantnet_jax.activations import ActivationQuantizer
from quantnet_jax.activations.sites import DEFAULT
from quantnet_jax.common.limits import (
    Choice,
    Flag,
    Number,
    Sequence,
    Text,
    check,
    check_options,
)
from quantnet_jax.common.names import show
from quantnet_jax.deploy.format.artifact import FILE_KEYS, FLOATS
from quantnet_jax.models.options import OUTPUTS

LIMITS = {
    "outputs": OUTPUTS,
    "dtype": Text(),
    "task": Text(),
    "floats": Choice(FLOATS),
    "popcount": Flag(),
}
EACH = {
    "shape": Number(1, 4096, whole=True),
    "mean": Number(-1e6, 1e6),
    "std": Number(1e-6, 1e6),
}
"""Of every entry; the upper limit of a side bounds the memory of an image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network of `quantnet_jax.models` as it ships; checked when it is made.

    Attributes:
      model: 'name' and options of `models.create`, as JSON data.
      outputs: channels of the output.
      shape: (H, W, C) of the uint8 images.
      mean, std: of each channel, of pixels scaled to [0, 1].
      dtype: that the network computes in.
      activation: 'name', 'sites' and options of the activation quantizer, perhaps
        'rules', options that differ at a 'site'; or None.
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
        for key, limit in LIMITS.items():
            value = getattr(self, key)
            if key != "popcount" or value is not None:
                check(key, value, limit)
        for key in ("model", "activation", "info", "origin"):
            value, named = getattr(self, key), key in ("model", "activation")
            fits = isinstance(value, Mapping)
            if named and fits:
                fits = isinstance(value.get("name"), str)
            if not fits and (key != "activation" or value is not None):
                expected = "a name and options" if named else "an object"
                raise ValueError(f"{key}={show(value)}, expected {expected}")
        for key, limit in EACH.items():
            value = getattr(self, key)
            check(key, value, Sequence())
            count = 3 if key == "shape" else self.shape[2]
            if len(value) != count:
                raise ValueError(f"{key}={show(value)}, expected {count} numbers")
            for x in value:
                check(key, x, limit)
            as_number = int if key == "shape" else float
            object.__setattr__(self, key, tuple(map(as_number, value)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "NetworkSpec":
        """The spec in the header of an artifact, as `deploy.read` returns it.

        Raises:
          ValueError: a key is missing or unknown, or its value is not valid.
        """
        if "model" not in data:
            raise ValueError("not a network of this package; use `quantnet_jax.load`")
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
        wrap: Callable[[ActivationQuantizer], ActivationQuantizer] = lambda q: q,
    ) -> Any:
        """The linen network.

        Args:
          folded: with normalizations folded to two vectors, as it ships.
          wrap: applied to the activation quantizer.

        Raises:
          ValueError, TypeError: `model` or `activation` has a wrong option.
        """
        options, made = dict(self.model), {}
        name = options.pop("name")
        if self.activation is not None:
            act = dict(self.activation)
            kind, rules = act.pop("name"), act.pop("rules", ())
            sites = made["sites"] = act.pop("sites", DEFAULT)
            for options_ in (act, *map(_options, rules)):
                check_options("activation.", activations.find(kind).factory, options_)
            quantizer = activations.at_sites(kind, sites, rules, **act)
            made["act_quant"] = jax.tree.map(
                wrap, quantizer, is_leaf=lambda q: isinstance(q, ActivationQuantizer)
            )
        model = models.create(
            name,
            outputs=self.outputs,
            folded=folded,
            dtype=self.dtype,
            **options,
            **made,
        )
        models.check_options("model", name, options)
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


def _options(rule: Any) -> dict[str, Any]:
    """Those of a site."""
    if not isinstance(rule, Mapping) or not isinstance(rule.get("site"), str):
        raise ValueError(f"activation.rules: {show(rule)}, expected 'site' and options")
    return {k: v for k, v in rule.items() if k != "site"}
