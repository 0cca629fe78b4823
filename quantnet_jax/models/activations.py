"""Hooks of the shipped networks: nonlinearities by name, and quantized layer inputs."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import flax.linen as nn
import jax
import jax.numpy as jnp

from quantnet_jax.core.quantizer import Quantizer

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


ACTS: dict[str, ActFactory] = {
    "relu": relu,
    "hardtanh": hardtanh,
    "identity": identity,
    "prelu": PReLU,
}
"""Names of `act` -> factories, each called once per site."""


class QuantizeInput(nn.Module):
    """Quantizes the input of a layer; what the quantizer learns is 'qparams'.

    Soft and hard evaluation both go through this one function, so it is for
    straight-through quantizers, whose soft and hard values are equal. The parameters
    start from the activations that initialize the network, which should be real ones
    for a quantizer that looks at them (LSQ).

    Attributes:
      quantizer: of activations, straight-through; without a schedule (its step is 0).
    """

    quantizer: Quantizer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape and dtype as `x`; the arithmetic is float32."""
        values = x.astype(jnp.float32)
        init = self.quantizer.init
        qparams = jax.eval_shape(init, jax.random.key(0), values)
        if jax.tree.leaves(qparams):
            qparams = self.param("qparams", init, values)
        return self.quantizer.soft(qparams, values, step=0).astype(x.dtype)


def replace_quantizers(
    instead: Callable[[str, jax.Array, Activation], jax.Array],
) -> AbstractContextManager:
    """Within it, another function decides what the layers of a network get.

    Args:
      instead: `(path, input, quantize) -> output` of a `QuantizeInput`: its '/'-joined
        path, and itself as a function, which may be called once.
    """

    def intercept(call, args, kwargs, context):
        layer = context.module
        if not isinstance(layer, QuantizeInput) or context.method_name != "__call__":
            return call(*args, **kwargs)
        return instead("/".join(layer.path), *args, call)

    return nn.intercept_methods(intercept)
