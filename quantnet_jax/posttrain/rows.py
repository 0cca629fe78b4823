"""From the operands of a product to weights (N, M) and inputs (rows, N), by groups."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Take = Callable[[int], jax.Array] | None
Reader = Callable[[jax.Array, Take], jax.Array]


def of_dot(eqn, side: int, places: np.ndarray) -> tuple[np.ndarray, Reader]:
    """Of a matrix product; batch axes of the weights count groups.

    Args:
      eqn: a `dot_general`.
      side: which operand the weights are.
      places: any array of their shape.

    Returns:
      `places` as (groups, N, M); a function of the other operand that gives
      (groups, rows, N): of all rows, or of `take(number of rows)`.
    """
    contracted, batch = eqn.params["dimension_numbers"]
    own, other = (
        (contracted[side], batch[side]),
        (contracted[1 - side], batch[1 - side]),
    )

    def arrange(x, inputs, groups, last: bool):
        free = [i for i in range(x.ndim) if i not in (*inputs, *groups)]
        order = (*groups, *inputs, *free) if last else (*groups, *free, *inputs)
        sizes = [math.prod(x.shape[i] for i in axes) for axes in (groups, inputs, free)]
        g, n, m = sizes
        return x.transpose(order).reshape((g, n, m) if last else (g, m, n))

    def read(x: jax.Array, take: Take = None) -> jax.Array:
        x = arrange(x, *other, last=False).astype(jnp.float32)
        return x if take is None else x[:, take(x.shape[1])]

    return arrange(places, *own, last=True), read


def of_conv(eqn, side: int, places: np.ndarray) -> tuple[np.ndarray | None, Reader]:
    """Of a convolution: patches, whose features are (input channel, *kernel offset).

    Args and result as `of_dot`; (None, ...) where the weights are not the kernel.
    """
    p = eqn.params
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    if side != 1 or p["batch_group_count"] != 1:
        return None, lambda x, take=None: x
    out, into, *window = numbers.rhs_spec
    kernel = places.transpose(into, *window, out)
    units = kernel.shape[-1] // groups
    matrix = kernel.reshape(-1, groups, units).transpose(1, 0, 2)
    size = kernel.shape[1:-1]
    sites = [eqn.outvars[0].aval.shape[i] for i in numbers.out_spec[2:]]

    def read(x: jax.Array, take: Take = None) -> jax.Array:
        batch, channel, *space = numbers.lhs_spec
        x = x.astype(jnp.float32).transpose(batch, *space, channel)
        edges = zip(p["padding"], p["lhs_dilation"], strict=True)
        pads = [(0, 0, 0), *((a, b, d - 1) for (a, b), d in edges), (0, 0, 0)]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), pads)
        kept = None if take is None else take(x.shape[0] * math.prod(sites))
        taken = []
        for offset in itertools.product(*map(range, size)):
            starts = [o * d for o, d in zip(offset, p["rhs_dilation"], strict=True)]
            strides, at = p["window_strides"], zip(starts, sites, strict=True)
            ends = [a + (n - 1) * s + 1 for (a, n), s in zip(at, strides, strict=True)]
            part = jax.lax.slice(
                x, (0, *starts, 0), (x.shape[0], *ends, x.shape[-1]), (1, *strides, 1)
            )
            part = part.reshape(-1, x.shape[-1])
            taken.append(part if kept is None else part[kept])
        patches = jnp.stack(taken, axis=-1)  # (rows, channels, offsets)
        patches = patches.reshape(len(patches), groups, -1)
        return patches.transpose(1, 0, 2)

    return matrix, read
