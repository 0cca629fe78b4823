"""Convolution over lists of active sites: gather maps, products, and shifted kernels.

A list holds the active sites of N grids of d axes, padded to M sites. A gather map says
once for all layers of a resolution which site is whose neighbour, so that a convolution
is one gather and one matrix product over the axis of sites. Sites that are not in the
list are zero and stay so.

Reference: Graham et al., 3D Semantic Segmentation with Submanifold Sparse Convolutional
Networks, arXiv 1711.10275; shifts of groups: BSC-Net, arXiv 2303.15493.
"""

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


class GatherMap(NamedTuple):
    """Which input site each output site meets at each of J offsets, and the reverse.

    Attributes:
      forward: int32 (N, output sites, J), rows of the inputs; their number for none.
      backward: int32 (N, input sites, J), rows of the outputs; their number for none.
    """

    forward: jax.Array
    backward: jax.Array


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
) -> GatherMap:
    """The map of a convolution: output p meets input strides * p + offset.

    Args:
      inputs: sites of grids of `size`.
      outputs: the same ones, or those of `coarser`.
      size: of the grids of inputs.
      reach: int32 (J, d), offsets.
      strides: of the convolution.
    """
    moves = reach[None, None]
    wanted = outputs.coordinates[:, :, None] * strides + moves
    forward = _found(inputs, wanted, size, outputs.active)
    back = inputs.coordinates[:, :, None] - moves
    whole = jnp.all(back % strides == 0, axis=-1)
    cells = tuple(-(-n // strides) for n in size)
    backward = _found(outputs, back // strides, cells, inputs.active & whole)
    return GatherMap(forward, backward)


def gather(x: jax.Array, maps: GatherMap) -> jax.Array:
    """(N, M, C) -> (N, output sites, J, C), 0 where there is no site."""
    flat = _with_zeros(x)
    index = maps.forward + _first(*flat.shape[:2])
    return jnp.take(flat.reshape(-1, x.shape[-1]), index, axis=0, mode="clip")


def convolve(
    x: jax.Array,
    maps: GatherMap,
    kernel: jax.Array,
    choice: jax.Array | None = None,
    *,
    precision: Any = None,
) -> jax.Array:
    """Sparse convolution, of which groups of output channels may be shifted.

    Forward: y_g(p) = sum over j of kernel_g[j]^T x(strides p + offset j + shift of g)
    One product over the axis of sites, with all elements of the kernel, then the sum of
    what each output meets: as many products with shifts as without. Padding and sites
    without a neighbour give exactly 0. The derivative gathers too, for it knows which
    outputs an input has met.

    Args:
      x: floating (N, M, Cin); rows of padding are not looked at.
      maps: of the J offsets of the kernel; with shifts those of one of size + 2.
      kernel: (J, Cin, Cout), cast to the dtype of `x`.
      choice: int32 (G, J), of each group the elements of the larger kernel where its
        own lie, rows of `shifted`; G divides Cout.
      precision: as in `jax.numpy.matmul`.

    Returns:
      (N, output sites, Cout) in the dtype of `x`.
    """
    reach, inputs, outputs = kernel.shape
    flat = kernel.astype(x.dtype).transpose(1, 0, 2).reshape(inputs, reach * outputs)
    made = jnp.matmul(_with_zeros(x), flat, precision=precision)
    groups = 1
    if choice is not None:
        groups = choice.shape[0]
        index = choice.T.reshape(-1)
        maps = GatherMap(*(jnp.take(m, index, axis=-1, mode="clip") for m in maps))
    y = _meet(made.reshape(*made.shape[:2], reach, groups, -1), maps)
    return y.reshape(*y.shape[:2], outputs)


@jax.custom_vjp
def _meet(made: jax.Array, maps: GatherMap) -> jax.Array:
    """(N, M + 1, J, G, c), the last row zeros -> (N, output sites, G, c)."""
    n, rows, reach, groups, channels = made.shape
    row = (maps.forward + _first(n, rows)) * (reach * groups)
    index = row + np.arange(reach * groups, dtype=np.int32)[None, None]
    met = jnp.take(made.reshape(-1, channels), index, axis=0, mode="clip")
    return jnp.sum(met.reshape(n, -1, reach, groups, channels), axis=2)


def _meet_fwd(made, maps):
    return _meet(made, maps), (made, maps)


def _meet_bwd(kept, g):
    made, maps = kept  # of `made` the shape alone, so it need not be kept
    n, rows, reach, groups, channels = made.shape
    g = jnp.pad(g, ((0, 0), (0, 1), (0, 0), (0, 0)))
    none = g.shape[1] - 1
    back = jnp.pad(maps.backward, ((0, 0), (0, 1), (0, 0)), constant_values=none)
    row = (back + _first(n, g.shape[1])) * groups
    index = row + np.tile(np.arange(groups, dtype=np.int32), reach)[None, None]
    met = jnp.take(g.reshape(-1, channels), index, axis=0, mode="clip")
    zero = lambda i: np.zeros(i.shape, jax.dtypes.float0)
    return met.reshape(made.shape), jax.tree.map(zero, maps)


_meet.defvjp(_meet_fwd, _meet_bwd)


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


def _found(
    sites: SiteList, wanted: jax.Array, size: Sequence[int], real: jax.Array
) -> jax.Array:
    """Rows of coordinates (N, A, J, d) in a list, its length for none."""
    last = np.asarray(size, np.int32)[None, None, None]
    inside = jnp.all((wanted >= 0) & (wanted < last), axis=-1)
    table = _table(sites.coordinates, sites.count, size)
    place = jnp.where(inside, _flat(wanted, size), 0) + _first(*table.shape)
    row = jnp.take(table.reshape(-1), place, mode="clip")
    return jnp.where(inside & real, row, sites.coordinates.shape[1])
