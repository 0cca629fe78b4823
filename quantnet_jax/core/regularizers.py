"""Regularizers: pure functions of weights, to be used with `add_penalty`."""

import jax
import jax.numpy as jnp


def binarization_distance(b: jax.Array) -> jax.Array:
    """Mean of 1 - b^2: the distance of soft signs from -1 and +1.

    Args:
      b: float32, any shape, values in [-1, 1].

    Returns:
      float32 scalar in [0, 1]; 0 where every |b| is 1. Smooth everywhere, unlike
      (|b| - 1)^2.

    Example:
      >>> float(binarization_distance(jnp.asarray([1.0, -1.0, 0.0, 0.0])))
      0.5
    """
    return jnp.mean(1.0 - b * b)


def orthogonality(a: jax.Array) -> jax.Array:
    """||G - I||_F^2 / n for the Gram matrix G over the shorter side (length n) of `a`.

    Args:
      a: float32 (m, n), a linear encoder.

    Returns:
      float32 scalar, 0 when the rows (or, of a tall matrix, the columns) are
      orthonormal.
    """
    m, n = a.shape
    gram = a @ a.T if m <= n else a.T @ a
    return jnp.sum((gram - jnp.eye(min(m, n), dtype=a.dtype)) ** 2) / min(m, n)


def kurtosis(w: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Mean of ((w - mean) / std)^4 of the whole tensor.

    1 for two symmetric spikes (the least possible), 1.8 for a uniform and 3 for a
    normal distribution. `eps` is added to the variance, so that constant tensors have
    a finite gradient.
    """
    centered = w - jnp.mean(w)
    variance = jnp.mean(centered**2) + eps
    # Not mean(centered^4) / variance^2: its gradient divides by eps^4, which is 0.
    return jnp.mean((centered * jax.lax.rsqrt(variance)) ** 4)
