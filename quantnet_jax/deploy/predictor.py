"""From an artifact to a compiled function of uint8 images."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax import models, quantizers
from quantnet_jax.deploy import artifact
from quantnet_jax.deploy.packed import float_tree, is_packed

PyTree = Any


class Predictor(NamedTuple):
    """A loaded network.

    Attributes:
      logits: `uint8[N, H, W, C] -> float32[N, classes]`, compiled once for each N.
      apply: the pure function behind it, `(params, images) -> logits`.
      params: tree of `Packed` and float32 leaves; the weights stay packed in memory.
      classes: names.
      shape: (H, W, C) of the images.
      spec: all that the artifact says of itself.
    """

    logits: Callable[[np.ndarray], jax.Array]
    apply: Callable[[PyTree, jax.Array], jax.Array]
    params: PyTree
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    spec: dict[str, Any]


def load(path: str | os.PathLike) -> Predictor:
    """Loads an artifact of one of the shipped networks.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged or no artifact, or its tensors do not fit the
        network that it names.
    """
    params, spec = artifact.read(path)
    try:
        return make_predictor(params, spec)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
        raise ValueError(f"{path}: {type(e).__name__}: {e}") from None


def make_predictor(params: PyTree, spec: Mapping[str, Any]) -> Predictor:
    """The network that a spec describes, with given parameters.

    Args:
      params: tree of `Packed` and float32 leaves.
      spec: 'model' (options of `models.create`, with 'name' and 'dtype'), 'activation'
        ({'name', options}, or None), 'input' ({'shape', 'mean', 'std'}), 'classes'.

    Raises:
      ValueError, TypeError, KeyError: the parameters or the spec do not fit.
    """
    options, given = dict(spec["model"]), spec["input"]
    act = dict(spec.get("activation") or {})
    if act:
        quantizer = quantizers.create_activation(act.pop("name"), **act)
        options["act_quant"] = quantizer
    classes = tuple(map(str, spec["classes"]))
    model = models.create(
        options.pop("name"), classes=len(classes), folded=True, **options
    )
    height, width, channels = shape = tuple(map(int, given["shape"]))
    image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    _check_shapes(params, wanted)
    mean, std = (tuple(map(float, given[k])) for k in ("mean", "std"))
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(f"mean {mean} and std {std} do not fit {channels} channels")
    dtype = model.dtype

    def apply(params: PyTree, images: jax.Array) -> jax.Array:
        """Logits of uint8 images, with packed weights."""
        across = (1, 1, 1, -1)
        x = images.astype(jnp.float32) / 255.0
        x = (x - jnp.reshape(jnp.asarray(mean), across)) / jnp.reshape(
            jnp.asarray(std), across
        )
        return model.apply({"params": float_tree(params)}, x.astype(dtype))

    jitted = jax.jit(apply)

    def logits(images):
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}, expected "
                f"uint8[N, {height}, {width}, {channels}]"
            )
        return jitted(params, images)

    return Predictor(logits, apply, params, classes, shape, dict(spec))


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
        if flat.get(name) != expected.get(name):
            raise ValueError(
                f"{name!r} has shape {flat.get(name)}, the network needs "
                f"{expected.get(name)}"
            )
