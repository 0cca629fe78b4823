"""Depthwise-separable networks for small images (MobileNet).

Howard et al., MobileNets, arXiv 1704.04861.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from quantnet_jax.activations.sites import INPUT, OUTPUT, SiteQuantizers
from quantnet_jax.models.layers import Conv, Pooled, Sites, as_images
from quantnet_jax.models.nonlinearities import ActFactory, relu
from quantnet_jax.models.norm import BatchNorm
from quantnet_jax.models.options import Act, Momentum, Outputs, Strides, Width


class SeparableBlock(Sites, nn.Module):
    """depthwise 3x3-bn-act, pointwise 1x1-bn-act. Figure 3, right, of the paper.

    Attributes:
      channels: of the pointwise convolution.
      strides: of the depthwise convolution.
      act, act_quant, sites, axis_name, momentum, folded: as in `MobileNet`.
    """

    channels: int
    strides: int = 1
    act: ActFactory = relu
    act_quant: SiteQuantizers = None
    sites: tuple[str, ...] = (INPUT,)
    axis_name: str | None = None
    momentum: float = 0.9
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(N, H, W, Cin) -> (N, ceil(H / strides), ceil(W / strides), channels)."""
        each = x.shape[-1]
        for name, channels, size, strides, groups in (
            ("depthwise", each, 3, self.strides, each),
            ("pointwise", self.channels, 1, 1, 1),
        ):
            x = self.quantized(INPUT, x, name=f"{name}_input")
            x = Conv(
                *(channels, size, strides, groups),
                folded=self.folded,
                quantized_input=self.has(INPUT),
                name=name,
            )(x)
            norm = BatchNorm(
                self.axis_name, self.momentum, folded=self.folded, name=f"{name}_bn"
            )
            x = self.act()(norm(x, train))
        return x


class MobileNet(Pooled, nn.Module):
    """Stem, separable blocks, global average pool, dense head.

    Parameters are named 'stem/kernel', 'block0/depthwise/kernel' of shape (3, 3, 1,
    channels), 'block0/pointwise/kernel', 'head/kernel' and so on.

    Attributes:
      outputs: of the head.
      blocks: (channels as a multiple of `width`, strides) of each block.
      width: channels of the stem.
      stem_strides: stride of the stem.
      act: as in `ResNet`.
      act_quant: as in `ResNet`.
      sites: 'input' (of both convolutions of the blocks), 'output', as in `ResNet`.
      dtype: as in `ResNet`.
      axis_name: as in `ResNet`.
      momentum: as in `ResNet`.
      folded: as in `ResNet`.
      features: as in `ResNet`.
    """

    SITES: ClassVar[tuple[str, ...]] = (INPUT, OUTPUT)

    outputs: Outputs
    blocks: tuple[tuple[int, int], ...] = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1))
    width: Width = 16
    stem_strides: Strides = 1
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
        x = Conv(self.width, 3, self.stem_strides, folded=self.folded, name="stem")(x)
        norm = BatchNorm(
            self.axis_name, self.momentum, folded=self.folded, name="stem_bn"
        )
        x = self.act()(norm(x, train))
        for number, (multiple, strides) in enumerate(self.blocks):
            x = SeparableBlock(
                channels=multiple * self.width,
                strides=strides,
                act=self.act,
                act_quant=self.act_quant,
                sites=self.sites,
                axis_name=self.axis_name,
                momentum=self.momentum,
                folded=self.folded,
                name=f"block{number}",
            )(x, train)
        return self.scores(x)
