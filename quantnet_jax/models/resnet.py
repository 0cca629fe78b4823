"""Residual networks for small images (depth 6n+2) and for ImageNet (18, 34, 50).

He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385.
"""

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from quantnet_jax.activations.sites import INPUT, OUTPUT, RESIDUAL, SiteQuantizers
from quantnet_jax.common.limits import Choice, Number
from quantnet_jax.models.layers import Conv, Pooled, Sites, as_images, subsample_pad
from quantnet_jax.models.nonlinearities import ActFactory, relu
from quantnet_jax.models.norm import BatchNorm
from quantnet_jax.models.options import Act, Momentum, Outputs, Strides, Switch, Width


class _Block(Sites, nn.Module):
    """What both residual blocks share.

    Attributes:
      channels: width of the 3x3 convolutions.
      strides: stride of the block.
      shortcut: 'A' (subsampling and zero channels) or 'B' (1x1 convolution and
        BatchNorm), used where the shape changes; elsewhere the identity.
      act: factory of activations, called once per site.
      act_quant: see `ResNet`.
      sites: see `ResNet`.
      axis_name: see `BatchNorm`.
      momentum: see `BatchNorm`.
      zero_init_last: start the scale of the last BatchNorm at zero.
      folded: see `BatchNorm`.
    """

    channels: int
    strides: int = 1
    shortcut: str = "A"
    act: ActFactory = relu
    act_quant: SiteQuantizers = None
    sites: tuple[str, ...] = (INPUT,)
    axis_name: str | None = None
    momentum: float = 0.9
    zero_init_last: bool = False
    folded: bool = False

    def conv(
        self, x: jax.Array, channels: int, size: int = 3, strides: int = 1, *, name: str
    ) -> jax.Array:
        """A convolution of the residual branch, whose input may be quantized."""
        x = self.quantized(INPUT, x, name=f"{name}_input")
        return Conv(
            channels,
            size,
            strides,
            folded=self.folded,
            quantized_input=self.has(INPUT),
            name=name,
        )(x)

    def norm(self, name: str, zero_init: bool = False) -> BatchNorm:
        """A BatchNorm of this block's settings."""
        return BatchNorm(
            self.axis_name,
            self.momentum,
            zero_init=zero_init,
            folded=self.folded,
            name=name,
        )

    def skip(self, x: jax.Array, channels: int, train: bool) -> jax.Array:
        """The shortcut of the block, in the shape of its residual branch."""
        if self.strides == 1 and x.shape[-1] == channels:
            return x
        if self.shortcut == "A":
            return subsample_pad(x, self.strides, channels)
        x = Conv(channels, 1, self.strides, folded=self.folded, name="shortcut")(x)
        return self.norm("shortcut_bn")(x, train)


class BasicBlock(_Block):
    """conv-bn-act-conv-bn, plus shortcut, act. Figure 5, left, of the paper."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(N, H, W, Cin) -> (N, ceil(H / strides), ceil(W / strides), channels)."""
        y = self.conv(x, self.channels, 3, self.strides, name="conv1")
        y = self.act()(self.norm("bn1")(y, train))
        y = self.conv(y, self.channels, name="conv2")
        y = self.norm("bn2", self.zero_init_last)(y, train)
        return self.act()(self.plus(y, self.skip(x, self.channels, train)))


