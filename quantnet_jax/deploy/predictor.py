"""From an artifact to a compiled function of uint8 images."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax import models, quantizers
from quantnet_jax.deploy import artifact, forward
from quantnet_jax.deploy.packed import is_packed

PyTree = Any
LARGEST_SIDE = 4096
"""Pixels of an image's side, and channels, at most: bounds what an image takes."""
LARGEST_CONSTANT = 1e6
"""Of mean and standard deviation, and of the inverse of the latter."""


class Predictor(NamedTuple):
    """A loaded network.

    Attributes:
      logits: `uint8[N, H, W, C] -> float32[N, classes]`, compiled once for each N.
      apply: the pure function behind it, `(params, images) -> logits`.
      params: tree of `Packed`, `Words` (layers that count bits) and float32 leaves; the
        weights stay packed in memory.
      classes: names.
      shape: (H, W, C) of the images.
      spec: all that the artifact says of itself.
      countable: paths of the convolutions that can count bits, whether or not they do.
    """

    logits: Callable[[np.ndarray], jax.Array]
    apply: Callable[[PyTree, jax.Array], jax.Array]
    params: PyTree
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    spec: dict[str, Any]
    countable: tuple[str, ...] = ()


def load(path: str | os.PathLike, *, popcount: bool | str = "auto") -> Predictor:
    """Loads an artifact of one of the shipped networks.

    Args:
      path: of the file.
      popcount: whether convolutions of signs with binary weights are computed by XOR
        and bit counts (`deploy.popcount`) instead of float products; see
        `make_predictor`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged or no artifact, or its tensors do not fit the
        network that it names; or no layer can count bits and `popcount` is True.
    """
    if popcount not in (True, False, "auto"):
        raise ValueError(f"`popcount` is {popcount!r}, expected 'auto', True or False")
    params, spec = artifact.read(path)
    try:
        return make_predictor(params, spec, popcount=popcount)
    except Exception as e:  # whatever options of others make a network raise
        raise ValueError(f"{path}: {artifact.describe(e)}") from None


def make_predictor(
    params: PyTree, spec: Mapping[str, Any], *, popcount: bool | str = "auto"
) -> Predictor:
    """The network that a spec describes, with given parameters.

    Args:
      params: tree of `Packed` and float32 leaves.
      spec: 'model' (options of `models.create`, with 'name' and 'dtype'), 'activation'
        ({'name', options}, or None), 'input' ({'shape', 'mean', 'std'}), 'classes';
        perhaps 'popcount', whether export found the same classes by bit counts.
      popcount: True counts bits in all layers of `forward.countable`, False in none;
        'auto' does on a CPU (where it was measured) if spec['popcount'] is true.

    Raises:
      ValueError, TypeError: the parameters or the spec do not fit.
    """
    shape, mean, std, classes = _constants(spec)
    height, width, channels = shape
    model = _network(spec, len(classes))
    # Shapes alone: nothing is computed, however large the network says it is.
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    _check_shapes(params, wanted)
    countable = forward.countable(model, params, shape)
    if popcount == "auto":
        popcount = spec.get("popcount") is True and forward.on_cpu(params)
    elif popcount and not countable:
        raise ValueError(
            "`popcount` is True, but no convolution has float32 signs as inputs and "
            "binary weights"
        )
    if popcount:
        params = forward.with_words(params, countable)
    dtype = model.dtype

    def apply(params: PyTree, images: jax.Array) -> jax.Array:
        """Logits of uint8 images, with packed weights."""
        across = (1, 1, 1, -1)
        x = images.astype(jnp.float32) / 255.0
        x = (x - jnp.reshape(jnp.asarray(mean), across)) / jnp.reshape(
            jnp.asarray(std), across
        )
        return forward.apply(model, params, x.astype(dtype))

    jitted = jax.jit(apply)

    def logits(images):
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}, expected "
                f"uint8[N, {height}, {width}, {channels}]"
            )
        return jitted(params, images)

    return Predictor(logits, apply, params, classes, shape, dict(spec), countable)


def _constants(
    spec: Mapping[str, Any],
) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Shape of the images, mean, standard deviation, classes; checked."""
    given, classes = spec.get("input"), spec.get("classes")
    if not isinstance(given, Mapping):
        raise ValueError(f"input is {given!r:.80}, expected shape, mean and std")
    shape = given.get("shape")
    side = lambda x: artifact.is_count(x, LARGEST_SIDE)
    if not isinstance(shape, list) or len(shape) != 3 or not all(map(side, shape)):
        raise ValueError(
            f"input shape is {shape!r:.80}, expected [height, width, channels], each "
            f"from 1 to {LARGEST_SIDE}"
        )
    height, width, channels = shape
    mean, std = (_per_channel(k, given.get(k), channels) for k in ("mean", "std"))
    if min(std) * LARGEST_CONSTANT < 1:
        raise ValueError(f"input std is {std!r:.80}, expected positive numbers")
    if not isinstance(classes, list) or not classes:
        raise ValueError(f"classes are {classes!r:.80}, expected a list of names")
    if not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes are {classes!r:.80}, expected strings")
    return (height, width, channels), mean, std, tuple(classes)


def _per_channel(name: str, x: Any, channels: int) -> tuple[float, ...]:
    real = lambda x: type(x) in (int, float) and abs(x) <= LARGEST_CONSTANT
    if not isinstance(x, list) or len(x) != channels or not all(map(real, x)):
        raise ValueError(
            f"input {name} is {x!r:.80}, expected a number for each channel"
        )
    return tuple(map(float, x))


def _network(spec: Mapping[str, Any], classes: int) -> Any:
    """The folded network of a spec, whose options come from a file."""
    options, act = spec.get("model"), spec.get("activation")
    for key, value in (("model", options), ("activation", act)):
        named = isinstance(value, Mapping) and isinstance(value.get("name"), str)
        if not named and (key == "model" or value is not None):
            raise ValueError(f"{key} is {value!r:.80}, expected a name and options")
    options = dict(options or {})
    made = {}
    if act is not None:
        rest = {k: v for k, v in act.items() if k != "name"}
        made["act_quant"] = quantizers.create_activation(act["name"], **rest)
        factory = quantizers.ACTIVATIONS[act["name"]].factory
        parameters = inspect.signature(factory).parameters
        for key, value in rest.items():
            _check_type(f"activation.{key}", value, parameters[key].default)
    name = options.pop("name")
    model = models.create(name, outputs=classes, folded=True, **options, **made)
    defaults = {f.name: f.default for f in dataclasses.fields(model)}
    # By name in a file, by value in the network.
    defaults |= {"act": "relu", "dtype": "float32"}
    for key, value in options.items():
        _check_type(f"model.{key}", value, defaults[key])
    return model


def _check_type(name: str, value: Any, default: Any) -> None:
    """Refuses 'no' for False, which would be true, and the like."""
    whole_float = type(default) is float and type(value) is int
    if type(value) is not type(default) and not whole_float:
        raise ValueError(
            f"{name} is {value!r:.80}, expected a {type(default).__name__}"
        )


def _check_shapes(params: PyTree, wanted: PyTree) -> None:
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(
            params, is_leaf=is_packed
        )[0]
    }
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(wanted)[0]
    }
    for name in sorted(flat.keys() | expected.keys()):
        if name not in flat:
            raise ValueError(f"{name!r} is missing")
        if name not in expected:
            raise ValueError(f"{name!r} is no parameter of the network")
        if flat[name] != expected[name]:
            raise ValueError(
                f"{name!r} has shape {flat[name]}, the network needs {expected[name]}"
            )
