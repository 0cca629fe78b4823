"""What a convolution got, and the correlation of its inputs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LayerInput(NamedTuple):
    """What a convolution of the network got.

    Attributes:
      x: float (N, H, W, C).
      size, strides, groups, padding: of the convolution.
    """

    x: jax.Array
    size: int
    strides: int
    groups: int
    padding: tuple[tuple[int, int], tuple[int, int]]


def correlation(layer: LayerInput) -> jax.Array:
    """X^T X / m of a convolution, float32 (1, n, n), n = size^2 C in the order HWI.

    Of a depthwise one (C, n, n), n = size^2.
    """
    x = jnp.pad(layer.x.astype(jnp.float32), ((0, 0), *layer.padding, (0, 0)))
    rows, columns = (n - layer.size + 1 for n in x.shape[1:3])
    patches = [
        x[:, i : i + rows : layer.strides, j : j + columns : layer.strides]
        for i in range(layer.size)
        for j in range(layer.size)
    ]
    each = jnp.stack(patches, axis=3).reshape(-1, layer.size**2, x.shape[-1])
    if layer.groups == x.shape[-1] > 1:
        return jnp.einsum("mic,mjc->cij", each, each) / each.shape[0]
    flat = each.reshape(each.shape[0], -1)
    return (flat.T @ flat / flat.shape[0])[None]
