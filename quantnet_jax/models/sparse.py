"""Networks over lists of active sites, in two and three dimensions (BSC-Net)."""

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.activations.quantizer import ActivationQuantizer
from quantnet_jax.activations.sites import INPUT, OUTPUT
from quantnet_jax.common.limits import Choice, Number
from quantnet_jax.core.qtensor import dequantize
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.models.layers import (
    Pooled,
    as_images,
    kaiming_normal,
    precision,
    unit,
)
from quantnet_jax.models.nonlinearities import relu
from quantnet_jax.models.norm import BatchNorm
from quantnet_jax.models.options import Act, Momentum, Outputs, Width
from quantnet_jax.ops import shifted, sparse
from quantnet_jax.ops.sparse import GatherMap, SiteList

SHIFTS = ("none", "fixed", "search")
STAGES = 3
SIZE = 3
"""Of every kernel."""


def check_capacity(images: np.ndarray, dims: int, capacity: int) -> None:
    """Raises a ValueError if the lists of `Sparse` would lose sites of uint8 images.

    Augmentation, which moves them against the cells of a stride, is not seen.
    """
    active = np.asarray(images.any(-1) if dims == 2 else images > 0)
    for stage in range(STAGES if capacity else 0):
        most = int(active.reshape(len(active), -1).sum(1).max())
        if most > capacity >> stage:
            raise ValueError(
                f"capacity={capacity} holds {capacity >> stage} sites in stage "
                f"{stage + 1}, but an image has {most} active ones; expected at least "
                f"{most << stage}, or 0 for all"
            )
        for axis in range(1, active.ndim):
            even = np.take(active, range(0, active.shape[axis], 2), axis)
            odd = np.take(active, range(1, active.shape[axis], 2), axis)
            pairs = (slice(None),) * axis + (slice(odd.shape[axis]),)
            even[pairs] |= odd
            active = even


class SparseConv(nn.Module):
    """Sparse convolution without bias: parameter 'kernel' (size^d, Cin, channels).

    With a shift each group of output channels has its own offset in {-1, 0, 1}^d, by
    the largest number of its row of the parameter 'shift' (groups, 3^d), or, while
    'search' is trained, the sum over all of them with the softmax of the row as
    weights. Offsets are random at first ('fixed') or equally likely ('search').

    Forward: y_g(p) = sum over j of kernel_g[j]^T x(strides p + offset j + shift of g)

    Reference: BSC-Net, arXiv 2303.15493. The search is a reconstruction.

    Attributes:
      channels: output channels.
      dims: d.
      shift: one of `SHIFTS`.
      groups: of output channels.
      folded, quantized_input: as in `quantnet_jax.models.layers.Conv`.
    """

    channels: int
    dims: int = 2
    shift: str = "none"
    groups: int = 4
    folded: bool = False
    quantized_input: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array, maps: GatherMap) -> jax.Array:
        """(N, M, Cin) -> (N, output sites, channels).

        Args:
          x: features.
          real: `x` before it was quantized; only looked at by terms of the loss.
          maps: of `reach`.
        """
        shape = (SIZE**self.dims, x.shape[-1], self.channels)
        kernel = self.param("kernel", kaiming_normal, shape, jnp.float32)
        if self.shift != "none":
            first = nn.initializers.zeros
            if self.shift == "fixed":
                first = nn.initializers.normal(1.0)
            self.param("shift", first, (self.groups, 3**self.dims), jnp.float32)
        kernel, scale = dequantize(kernel), None
        if self.folded and self.quantized_input:
            kernel, scale = unit(kernel)
        y = self.product(x, kernel, maps)
        return y if scale is None else (y.astype(jnp.float32) * scale).astype(y.dtype)

    def product(self, x: jax.Array, kernel: jax.Array, maps: GatherMap) -> jax.Array:
        """The convolution with a given kernel, and the offsets of the layer."""
        exact = precision(self.folded)
        if self.shift == "none":
            return sparse.convolve(x, maps, kernel, precision=exact)
        where = shifted.shifted(SIZE, self.dims)
        shift = jnp.asarray(self.get_variable("params", "shift"))
        # As for quantizers of activations: what ships is computed outside of training.
        root = self.scope.root  # pyright: ignore[reportOptionalMemberAccess]
        if self.shift == "search" and root.get_variable("training", "step") is not None:
            share = jax.nn.softmax(shift, axis=-1)
            return shifted.supernet(x, maps, kernel, share, where, precision=exact)
        choice = jnp.asarray(where)[jnp.argmax(shift, axis=-1)]
        return sparse.convolve(x, maps, kernel, choice, precision=exact)


