"""Nonlinearities of the shipped networks, by name."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]
ActFactory = Callable[[], Activation]


def relu() -> Activation:
    """max(x, 0), the default."""
    return nn.relu


def hardtanh() -> Activation:
    """clip(x, -1, 1): keeps both signs for what follows (IR-Net, arXiv 1909.10788)."""
    return nn.hard_tanh


def identity() -> Activation:
    """x itself."""
    return lambda x: x


class PReLU(nn.Module):
    """x where positive, else a learned slope times x, one slope per channel from 0.25.

    He et al., Delving Deep into Rectifiers, arXiv 1502.01852.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape and dtype as `x`; the channels are the last axis."""
        start = nn.initializers.constant(0.25)
        slope = self.param("slope", start, x.shape[-1:], jnp.float32).astype(x.dtype)
        return jnp.where(x >= 0, x, slope.reshape((1,) * (x.ndim - 1) + (-1,)) * x)


class RPReLU(nn.Module):
    """PReLU whose knee is learned: f(x - a) + b, a and b of each channel from 0.

    Liu et al., ReActNet, arXiv 2003.03488, equation 6.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape and dtype as `x`; the channels are the last axis."""
        moves = []
        for name in ("before", "after"):
            move = self.param(name, nn.initializers.zeros, x.shape[-1:], jnp.float32)
            moves.append(move.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)))
        return PReLU(name="prelu")(x - moves[0]) + moves[1]


ACTS: dict[str, ActFactory] = {
    "relu": relu,
    "hardtanh": hardtanh,
    "identity": identity,
    "prelu": PReLU,
    "rprelu": RPReLU,
}
"""Names of `act` -> factories, each called once per site."""
