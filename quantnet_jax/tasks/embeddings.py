"""Distances of embeddings."""

import jax
import jax.numpy as jnp


def normalized(x: jax.Array) -> jax.Array:
    """Rows of length 1, float32 (N, D)."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def distances(x: jax.Array) -> jax.Array:
    """Euclidean distances of all pairs of rows, float32 (N, N); finite gradients."""
    product = jnp.matmul(x, x.T, precision="highest")
    size = jnp.diagonal(product)
    squared = jnp.maximum(size[:, None] + size[None] - 2 * product, 0.0)
    return jnp.sqrt(squared + 1e-9)
