"""Layers and hooks that the shipped networks share, and the names of their kernels."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from quantnet_jax import ops
from quantnet_jax.activations.sites import (
    OUTPUT,
    RESIDUAL,
    QuantizeActivation,
    SiteQuantizers,
    quantizer_at,
)
from quantnet_jax.common.limits import check, limits_of
from quantnet_jax.core.qtensor import QTensor

# He et al. 2015 (1502.01852): the backward pass keeps its variance.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """Convolution without bias: parameter 'kernel', HWIO, float32.

    A QTensor in the place of the kernel is convolved as it is.

    Attributes:
      channels: output channels.
      size: height and width of the kernel.
      strides: stride of both axes.
      groups: feature groups.
      folded: of the network that is scored and that ships (see `BatchNorm`): products
        in full float32 on every device.
      quantized_input: the input is a quantized activation.
    """

    channels: int
    size: int = 3
    strides: int = 1
    groups: int = 1
    folded: bool = False
    quantized_input: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, Cin) -> (N, ceil(H / strides), ceil(W / strides), channels)."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.channels)
        kernel = self.param("kernel", kaiming_normal, shape, jnp.float32)
        return self.product(x, kernel)

    def product(self, x: jax.Array, kernel: ops.Weights) -> jax.Array:
        """The convolution with a given kernel."""
        scale = None
        if self.folded and self.quantized_input and not isinstance(kernel, QTensor):
            kernel, scale = unit(kernel)
        y = ops.conv2d(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            groups=self.groups,
            precision=precision(self.folded),
        )
        if scale is None:
            return y
        return (y.astype(jnp.float32) * scale).astype(y.dtype)

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Zeros before and after each axis.

        Symmetric, unlike 'SAME' at stride 2: output i is centred on input i * stride,
        the pixel that shortcut A keeps.
        """
        before = (self.size - 1) // 2
        pad = (before, self.size - 1 - before)
        return pad, pad


