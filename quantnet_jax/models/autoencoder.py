"""A small autoencoder: images through a narrow, quantizable middle, and back."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from quantnet_jax.activations.sites import INPUT, OUTPUT, SiteQuantizers
from quantnet_jax.models.layers import Conv, Sites, as_images
from quantnet_jax.models.nonlinearities import relu
from quantnet_jax.models.norm import BatchNorm
from quantnet_jax.models.options import Act, Depth, Momentum, Outputs, Width


class Autoencoder(Sites, nn.Module):
    """Stem of stride 2, inner convolutions, and a head that doubles the size again.

    The head computes 4 * outputs channels, which become 2 x 2 pixels each (sub-pixel
    convolution, arXiv 1609.05158). Nothing of the input goes around the middle.

    Attributes:
      outputs: channels of the result.
      width: channels of the middle.
      depth: inner convolutions, 'conv1', 'conv2', ...
      act: as in `ResNet`.
      act_quant: as in `ResNet`.
      sites: 'input' (of inner convolutions), 'output' (of the image), as in `ResNet`.
      dtype: as in `ResNet`.
      axis_name: as in `ResNet`.
      momentum: as in `ResNet`.
      folded: as in `ResNet`.
    """

    SITES: ClassVar[tuple[str, ...]] = (INPUT, OUTPUT)

    outputs: Outputs
    width: Width = 8
    depth: Depth = 2
    act: Act = relu
    act_quant: SiteQuantizers = None
    sites: tuple[str, ...] = (INPUT,)
    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: Momentum = 0.9
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images like `x`, floating (N, H, W, C); float32 (N, H, W, outputs)."""
        x = as_images(x, self.dtype)
        n, height, width, _ = x.shape
        for number in range(self.depth + 1):
            name = f"conv{number}"
            if number > 0:
                x = self.quantized(INPUT, x, name=f"{name}_input")
            x = Conv(
                self.width,
                strides=1 if number else 2,
                folded=self.folded,
                quantized_input=number > 0 and self.has(INPUT),
                name=name if number else "stem",
            )(x)
            norm = f"bn{number}" if number else "stem_bn"
            x = BatchNorm(self.axis_name, self.momentum, folded=self.folded, name=norm)(
                x, train
            )
            x = self.act()(x)
        x = Conv(4 * self.outputs, folded=self.folded, name="head")(x)
        x = x.astype(jnp.float32).reshape(n, *x.shape[1:3], 2, 2, self.outputs)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, 2 * x.shape[1], 2 * x.shape[3], self.outputs)
        return self.quantized(OUTPUT, x[:, :height, :width], name="output")
