"""Finished layers of a post-training in a folder, one file each."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from quantnet_jax.common.files import write_atomic
from quantnet_jax.core.qtensor import QTensor


class Store:
    """Saves and finds solved layers; without a folder it does nothing.

    What was made from other weights, by other methods or draws, is not found.

    Args:
      folder: created if missing; None for none.
      leaves: {path: array} of the float network.
      arguments: anything else that the result depends on, as JSON data.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        leaves: Mapping[str, Any],
        arguments: Sequence[Any],
    ):
        self._folder = None if folder is None else pathlib.Path(folder)
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(json.dumps(arguments).encode())
        for path, leaf in leaves.items():
            digest.update(f"{path} {np.shape(leaf)}".encode())
            digest.update(np.asarray(leaf).tobytes())
        self._origin = digest.hexdigest()

    def load(self, number: int) -> tuple[QTensor, Any] | None:
        """(QTensor, error) of a layer, None if it is not there."""
        if self._folder is None or not (path := self._path(number)).is_file():
            return None
        import safetensors

        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                about = file.metadata()
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as e:
            raise ValueError(f"{path}: {e}; delete it to compute it again") from None
        if about.get("origin") != self._origin:
            return None
        error = json.loads(about["error"])
        return QTensor(**{k: jnp.asarray(x) for k, x in found.items()}), error

    def save(self, number: int, qt: QTensor, error: Any) -> None:
        """Keeps a layer."""
        if self._folder is None:
            return
        import safetensors.numpy

        tensors = {k: np.asarray(getattr(qt, k)) for k in ("codes", "levels", "scale")}
        tensors = {k: np.ascontiguousarray(x) for k, x in tensors.items()}
        about = {"origin": self._origin, "error": json.dumps(error)}
        write_atomic(self._path(number), safetensors.numpy.save(tensors, about))

    def _path(self, number: int) -> pathlib.Path:
        assert self._folder is not None
        return self._folder / f"{number:04d}.safetensors"