def unit(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kernel over its largest number in each output channel, and these.

    Binary weights become +1 and -1 exactly, and with signs as inputs all sums are
    integers: every program, whatever its order, rounds the same number.
    """
    axes = tuple(range(kernel.ndim - 1))
    scale = jnp.max(jnp.abs(kernel), axis=axes, keepdims=True)
    scale = jnp.where(scale == 0.0, 1.0, scale)
    return kernel / scale, scale


def replace_convolutions(
    instead: Callable[..., jax.Array | None],
    kinds: tuple[type[nn.Module], ...] = (Conv,),
) -> AbstractContextManager:
    """Within it, another function may compute the convolutions of a network.

    Args:
      instead: `(layer, its '/'-joined path, *inputs) -> output`, or None for the
        convolution as it is. A kernel whose place was taken is not looked at.
      kinds: of layers.
    """

    def intercept(call, args, kwargs, context):
        layer = context.module
        if not isinstance(layer, kinds) or context.method_name != "__call__":
            return call(*args, **kwargs)
        y = instead(layer, "/".join(layer.path), *args)
        return call(*args, **kwargs) if y is None else y

    return nn.intercept_methods(intercept)


class Sites:
    """What networks with sites of activation quantizers share; their attributes:

    `act_quant`, `sites`, `axis_name` and `folded`, see `quantnet_jax.models.ResNet`.
    Those that are `Annotated` with what they may be are held to it.
    """

    SITES: ClassVar[tuple[str, ...]] = ()

    act_quant: SiteQuantizers
    sites: tuple[str, ...]
    axis_name: str | None
    folded: bool

    def __post_init__(self) -> None:
        for option, limit in limits_of(type(self)).items():
            value = getattr(self, option)
            value = value.item() if isinstance(value, np.generic) else value
            if option != "act":
                check(option, value, limit)
            elif not callable(value):
                raise ValueError(f"act={value!r}, expected a factory, not its name")
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]

    def has(self, site: str) -> bool:
        """Whether activations are quantized there."""
        return self.act_quant is not None and site in self.sites

    def quantized(self, site: str, x: jax.Array, *, name: str) -> jax.Array:
        """`x` itself, or what the site of this name makes of it."""
        if not self.has(site):
            return x
        quantizer = quantizer_at(self.act_quant, site)
        assert quantizer is not None
        return QuantizeActivation(quantizer, self.axis_name, self.folded, name=name)(x)

    def plus(self, x: jax.Array, y: jax.Array, *, name: str = "residual") -> jax.Array:
        """The residual sum, both of whose terms one site may quantize."""
        if self.has(RESIDUAL):
            both = jnp.concatenate([x, y], axis=-1)
            both, size = self.quantized(RESIDUAL, both, name=name), x.shape[-1]
            x = lax.slice_in_dim(both, 0, size, axis=3)
            y = lax.slice_in_dim(both, size, 2 * size, axis=3)
        return x + y


class Pooled(Sites):
    """What networks share that end in a global average pool and a dense head.

    Attributes, besides those of `Sites`: `outputs` and `features`, see
    `quantnet_jax.models.ResNet`.
    """

    outputs: int
    features: bool

    def scores(self, x: jax.Array) -> Any:
        """Of images (N, H, W, C) what the network returns, see `ResNet`."""
        return self.scores_of(x.astype(jnp.float32).mean((1, 2)))

    def scores_of(self, features: jax.Array) -> Any:
        """The same of features (N, C) that are pooled already."""
        logits = Dense(self.outputs, self.folded, name="head")(features)
        logits = self.quantized(OUTPUT, logits, name="output")
        if self.features:
            return {"outputs": logits, "features": features}
        return logits


class Dense(nn.Module):
    """Dense layer: parameters 'kernel' (Cin, channels) and 'bias', float32.

    Attributes:
      channels: output channels.
      folded: as in `Conv`.
    """

    channels: int
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, Cin) -> (N, channels), in the dtype of `x`."""
        shape = (x.shape[-1], self.channels)
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), shape, jnp.float32
        )
        bias = self.param(
            "bias", nn.initializers.zeros, (self.channels,), jnp.float32
        ).astype(x.dtype)
        y = ops.dense(x, kernel, precision=precision(self.folded))
        return y + bias[None]


class Bias(nn.Module):
    """A number for each channel, of parameter 'bias', added to what has no norm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape and dtype as `x`; the channels are the last axis."""
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def subsample_pad(x: jax.Array, strides: int, channels: int) -> jax.Array:
    """Shortcut A of He et al. (1512.03385): every `strides`-th pixel, zero channels.

    Args:
      x: (N, H, W, C).
      strides: stride of both axes.
      channels: channels of the result, at least C; the new ones come last.

    Returns:
      (N, ceil(H / strides), ceil(W / strides), channels).

    Raises:
      ValueError: if channels would have to be dropped.
    """
    extra = channels - x.shape[-1]
    if extra < 0:
        raise ValueError(
            f"shortcut 'A' cannot go from {x.shape[-1]} to {channels} channels; "
            "use shortcut 'B'"
        )
    # No indexing, which becomes a gather where the batch size is symbolic.
    for axis in (1, 2):
        x = lax.slice_in_dim(x, 0, x.shape[axis], strides, axis)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, extra)))


def precision(folded: bool) -> Any:
    """Of products: accelerators may round float32 inputs unless a precision is set.

    Two programs of the same network then agree to the last digits, no less.
    """
    return lax.Precision.HIGHEST if folded else None


def as_images(x: jax.Array, dtype: Any) -> jax.Array:
    """Checks a batch of images and casts it to the compute dtype.

    Raises:
      ValueError: if `x` is not a floating (N, H, W, C) array.
    """
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"images have shape {x.shape} and dtype {x.dtype}, expected floating "
            "(N, H, W, C)"
        )
    return jnp.asarray(x, dtype)
