"""A network of a few hundred parameters, for tests and first steps."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from quantnet_jax.activations.sites import INPUT, OUTPUT, SiteQuantizers
from quantnet_jax.models.layers import Conv, Pooled, as_images
from quantnet_jax.models.nonlinearities import relu
from quantnet_jax.models.norm import BatchNorm
from quantnet_jax.models.options import Act, Momentum, Outputs, Strides, Width


class Small(Pooled, nn.Module):
    """Three 3x3 convolutions with BatchNorm, global average pool, dense head.

    'conv1' and 'conv2' have kernels of equal shape. With width 4, 10 outputs and 3
    input channels: 470 parameters.

    Attributes:
      outputs: of the head.
      width: channels of every convolution.
      stem_strides: stride of the first convolution.
      act: as in `ResNet`.
      act_quant: as in `ResNet`.
      sites: 'input' (of 'conv1' and 'conv2'), 'output', as in `ResNet`.
      dtype: as in `ResNet`.
      axis_name: as in `ResNet`.
      momentum: as in `ResNet`.
      folded: as in `ResNet`.
      features: as in `ResNet`.
    """

    SITES: ClassVar[tuple[str, ...]] = (INPUT, OUTPUT)

    outputs: Outputs
    width: Width = 4
    stem_strides: Strides = 2
    act: Act = relu
    act_quant: SiteQuantizers = None
    sites: tuple[str, ...] = (INPUT,)
    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: Momentum = 0.9
    folded: bool = False
    features: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Any:
        """Class scores of a batch of images; arguments and result as in `ResNet`."""
        x = as_images(x, self.dtype)
        for name, norm, strides in (
            ("stem", "stem_bn", self.stem_strides),
            ("conv1", "bn1", 1),
            ("conv2", "bn2", 1),
        ):
            if name != "stem":
                x = self.quantized(INPUT, x, name=f"{name}_input")
            x = Conv(
                self.width,
                3,
                strides,
                folded=self.folded,
                quantized_input=self.has(INPUT) and name != "stem",
                name=name,
            )(x)
            bn = BatchNorm(self.axis_name, self.momentum, folded=self.folded, name=norm)
            x = bn(x, train)
            x = self.act()(x)
        return self.scores(x)