class BiRealBlock(_Block):
    """conv-bn, plus shortcut, act, twice: each 3x3 convolution has its own shortcut.

    Liu et al., Bi-Real Net, arXiv 1808.00278, section 3.2. There the sign is all of the
    nonlinearity (act 'identity'); IR-Net and others add 'hardtanh'. `zero_init_last`
    holds for both branches.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(N, H, W, Cin) -> (N, ceil(H / strides), ceil(W / strides), channels)."""
        y = self.conv(x, self.channels, 3, self.strides, name="conv1")
        y = self.norm("bn1", self.zero_init_last)(y, train)
        skip = self.skip(x, self.channels, train)
        x = self.act()(self.plus(y, skip, name="residual1"))
        y = self.conv(x, self.channels, name="conv2")
        y = self.norm("bn2", self.zero_init_last)(y, train)
        return self.act()(self.plus(y, x, name="residual2"))


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 to four times the width. Figure 5, right, of the paper.

    The stride sits on the 3x3 convolution (known as v1.5), not on the first 1x1.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(N, H, W, Cin) -> (N, ceil(H / strides), ceil(W / strides), 4 * channels)."""
        wide = 4 * self.channels
        y = self.conv(x, self.channels, 1, name="conv1")
        y = self.act()(self.norm("bn1")(y, train))
        y = self.conv(y, self.channels, 3, self.strides, name="conv2")
        y = self.act()(self.norm("bn2")(y, train))
        y = self.conv(y, wide, 1, name="conv3")
        y = self.norm("bn3", self.zero_init_last)(y, train)
        return self.act()(self.plus(y, self.skip(x, wide, train)))


class ResNet(Pooled, nn.Module):
    """Residual network: stem, stages of blocks, global average pool, dense head.

    Stage s (from 1) has `width * 2**(s-1)` channels; stages after the first start at
    stride 2. Parameters are float32 and named 'stem/kernel', 'stem_bn/scale',
    'stage1_block0/conv1/kernel', 'stage1_block0/bn1/scale',
    'stage2_block0/shortcut/kernel', 'head/kernel' and so on.

    Attributes:
      outputs: of the head.
      blocks: residual blocks of each stage.
      block: `BasicBlock` or `Bottleneck`.
      width: channels of the stem and of the first stage's 3x3 convolutions.
      shortcut: 'A' or 'B'; see `BasicBlock`.
      stem_size: height and width of the stem's kernel.
      stem_strides: stride of the stem.
      stem_pool: 3x3 max-pool of stride 2 after the stem.
      act: `act()` is called once per site and gives the activation of that site: a
        function, or a linen module with parameters of its own. `create` takes a
        name of `ACTS` too.
      act_quant: None, or a quantizer of activations, at the `sites`.
      sites: some of 'input' (of the blocks' convolutions), 'residual' (both terms of
        each residual sum, by one quantizer) and 'output' (of the head). Stem and head
        see real inputs, and so do 1x1 convolutions of shortcuts. Learned parameters are
        'stage1_block0/conv1_input/qparams', 'stage1_block0/residual/qparams',
        'output/qparams' and so on.
      bi_real: a shortcut around every 3x3 convolution, see `BiRealBlock`; basic blocks
        only.
      dtype: compute dtype of convolutions; BatchNorm, pooling and head are float32.
      axis_name: mapped axis over which BatchNorm averages, or None.
      momentum: of the running statistics of BatchNorm.
      zero_init_last: start every block as identity (the last BatchNorm's scale at 0).
      features: also return the pooled features, the input of the head.
    """

    SITES: ClassVar[tuple[str, ...]] = (INPUT, RESIDUAL, OUTPUT)

    outputs: Outputs
    blocks: tuple[int, ...]
    block: type[_Block] = BasicBlock
    width: Width = 16
    shortcut: Annotated[str, Choice(("A", "B"))] = "A"
    stem_size: Annotated[int, Number(1, 63, whole=True)] = 3
    stem_strides: Strides = 1
    stem_pool: Switch = False
    act: Act = relu
    act_quant: SiteQuantizers = None
    sites: tuple[str, ...] = (INPUT,)
    bi_real: Switch = False
    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: Momentum = 0.9
    zero_init_last: Switch = False
    folded: bool = False
    features: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bi_real and self.block is not BasicBlock:
            raise ValueError(
                f"bi_real=True, but the network has {self.block.__name__} blocks; "
                "expected one of basic blocks, such as resnet18, or False"
            )

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Any:
        """Outputs of the head for a batch of images.

        Args:
          x: floating (N, H, W, C), any size and number of channels.
          train: use and update batch statistics (collection 'batch_stats').

        Returns:
          float32 (N, outputs), or {'outputs': that, 'features': float32 (N, F)}.
        """
        x = as_images(x, self.dtype)
        x = Conv(
            self.width,
            self.stem_size,
            self.stem_strides,
            folded=self.folded,
            name="stem",
        )(x)
        norm = BatchNorm(
            self.axis_name, self.momentum, folded=self.folded, name="stem_bn"
        )
        x = norm(x, train)
        x = self.act()(x)
        if self.stem_pool:
            # Flax documents pairs but annotates a word only.
            pads: Any = ((1, 1), (1, 1))
            x = nn.max_pool(x, (3, 3), (2, 2), pads)
        block = BiRealBlock if self.bi_real else self.block
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                x = block(
                    channels=self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    shortcut=self.shortcut,
                    act=self.act,
                    act_quant=self.act_quant,
                    sites=self.sites,
                    axis_name=self.axis_name,
                    momentum=self.momentum,
                    zero_init_last=self.zero_init_last,
                    folded=self.folded,
                    name=f"stage{stage + 1}_block{index}",
                )(x, train)
        return self.scores(x)


def cifar_resnet(depth: int, **options: Any) -> ResNet:
    """ResNet of depth 6n+2 for small images: three stages of n basic blocks.

    Args:
      depth: 8, 14, 20, 32, 44, 56, 110, ...
      **options: attributes of `ResNet`.

    Raises:
      ValueError: if the depth is not 6n+2 with n of at least 1.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"`depth` is {depth}, expected 6n+2: 8, 14, 20, 26, 32, ...")
    return ResNet(blocks=(depth // 6,) * 3, **options)


def imagenet_resnet(depth: int, **options: Any) -> ResNet:
    """ResNet-18, -34 or -50: 7x7 stem of stride 2, max-pool, projection shortcuts.

    Args:
      depth: 18, 34 or 50.
      **options: attributes of `ResNet`; they override the defaults of this family
        (width 64, shortcut 'B', stem_size 7, stem_strides 2, stem_pool True).

    Raises:
      ValueError: if the depth is another.
    """
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
    if depth not in blocks:
        raise ValueError(f"`depth` is {depth}, expected one of 18, 34, 50")
    family = {
        "block": Bottleneck if depth == 50 else BasicBlock,
        "width": 64,
        "shortcut": "B",
        "stem_size": 7,
        "stem_strides": 2,
        "stem_pool": True,
    }
    return ResNet(blocks=blocks[depth], **(family | options))
