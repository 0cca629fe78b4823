"""What a convolution got, the correlation of its inputs, the error of its outputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

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


class SiteInput(NamedTuple):
    """What a sparse convolution of the network got.

    Attributes:
      x: float (N, M, C), as the convolution got it, perhaps quantized.
      real: the same before.
      product: `(x, kernel) -> outputs`, exactly 0 where there is no active site.
    """

    x: jax.Array
    real: jax.Array
    product: Callable[[jax.Array, jax.Array], jax.Array]


def input_of(layer: Any, x: jax.Array, *more: Any) -> LayerInput | SiteInput:
    """What a layer of `quantnet_jax.models` got when it was called with these."""
    if not more:
        how = layer.size, layer.strides, layer.groups, layer.padding
        return LayerInput(x, *how)
    real, maps = more
    return SiteInput(x, real, lambda x, kernel: layer.product(x, kernel, maps))


def output_error(layer: SiteInput, latent: jax.Array, quantized: jax.Array):
    """Quantization error of a layer's outputs, float32 scalar in [0, 1].

    Forward: mean over channels of min over a of |y - a z|^2 / |y|^2
      = 1 - (y . z)^2 / (|y|^2 |z|^2)
    y are the outputs of latent weights and real inputs, z those of the quantized ones,
    of all sites and examples; the best scale a stands for the BatchNorm that follows.

    Args:
      layer: what it got.
      latent, quantized: kernels.
    """
    y, z = (
        product.astype(jnp.float32).reshape(-1, product.shape[-1])
        for product in (
            layer.product(layer.real, latent),
            layer.product(layer.x, quantized),
        )
    )
    dot = lambda a, b: jnp.sum(a * b, axis=0)
    return jnp.mean(1.0 - dot(y, z) ** 2 / (dot(y, y) * dot(z, z) + 1e-12))


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
