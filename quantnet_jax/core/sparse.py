"""Convolution over lists of active sites: gather maps, products, and shifted kernels.

A list holds the active sites of N grids of d axes, padded to M sites. A gather map says
once for all layers of a resolution which site is whose neighbour, so that a convolution
is one gather and one matrix product over the axis of sites. Sites that are not in the
list are zero and stay so.

Reference: Graham et al., 3D Semantic Segmentation with Submanifold Sparse Convolutional
Networks, arXiv 1711.10275; shifts of groups: BSC-Net, arXiv 2303.15493.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class SiteList(NamedTuple):
    """The active sites of N grids.

    Attributes:
      coordinates: int32 (N, M, d), in row-major order; of padding, anything.
      features: floating (N, M, C), 0 for padding.
      count: int32 (N,), active sites, which come first.
    """

    coordinates: jax.Array
    features: jax.Array
    count: jax.Array

    @property
    def active(self) -> jax.Array:
        """bool (N, M, 1): which rows are no padding."""
        rows = jnp.arange(self.coordinates.shape[1], dtype=jnp.int32)
        return (rows[None] < self.count[:, None])[..., None]


def from_dense(x: jax.Array, capacity: int = 0) -> SiteList:
    """The sites of grids (N, ..., C) where a channel is not 0.

    Args:
      x: floating (N, d axes, C).
      capacity: M, at most as many sites as a grid has; 0 for those. Further active
        sites, in row-major order, are dropped.
    """
    size, dims = x.shape[1:-1], x.ndim - 2
    mask = jnp.any(x != 0, axis=-1)
    coordinates, count = _listed(mask, capacity)
    sites = SiteList(coordinates, x, count)
    flat = x.reshape(x.shape[0], math.prod(size), x.shape[-1])
    features = jnp.take_along_axis(
        flat, _flat(coordinates, size)[..., None], axis=1, mode="clip"
    )
    assert coordinates.shape[-1] == dims
    return sites._replace(features=jnp.where(sites.active, features, 0))


def to_dense(sites: SiteList, size: Sequence[int]) -> jax.Array:
    """Grids (N, *size, C) with the features at their sites and 0 elsewhere."""
    table = _table(sites.coordinates, sites.count, size)
    x = _with_zeros(sites.features)
    flat = jnp.take_along_axis(x, table[..., None], axis=1, mode="clip")
    return flat.reshape(x.shape[0], *size, x.shape[-1])


def coarser(
    sites: SiteList, size: Sequence[int], strides: int, capacity: int = 0
) -> SiteList:
    """The cells of `strides` sites a side that hold an active one; features are none.

    Args:
      sites: of grids of a size.
      size: of the grids.
      strides: of all axes.
      capacity: as in `from_dense`; 0 for as many as there can be.
    """
    cells = tuple(-(-n // strides) for n in size)
    found = _table(sites.coordinates // strides, sites.count, cells)
    mask = found.reshape(-1, *cells) < sites.coordinates.shape[1]
    coordinates, count = _listed(mask, capacity or sites.coordinates.shape[1])
    none = jnp.zeros((*coordinates.shape[:2], 0), sites.features.dtype)
    return SiteList(coordinates, none, count)


def offsets(size: int, dims: int) -> np.ndarray:
    """int32 (size^dims, dims): those of a kernel in the order of its elements.

    Example:
      >>> offsets(3, 1).tolist(), offsets(2, 1).tolist()
      ([[-1], [0], [1]], [[0], [1]])
    """
    one = range(-((size - 1) // 2), size // 2 + 1)
    return np.asarray([*itertools.product(one, repeat=dims)], np.int32)


def gather_map(
    inputs: SiteList,
    outputs: SiteList,
    size: Sequence[int],
    reach: np.ndarray,
    strides: int = 1,
) -> jax.Array:
    """Which input site each output site meets at each of J offsets.

    Args:
      inputs: sites of grids of `size`.
      outputs: the same ones, or those of `coarser`.
      size: of the grids of inputs.
      reach: int32 (J, d), offsets.
      strides: of the convolution: output p meets input strides * p + offset.

    Returns:
      int32 (N, output sites, J), rows of the inputs; their number for none.
    """
    none = inputs.coordinates.shape[1]
    wanted = outputs.coordinates[:, :, None] * strides + reach[None, None]
    last = np.asarray(size, np.int32)[None, None, None]
    inside = jnp.all((wanted >= 0) & (wanted < last), axis=-1)
    table = _table(inputs.coordinates, inputs.count, size)
    place = jnp.where(inside, _flat(wanted, size), 0) + _first(*table.shape)
    row = jnp.take(table.reshape(-1), place, mode="clip")
    return jnp.where(inside & outputs.active, row, none)


def gather(x: jax.Array, maps: jax.Array) -> jax.Array:
    """(N, M, C) -> (N, output sites, J, C), 0 where there is no site."""
    flat = _with_zeros(x)
    index = maps + _first(*flat.shape[:2])
    return jnp.take(flat.reshape(-1, x.shape[-1]), index, axis=0, mode="clip")


def convolve(
    x: jax.Array, maps: jax.Array, kernel: jax.Array, *, precision: Any = None
) -> jax.Array:
    """Sparse convolution: y(p) = sum over j of kernel[j]^T x(strides p + offset j).

    One gather, then one product over the axis of sites. Padding and sites without a
    neighbour give exactly 0.

    Args:
      x: floating (N, M, Cin); rows of padding are not looked at.
      maps: of `gather_map`, of the J offsets of the kernel.
      kernel: (J, Cin, Cout), cast to the dtype of `x`.
      precision: as in `jax.numpy.matmul`.

    Returns:
      (N, output sites, Cout) in the dtype of `x`.
    """
    met = gather(x, maps)
    met = met.reshape(*met.shape[:2], -1)
    flat = kernel.astype(x.dtype).reshape(-1, kernel.shape[-1])
    return jnp.matmul(met, flat, precision=precision)


@functools.lru_cache
def shifted(size: int, dims: int) -> np.ndarray:
    """int32 (3^dims, size^dims): where shifted kernels lie in one of size + 2.

    Row o: the elements of a kernel that is moved by offset o of `offsets(3, dims)`.
    """
    wide = {tuple(x): i for i, x in enumerate(offsets(size + 2, dims).tolist())}
    rows = offsets(size, dims)[None] + offsets(3, dims)[:, None]
    return np.asarray([[wide[tuple(x)] for x in row] for row in rows.tolist()])


def convolve_shifted(
    x: jax.Array,
    maps: jax.Array,
    kernel: jax.Array,
    choice: jax.Array,
    where: np.ndarray,
    *,
    precision: Any = None,
) -> jax.Array:
    """Shifted sparse convolution: each group of output channels has its own offset.

    Forward: y_g(p) = sum over j of kernel_g[j]^T x(strides p + offset j + shift of g)
    It takes as many products as without shifts: first those of all sites with all
    elements of the kernel, then a sum of what the outputs of each group meet.

    Args:
      x: as in `convolve`.
      maps: of the kernel of size + 2.
      kernel: as in `convolve`.
      choice: int32 (G,), the row of `where` of each group, G a divisor of Cout; see
        `convolve_supernet` for shares of all rows.
      where: of `shifted`.
      precision: as in `convolve`.
    """
    reach, inputs, outputs = kernel.shape
    groups = choice.shape[0]
    flat = kernel.astype(x.dtype).transpose(1, 0, 2).reshape(inputs, reach * outputs)
    made = jnp.matmul(_with_zeros(x), flat, precision=precision)
    chosen = jnp.asarray(where)[choice].T  # (J, G)
    met = jnp.take(maps, chosen.reshape(-1), axis=-1, mode="clip")
    row = (met + _first(*made.shape[:2])).reshape(*met.shape[:2], reach, groups)
    part = jnp.arange(reach * groups, dtype=jnp.int32).reshape(1, 1, reach, groups)
    parts = made.reshape(-1, outputs // groups)
    index = row * (reach * groups) + part
    y = jnp.sum(jnp.take(parts, index, axis=0, mode="clip"), axis=2)
    return y.reshape(*maps.shape[:2], outputs)


def convolve_supernet(
    x: jax.Array,
    maps: jax.Array,
    kernel: jax.Array,
    share: jax.Array,
    where: np.ndarray,
    *,
    precision: Any = None,
) -> jax.Array:
    """The sum of `convolve_shifted` over all offsets, times the shares of these.

    Convolutions are linear: it is one, of the kernel of size + 2 that the shifted
    kernels sum up to.

    Args:
      x, maps, kernel, where, precision: as in `convolve_shifted`.
      share: float32 (G, 3^d).
    """
    one_hot = np.eye(maps.shape[-1], dtype=np.float32)[where]  # (3^d, J, wide)
    spread = jnp.einsum("go,ojw->gwj", share, one_hot, precision="highest")
    wide = [
        jnp.einsum("wj,jic->wic", spread[g], part, precision="highest")
        for g, part in enumerate(jnp.split(kernel, share.shape[0], axis=-1))
    ]
    return convolve(x, maps, jnp.concatenate(wide, axis=-1), precision=precision)


def _first(n: int, many: int) -> jax.Array:
    """int32 (N, 1, 1): the number of the first of `many` rows of each example."""
    return jnp.arange(n, dtype=jnp.int32)[:, None, None] * many


def _with_zeros(x: jax.Array) -> jax.Array:
    """A row of zeros after the last one."""
    return jnp.pad(x, ((0, 0), (0, 1), (0, 0)))


def _flat(coordinates: jax.Array, size: Sequence[int]) -> jax.Array:
    """Row-major numbers of coordinates (..., d)."""
    found = jnp.zeros(coordinates.shape[:-1], jnp.int32)
    for axis, length in enumerate(size):
        found = found * length + coordinates[..., axis]
    return found


def _listed(mask: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """(coordinates, count) of the first true elements of (N, *size)."""
    size = mask.shape[1:]
    cells = math.prod(size)
    rows = min(capacity or cells, cells)
    seen = jnp.cumsum(mask.reshape(-1, cells).astype(jnp.int32), axis=1)
    place = jnp.arange(1, rows + 1, dtype=jnp.int32)
    number = jax.vmap(lambda row: jnp.searchsorted(row, place, method="scan_unrolled"))(
        seen
    ).astype(jnp.int32)
    axes = []
    for length in reversed(size):
        number, rest = number // length, number % length
        axes.append(rest)
    return jnp.stack(axes[::-1], axis=-1), jnp.minimum(seen[:, -1], rows)


def _table(coordinates: jax.Array, count: jax.Array, size: Sequence[int]) -> jax.Array:
    """int32 (N, cells): the row of each cell in the list, its length for none."""
    n, rows = coordinates.shape[:2]
    cells = math.prod(size)
    number = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[None], (n, rows))
    place = jnp.where(number < count[:, None], _flat(coordinates, size), cells)
    place = place + jnp.arange(n, dtype=jnp.int32)[:, None] * (cells + 1)
    empty = jnp.full(n * (cells + 1), rows, jnp.int32)
    made = empty.at[place.reshape(-1)].min(number.reshape(-1), mode="drop")
    return made.reshape(n, cells + 1)[:, :cells]
