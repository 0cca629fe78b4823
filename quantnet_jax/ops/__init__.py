"""Products of inputs and weights: convolutions, dense, sparse, or counted in bits."""

from quantnet_jax.ops.products import Weights, conv2d, dense

__all__ = ["Weights", "conv2d", "dense"]
