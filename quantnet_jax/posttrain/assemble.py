"""From solved matrices of weights to the `QTensor` of a parameter."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from quantnet_jax.core.qtensor import QTensor


def values_of(qt: QTensor) -> np.ndarray:
    """float32 (groups, N, M) of a solved unit, whose fields have groups in front."""
    groups = np.arange(len(qt.codes))[:, None, None]
    return np.asarray(qt.levels)[groups, np.asarray(qt.codes)] * np.asarray(qt.scale)


def assemble(
    shape: Sequence[int], parts: Sequence[tuple[np.ndarray, QTensor]], path: str
) -> QTensor:
    """The QTensor of a parameter of this shape.

    Args:
      shape: of the parameter.
      parts: (places in the flattened parameter (groups, N, M), solved codes of that
        shape, levels (groups, L), scale (groups, 1, M or 1)).
      path: of the parameter, for the error.

    Raises:
      ValueError: the parts leave some of the parameter out.
    """
    size = int(np.prod(shape))
    codes, scale = np.zeros(size, np.uint8), np.full(size, np.nan, np.float32)
    which, tables, first = np.zeros(size, np.int32), [], 0
    for places, qt in parts:
        codes[places] = qt.codes
        scale[places] = np.broadcast_to(np.asarray(qt.scale), places.shape)
        number = first + np.arange(len(places))[:, None, None]
        which[places] = np.broadcast_to(number, places.shape)
        tables.append(np.asarray(qt.levels))
        first += len(places)
    if np.isnan(scale).any():
        missing = int(np.isnan(scale).sum())
        raise ValueError(
            f"{path!r}: no product reads {missing} of its {size} weights; expected all"
        )
    unique, index = np.unique(np.concatenate(tables), axis=0, return_inverse=True)
    if len(unique) == 1:
        levels = unique[0]
    else:
        levels = unique[_narrow(index.reshape(-1)[which].reshape(shape))]
    return QTensor(
        *map(jnp.asarray, (codes.reshape(shape), levels, _narrow(scale.reshape(shape))))
    )


def _narrow(x: np.ndarray) -> np.ndarray:
    """`x` with size 1 along each axis on which it does not change."""
    for axis in range(x.ndim):
        first = x.take([0], axis)
        if np.array_equal(np.broadcast_to(first, x.shape), x):
            x = first
    return x
