"""Conv-4, the network of few-shot learning: four convolutions, flattened, dense."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from quantnet_jax.activations.quantizer import ActivationQuantizer
from quantnet_jax.activations.sites import INPUT, OUTPUT
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.models.layers import Conv, Pooled, as_images
from quantnet_jax.models.nonlinearities import relu
from quantnet_jax.models.norm import BatchNorm
from quantnet_jax.models.options import Act, Momentum, Outputs, Width


class Conv4(Pooled, nn.Module):
    """Four 3x3 convolutions of stride 2 with BatchNorm, and a dense head on all pixels.

    'stem', 'conv2', 'conv3', 'conv4' and 'head'. With width 64, 5 outputs and images of
    28 x 28 x 1: 113,221 parameters.

    Attributes:
      outputs: of the head.
      width: channels of every convolution.
      act: as in `ResNet`.
      act_quant: as in `ResNet`.
      sites: 'input' (of 'conv2', 'conv3', 'conv4'), 'output', as in `ResNet`.
      dtype: as in `ResNet`.
      axis_name: as in `ResNet`.
      momentum: as in `ResNet`.
      folded: as in `ResNet`.
      features: as in `ResNet`; here the inputs of the head, which nothing pools.

    Reference: Vinyals et al., arXiv 1606.04080; strides in the place of pooling as in
    Finn et al., arXiv 1703.03400, for Omniglot.
    """

    SITES: ClassVar[tuple[str, ...]] = (INPUT, OUTPUT)

    outputs: Outputs
    width: Width = 64
    act: Act = relu
    act_quant: Quantizer | ActivationQuantizer | None = None
    sites: tuple[str, ...] = (INPUT,)
    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: Momentum = 0.9
    folded: bool = False
    features: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Any:
        """Class scores of a batch of images, float32 (N, outputs)."""
        x = as_images(x, self.dtype)
        for number in range(1, 5):
            inner = number > 1
            name = f"conv{number}" if inner else "stem"
            if inner:
                x = self.quantized(INPUT, x, name=f"{name}_input")
            x = Conv(
                self.width,
                strides=2,
                folded=self.folded,
                quantized_input=inner and self.has(INPUT),
                name=name,
            )(x)
            norm = f"bn{number}" if inner else "stem_bn"
            bn = BatchNorm(self.axis_name, self.momentum, folded=self.folded, name=norm)
            x = self.act()(bn(x, train))
        return self.scores_of(x.astype(jnp.float32).reshape(x.shape[0], -1))
