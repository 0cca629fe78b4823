"""Surrogate gradients: step functions with a custom derivative."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def with_slope(value: Callable, slope: Callable) -> Callable:
    """The elementwise function `value`, with derivative defined as `slope`.

    Forward: value(x)
    Backward: slope(x, *args) * gradient; `args` get none.

    Args:
      value: `x -> array like x`.
      slope: `(x, *args) -> array like x`, finite for every x.

    Returns:
      `fn(x, *args)`; `args`, such as the value of a schedule, are for the slope alone.

    Example:
      >>> fn = with_slope(jnp.floor, lambda x: 3.0 * jnp.ones_like(x))
      >>> float(fn(1.5)), float(jax.grad(fn)(1.5))
      (1.0, 3.0)
    """

    @jax.custom_jvp
    def fn(x, *args):
        return value(x)

    @fn.defjvp
    def jvp(primals, tangents):
        x, *args = primals
        return value(x), slope(x, *args) * tangents[0]

    return fn


def sign(x: jax.Array) -> jax.Array:
    """-1.0 or +1.0 of the dtype of `x`; the sign of zero is +1."""
    return jnp.where(x >= 0, 1.0, -1.0).astype(x.dtype)


def half_up(x: jax.Array) -> jax.Array:
    """Rounds half up, as `encode` does at a midpoint."""
    return jnp.floor(x + 0.5)


def identity_slope(x: jax.Array) -> jax.Array:
    """1 everywhere (Bengio et al., arXiv 1308.3432; BinaryConnect, 1511.00363)."""
    return jnp.ones_like(x)


def clip_slope(x: jax.Array) -> jax.Array:
    """1 where |x| <= 1, else 0 (Hubara et al., arXiv 1602.02830)."""
    return (jnp.abs(x) <= 1.0).astype(x.dtype)


def approx_slope(x: jax.Array) -> jax.Array:
    """2 - 2|x| where |x| <= 1, else 0: ApproxSign (Bi-Real, arXiv 1808.00278)."""
    return jnp.maximum(2.0 - 2.0 * jnp.abs(x), 0.0)


def swish_slope(x: jax.Array, beta: jax.Array | float = 5.0) -> jax.Array:
    """b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)): SwishSign (BNN+, 1812.11800)."""
    # cosh overflows to infinity at |b x| = 89, where the slope is 0 to every digit.
    y = jnp.clip(beta * x, -80.0, 80.0)
    return beta * (2.0 - y * jnp.tanh(y / 2)) / (1.0 + jnp.cosh(y))


def ede_slope(x: jax.Array, t: jax.Array | float) -> jax.Array:
    """k t (1 - tanh^2(t x)), k = max(1/t, 1): EDE (IR-Net, arXiv 1909.10788)."""
    return jnp.maximum(1.0, t) * (1.0 - jnp.tanh(t * x) ** 2)


def soft_round_slope(x: jax.Array, k: jax.Array | float) -> jax.Array:
    """k (1 - tanh^2(k f)) / (2 tanh(k / 2)), f = x - floor(x) - 1/2: 1 as k goes to 0.

    The derivative of floor(x) + 1/2 + tanh(k f) / (2 tanh(k / 2)), which is x for small
    k and nears round(x) as k grows.
    """
    safe = jnp.maximum(k, 1e-3)
    f = x - jnp.floor(x) - 0.5
    return safe * (1.0 - jnp.tanh(safe * f) ** 2) / (2.0 * jnp.tanh(safe / 2))


SLOPES = {
    "identity": identity_slope,
    "clip": clip_slope,
    "approx": approx_slope,
    "swish": swish_slope,
}
"""Derivatives of the sign without further arguments."""

round_ste = with_slope(half_up, identity_slope)
"""Rounds half up; the derivative is 1."""
