"""From an artifact to a compiled function of uint8 images."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax import models
from quantnet_jax.deploy import forward
from quantnet_jax.deploy.format import artifact
from quantnet_jax.deploy.format.packed import leaves
from quantnet_jax.deploy.spec import NetworkSpec

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictor:
    """A loaded network; call it with images.

    Attributes:
      apply: `(params, images) -> outputs`, a pure function, to be jitted or mapped.
      params: tree of `Packed`, `Words` (layers that count bits) and float32 leaves; the
        weights stay packed in memory.
      spec: what the network is.
      countable: paths of the convolutions that can count bits, whether or not they do.
      run: `apply`, compiled once for each number of images.
    """

    apply: Callable[[PyTree, jax.Array], jax.Array]
    params: PyTree
    spec: NetworkSpec
    countable: tuple[str, ...]
    run: Callable[[PyTree, np.ndarray], jax.Array]

    def __call__(self, images: np.ndarray) -> jax.Array:
        """Outputs of the network, float32 (N, ...).

        Args:
          images: uint8 (N, H, W, C); they are normalized inside.

        Raises:
          ValueError: as `check`.
        """
        images = np.asarray(images)
        self.check(images)
        return self.run(self.params, images)

    def check(self, images: np.ndarray) -> None:
        """Raises a ValueError if images are not what the network takes.

        That is another dtype or shape, or more active sites than the lists of a sparse
        network hold. `apply` and `run` do not look: further sites are dropped.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.spec.shape:
            expected = ", ".join(map(str, self.spec.shape))
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}, expected "
                f"uint8[N, {expected}]"
            )
        model, mean = self.spec.model, self.spec.mean
        models.check_images(model["name"], model, images, mean)

    def __repr__(self) -> str:
        height, width, channels = self.spec.shape
        size = sum(x.nbytes for x in jax.tree.leaves(self.params))
        return (
            f"Predictor({self.spec.model['name']}, {self.spec.task or 'no task'}, "
            f"uint8[N, {height}, {width}, {channels}] -> {self.spec.outputs} outputs, "
            f"{size:,} bytes)"
        )


def save(path: str | os.PathLike, tree: PyTree, spec: NetworkSpec) -> dict[str, int]:
    """Writes an artifact of one of the shipped networks, whole or not at all.

    Args:
      path: of the file; its folder must exist.
      tree: parameters of `spec.network()` with `QTensor`, `Packed` and float leaves.
      spec: what the network is.

    Returns:
      {'payload': bytes of tensors, 'file': bytes of the file}.

    Raises:
      ValueError: as `deploy.write`.
    """
    return artifact.write(path, tree, spec.to_json(), dtype=spec.floats)


def load(path: str | os.PathLike, *, popcount: bool | str = "auto") -> Predictor:
    """Loads an artifact of one of the shipped networks.

    Args:
      path: of the file.
      popcount: whether convolutions of signs with binary weights are computed by XOR
        and bit counts (`ops.popcount`) instead of float products; see
        `make_predictor`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged or no artifact, or its tensors do not fit the
        network that it names; or no layer can count bits and `popcount` is True.
    """
    check_popcount(popcount)
    params, header = artifact.read(path)
    return from_artifact(path, params, header, popcount=popcount)


def check_popcount(popcount: Any) -> None:
    """Refuses another value than those of `load`."""
    if popcount not in (True, False, "auto"):
        raise ValueError(f"`popcount` is {popcount!r}, expected 'auto', True or False")


def from_artifact(
    path: str | os.PathLike,
    params: PyTree,
    header: Mapping[str, Any],
    *,
    popcount: bool | str,
) -> Predictor:
    """The network of what `artifact.read` returned; see `load`."""
    try:
        spec = NetworkSpec.from_json(header)
        return make_predictor(params, spec, popcount=popcount)
    except Exception as e:  # a hostile file can raise anything
        raise ValueError(f"{path}: {artifact.describe(e)}") from None


def make_predictor(
    params: PyTree, spec: NetworkSpec, *, popcount: bool | str = "auto"
) -> Predictor:
    """The network that a spec describes, with given parameters.

    Args:
      params: tree of `Packed` and float32 leaves.
      spec: what the network is.
      popcount: True counts bits in all layers of `forward.countable`, False in none;
        'auto' does on a CPU (where it was measured) if `spec.popcount` is true.

    Raises:
      ValueError, TypeError: the parameters or the spec do not fit.
    """
    model = spec.network()
    # Shapes alone: nothing is computed, however large the network is.
    wanted = jax.eval_shape(model.init, jax.random.key(0), spec.input())["params"]
    _check_shapes(params, wanted)
    params = jax.tree.map(jnp.asarray, params)
    countable = forward.countable(model, params, spec.shape)
    if popcount == "auto":
        popcount = spec.popcount is True and forward.on_cpu(params)
    elif popcount and not countable:
        raise ValueError(
            "`popcount` is True, but no convolution has float32 signs as inputs and "
            "binary weights"
        )
    if popcount:
        params = forward.with_words(params, countable)

    def apply(params: PyTree, images: jax.Array) -> jax.Array:
        """Outputs for uint8 images."""
        return forward.apply(model, params, spec.normalize(images))

    return Predictor(apply, params, spec, countable, jax.jit(apply))


def _check_shapes(params: PyTree, wanted: PyTree) -> None:
    shapes = lambda tree: {path: tuple(x.shape) for path, x in leaves(tree)}
    found, expected = shapes(params), shapes(wanted)
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            raise ValueError(f"{name!r} is missing")
        if name not in expected:
            raise ValueError(f"{name!r} is not a parameter of the network")
        if found[name] != expected[name]:
            raise ValueError(
                f"{name!r} has shape {found[name]}, the network needs {expected[name]}"
            )