class Sparse(Pooled, nn.Module):
    """Stem, three stages of sparse convolutions, mean over sites, dense head.

    The list of sites is built from the images inside, so that data, evaluation and
    files are those of images: a site is active where a pixel is not 0 (datasets for
    this network are not centred). Of three dimensions the channels of an image are the
    depth, with one feature a site. Each convolution has its own, real shortcut, as in
    Bi-Real Net: y = act(bn(conv(quantized x)) + x). Stages after the first begin with
    stride 2, whose shortcut is the mean of the active sites of a cell, twice.

    Reference: BSC-Net, arXiv 2303.15493; the network is ours.

    Attributes:
      outputs: of the head.
      dims: 2 or 3.
      width: channels of the first stage; of a later one twice those of the one before.
      depth: convolutions of a stage.
      capacity: sites of an image, half of it after each stride; active ones beyond it,
        in row-major order, are dropped. 0: all that there can be.
      shift: 'none', 'fixed' (at random, or those of a run by `init_from`) or 'search';
        of all convolutions but the stem, see `SparseConv`.
      groups: of output channels with an offset each, a divisor of `width`.
      act, act_quant, sites, dtype, axis_name, momentum, folded, features: as in
        `ResNet`; sites are 'input' (of all convolutions but the stem), 'output'.

    Raises:
      ValueError: an option is beyond its range, or `groups` does not divide `width`.
    """

    SITES: ClassVar[tuple[str, ...]] = (INPUT, OUTPUT)

    outputs: Outputs
    dims: int = 2
    width: Width = 16
    depth: Annotated[int, Number(1, 2**10, whole=True)] = 2
    capacity: Annotated[int, Number(0, 2**20, whole=True)] = 0
    shift: Annotated[str, Choice(SHIFTS)] = "none"
    groups: Annotated[int, Number(1, 2**14, whole=True)] = 4
    act: Act = relu
    act_quant: Quantizer | ActivationQuantizer | None = None
    sites: tuple[str, ...] = (INPUT,)
    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: Momentum = 0.9
    folded: bool = False
    features: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.groups:
            raise ValueError(
                f"groups={self.groups}, expected a divisor of width={self.width}"
            )

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Any:
        """Class scores of a batch of images; arguments and result as in `ResNet`."""
        x = as_images(x, self.dtype)
        size = x.shape[1:3] if self.dims == 2 else x.shape[1:]
        at = sparse.from_dense(x if self.dims == 2 else x[..., None], self.capacity)
        maps = sparse.gather_map(at, at, size, sparse.offsets(SIZE, self.dims))
        conv = SparseConv(self.width, self.dims, folded=self.folded, name="stem")
        y = self.norm("stem_bn", conv(at.features, at.features, maps), at, train)
        y = self.act()(y)
        wide = SIZE if self.shift == "none" else SIZE + 2
        reach = sparse.offsets(wide, self.dims)
        for stage in range(STAGES):
            if stage:
                fine, at = at, sparse.coarser(at, size, 2, self.capacity >> stage)
                first = sparse.gather_map(fine, at, size, reach, 2)
                cells = sparse.offsets(2, self.dims)
                skip = _means(y, sparse.gather_map(fine, at, size, cells, 2))
                skip = jnp.concatenate([skip, skip], axis=-1)
                size = tuple(-(-n // 2) for n in size)
            else:
                first, skip = None, y
            maps = sparse.gather_map(at, at, size, reach)
            for number in range(self.depth):
                name = f"stage{stage + 1}_block{number}"
                block = first if first is not None and not number else maps
                y = self.block(name, y, skip, block, at, train)
                skip = y
        active = at.active.astype(jnp.float32)
        y = jnp.sum(y.astype(jnp.float32) * active, axis=1)
        pooled = y / jnp.maximum(jnp.sum(active, axis=1), 1.0)
        return self.scores_of(pooled)

    def block(
        self,
        name: str,
        x: jax.Array,
        skip: jax.Array,
        maps: GatherMap,
        at: SiteList,
        train: bool,
    ) -> jax.Array:
        """One convolution with its shortcut."""
        y = SparseConv(
            skip.shape[-1],
            self.dims,
            self.shift,
            self.groups,
            folded=self.folded,
            quantized_input=self.has(INPUT),
            name=f"{name}_conv",
        )(self.quantized(INPUT, x, name=f"{name}_conv_input"), x, maps)
        return self.act()(self.norm(f"{name}_bn", y, at, train) + skip)

    def norm(self, name: str, y: jax.Array, at: SiteList, train: bool) -> jax.Array:
        """BatchNorm over active sites; padding is not looked at."""
        bn = BatchNorm(self.axis_name, self.momentum, folded=self.folded, name=name)
        return bn(y, train, at.active)


def _means(x: jax.Array, maps: GatherMap) -> jax.Array:
    """The mean of the sites that each output meets."""
    met = (maps.forward < x.shape[1]).astype(x.dtype)
    count = jnp.maximum(jnp.sum(met, axis=-1, keepdims=True), 1.0)
    return jnp.sum(sparse.gather(x, maps), axis=2) / count
