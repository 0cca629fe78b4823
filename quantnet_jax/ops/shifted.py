"""Shifted kernels of sparse convolutions: which there are, and a search among them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.ops.sparse import GatherMap, gather, offsets


@functools.lru_cache
def shifted(size: int, dims: int) -> np.ndarray:
    """int32 (3^dims, size^dims): where shifted kernels lie in one of size + 2.

    Row o: the elements of a kernel that is moved by offset o of `offsets(3, dims)`.
    """
    wide = {tuple(x): i for i, x in enumerate(offsets(size + 2, dims).tolist())}
    rows = offsets(size, dims)[None] + offsets(3, dims)[:, None]
    return np.asarray([[wide[tuple(x)] for x in row] for row in rows.tolist()])


def supernet(
    x: jax.Array,
    maps: GatherMap,
    kernel: jax.Array,
    share: jax.Array,
    where: np.ndarray,
    *,
    precision: Any = None,
) -> jax.Array:
    """The sum of shifted convolutions over all offsets, times the shares of these.

    Convolutions are linear: it is one, of the kernel of size + 2 that the shifted
    kernels sum up to.

    Args:
      x, kernel, precision: as in `convolve`.
      maps: of the kernel of size + 2.
      share: float32 (G, 3^d).
      where: of `shifted`.
    """
    reach = maps.forward.shape[-1]
    one_hot = np.eye(reach, dtype=np.float32)[where]  # (3^d, J, wide)
    spread = jnp.einsum("go,ojw->gwj", share, one_hot, precision="highest")
    wide = [
        jnp.einsum("wj,jic->wic", spread[g], part, precision="highest")
        for g, part in enumerate(jnp.split(kernel, share.shape[0], axis=-1))
    ]
    flat = jnp.concatenate(wide, axis=-1).astype(x.dtype)
    met = gather(x, maps).reshape(x.shape[0], -1, reach * x.shape[-1])
    return jnp.matmul(met, flat.reshape(-1, flat.shape[-1]), precision=precision)
