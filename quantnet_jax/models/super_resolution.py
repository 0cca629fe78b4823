"""Networks that enlarge images: EDSR and SRResNet, with sub-pixel convolutions.

Lim et al., EDSR, arXiv 1707.02921; Ledig et al., SRResNet, arXiv 1609.04802; Shi et
al., sub-pixel convolution, arXiv 1609.05158.
"""

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from quantnet_jax import ops
from quantnet_jax.activations.sites import (
    INPUT,
    OUTPUT,
    RECTIFIED,
    RESIDUAL,
    SiteQuantizers,
)
from quantnet_jax.models.layers import Bias, Conv, Sites, as_images
from quantnet_jax.models.nonlinearities import PReLU, relu
from quantnet_jax.models.norm import BatchNorm
from quantnet_jax.models.options import (
    Act,
    Depth,
    Momentum,
    Outputs,
    Switch,
    Width,
)


class SuperResolution(Sites, nn.Module):
    """Stem, residual blocks under one long skip, sub-pixel enlargement, head.

    Convolutions are 'stem', 'block0_conv1', 'block0_conv2', ..., 'body', 'enlarge0' (by
    2 or 3; by 4 also 'enlarge1') and 'head'; without norms each has a bias.

    Quantizing all kernels, and the sites 'input' and 'residual', quantizes all of it
    but the image itself and the output of the head, as FQSR does: what a convolution
    returns is quantized where it is used.

    Attributes:
      outputs: numbers for each input pixel: C s^2 for images of C channels that are to
        become s times as large, s one of 2, 3, 4, 8.
      width: channels of all but the first and last convolution.
      depth: residual blocks.
      norm: BatchNorm after the convolutions of blocks and body.
      ends: height and width of the first and the last kernel.
      image_skip: add the input, enlarged by bicubic interpolation, to the output (Kim
        et al., VDSR, arXiv 1511.04587); not in the papers of the networks here.
      act: as in `ResNet`.
      act_quant: as in `ResNet`.
      sites: some of 'input' (of each convolution but the first), 'rectified' (gives
        those of them behind a ReLU a site of their own), 'residual' (both terms of each
        sum, by one quantizer: on one grid, so integers add) and 'output'.
      dtype: as in `ResNet`.
      axis_name: as in `ResNet`.
      momentum: as in `ResNet`.
      folded: as in `ResNet`.
    """

    SITES: ClassVar[tuple[str, ...]] = (INPUT, RECTIFIED, RESIDUAL, OUTPUT)

    outputs: Outputs
    width: Width = 16
    depth: Depth = 4
    norm: bool = False
    ends: int = 3
    image_skip: Switch = False
    act: Act = relu
    act_quant: SiteQuantizers = None
    sites: tuple[str, ...] = (INPUT,)
    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: Momentum = 0.9
    folded: bool = False

    @property
    def reach(self) -> int:
        """Pixels around one, in each direction, on which what becomes of it depends.

        Stem, two convolutions of each block, body, enlargement, and the head, whose
        pixels are smaller.
        """
        end = self.ends // 2
        return end + 2 * self.depth + 1 + 1 + (end + 1) // 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images, floating (N, H, W, C); float32 (N, s H, s W, C).

        Raises:
          ValueError: `outputs` are not C s^2.
        """
        x = image = as_images(x, self.dtype)
        channels = x.shape[-1]
        scale = math.isqrt(self.outputs // channels)
        if scale not in (2, 3, 4, 8) or channels * scale**2 != self.outputs:
            raise ValueError(
                f"`outputs` is {self.outputs}, expected {channels} channels times the "
                "square of 2, 3, 4 or 8"
            )
        rectified = self.act is relu and self.has(RECTIFIED)
        behind = RECTIFIED if rectified else INPUT
        x = self._conv(x, self.width, "stem", site=None, size=self.ends)
        x = first = self.act()(x) if self.norm else x
        for number in range(self.depth):
            name = f"block{number}_"
            y = self._normed(x, f"{name}conv1", train)
            y = self._normed(self.act()(y), f"{name}conv2", train, site=behind)
            x = self.plus(y, x, name=f"{name}residual")
        x = self.plus(self._normed(x, "body", train), first, name="residual")
        for number, step in enumerate([3] if scale == 3 else [2] * (scale // 3 + 1)):
            x = self._conv(x, step**2 * self.width, f"enlarge{number}", site=INPUT)
            x = sub_pixels(x, step)
            x = self.act()(x) if self.norm else x
        x = self._conv(x, channels, "head", site=INPUT, size=self.ends)
        x = x.astype(jnp.float32)
        if self.image_skip:
            x += enlarged(image.astype(jnp.float32), scale)
        return self.quantized(OUTPUT, x, name="output")

    def _conv(
        self,
        x: jax.Array,
        channels: int,
        name: str,
        *,
        site: str | None,
        size: int = 3,
        bias: bool = True,
    ) -> jax.Array:
        """A convolution, whose input may be quantized."""
        if site is not None:
            x = self.quantized(site, x, name=f"{name}_input")
        quantized = site is not None and self.has(site)
        x = Conv(
            channels, size, folded=self.folded, quantized_input=quantized, name=name
        )(x)
        return Bias(name=f"{name}_bias")(x) if bias else x

    def _normed(
        self, x: jax.Array, name: str, train: bool, site: str = INPUT
    ) -> jax.Array:
        """A convolution, and its norm if there are norms."""
        x = self._conv(x, self.width, name, site=site, bias=not self.norm)
        if not self.norm:
            return x
        norm = BatchNorm(
            self.axis_name, self.momentum, folded=self.folded, name=f"{name}_bn"
        )
        return norm(x, train)


def sub_pixels(x: jax.Array, scale: int) -> jax.Array:
    """(N, H, W, s^2 C) -> (N, s H, s W, C): channels become s x s pixels.

    Channel (i s + j) C + c of a pixel becomes channel c of the one i below and j right
    of its first.
    """
    n, height, width, channels = x.shape
    x = x.reshape(n, height, width, scale, scale, channels // scale**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height * scale, width * scale, channels // scale**2)


def enlarged(x: jax.Array, scale: int) -> jax.Array:
    """Bicubic interpolation, as `quantnet_jax.data.bicubic` does it, without rounding.

    Forward: the s x s pixels of a pixel are sums over the 5 x 5 pixels around it, with
      k(v) = 3/2 |v|^3 - 5/2 |v|^2 + 1 up to 1, -1/2 |v|^3 + 5/2 |v|^2 - 4 |v| + 2 up to
      2 at v = (i + 1/2) / s - 1/2 - j along each axis, pixel i below, j = -2 ... 2;
      the image goes on with its edge.

    Args:
      x: float32 (N, H, W, C).
      scale: s, at least 2.

    Returns:
      float32 (N, s H, s W, C).
    """
    place = (np.arange(scale)[:, None] + 0.5) / scale - 0.5 - np.arange(-2, 3)
    v = np.abs(place)
    near, far = 1.5 * v**3 - 2.5 * v**2 + 1, -0.5 * v**3 + 2.5 * v**2 - 4 * v + 2
    taps = np.where(v <= 1, near, np.where(v < 2, far, 0.0))  # (s, 5)
    kernel = np.einsum("ia,jb->abij", taps, taps).reshape(5, 5, 1, scale**2)
    n, height, width, channels = x.shape
    wide = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    kernel = jnp.asarray(np.tile(kernel, channels), jnp.float32)
    none = ((0, 0), (0, 0))
    y = ops.conv2d(
        wide, kernel, padding=none, groups=channels, precision=lax.Precision.HIGHEST
    )
    # The phases of a channel lie side by side: bring the channels behind them.
    y = y.reshape(n, height, width, channels, scale**2).swapaxes(3, 4)
    return sub_pixels(y.reshape(n, height, width, -1), scale)


def edsr(**options: Any) -> SuperResolution:
    """EDSR: no norms, ReLU in the blocks alone; by default 4 blocks of 16 channels.

    The paper's baseline has `depth` 16 and `width` 64.
    """
    return SuperResolution(**options)


def srresnet(**options: Any) -> SuperResolution:
    """SRResNet: BatchNorm, PReLU, first and last kernel 9x9; by default 4 blocks of 16.

    The paper's has `depth` 16 and `width` 64.
    """
    return SuperResolution(**({"norm": True, "ends": 9, "act": PReLU} | options))
