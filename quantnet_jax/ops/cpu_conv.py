"""Convolutions that XLA's CPU backend is slow at, in another form where it trains.

Sums of shifted slices are many times faster than its depthwise convolution, forward and
in both gradients, and so is a matrix product than its kernel gradient of a 1x1
convolution. The kernel gradient of other kernels is summed over groups of images: XLA
turns both of its arrays so that images come last, and computes what they are made of
again for it, which a part that fits a cache makes cheap. Products of shifted slices are
slower (`python -m benchmarks.kernel_gradient`).
"""

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Pads = Sequence[tuple[int, int]]

_FOLDED = 8
"""Images that are left when a sum over images goes on as an ordinary reduction."""

_IMAGES = 16
"""Of a group in the kernel gradient of a convolution, where that makes 4 to 16 groups:
each is a convolution more to compile."""


_DIVIDED = contextvars.ContextVar("divided", default=False)


@contextlib.contextmanager
def divided(images: bool) -> Iterator[None]:
    """Traces convolutions in XLA's form if one program sees images of several devices.

    The other forms slice the images, so that parts of them would be sent around.
    """
    token = _DIVIDED.set(images)
    try:
        yield
    finally:
        _DIVIDED.reset(token)


def convolve(
    x: jax.Array,
    w: jax.Array,
    strides: tuple[int, int],
    padding: str | Pads,
    groups: int,
    precision: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` of NHWC with HWIO; on CPUs with a faster derivative.

    Where float32 is differentiated by reverse mode and compiled for a CPU, depthwise
    and 1x1 kernels, and others in batches of 64 and more, take another form, equal to
    rounding, which has no forward-mode derivative. Programs for other platforms, and
    those that are not differentiated, are those of `lax.conv_general_dilated`.

    Args:
      x: (N, H, W, Cin).
      w: (kh, kw, Cin / groups, Cout), of the dtype of `x`.
      strides: two positive integers.
      padding: 'SAME', 'VALID' or two pairs.
      groups: of channels.
      precision: as in `lax.conv_general_dilated`.
    """
    pads = tuple(
        map(tuple, lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, padding))
        if isinstance(padding, str)
        else map(tuple, padding)
    )
    depthwise = groups > 1 and w.shape[2] == 1
    # The number of images may be a symbol, of an export.
    many = isinstance(x.shape[0], int) and x.shape[0] >= 4 * _IMAGES
    whole = groups == 1 and (many or _is_pointwise(w, pads))
    slow = x.dtype != jnp.float32 or _DIVIDED.get()
    faster = not slow and (depthwise or whole)
    return (_faster if faster else plain)(x, w, strides, pads, groups, precision)


def _is_pointwise(w: jax.Array, pads: Sequence) -> bool:
    return w.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0))


def plain(x, w, strides, pads, groups, precision):
    """As XLA has it."""
    return lax.conv_general_dilated(
        x,
        w,
        strides,
        pads,
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _faster(x, w, *given):
    return plain(x, w, *given)


def _forward(x, w, *given):
    ours = _depthwise if given[2] > 1 else plain
    y = lax.platform_dependent(
        x,
        w,
        cpu=lambda x, w: ours(x, w, *given),
        default=lambda x, w: plain(x, w, *given),
    )
    return y, (x, w)


def _backward(strides, pads, groups, precision, arrays, ct):
    given = (strides, pads, groups, precision)
    forward, kernel = _depthwise, _depthwise_gradient
    if groups == 1:
        forward, kernel = plain, grouped_gradient
        if _is_pointwise(arrays[1], pads):
            kernel = _pointwise_gradient

    def default(x, w, ct):
        return jax.vjp(lambda x, w: plain(x, w, *given), x, w)[1](ct)

    def cpu(x, w, ct):
        (dx,) = jax.vjp(lambda x: forward(x, w, *given), x)[1](ct)
        return dx, kernel(x, w, ct, *given)

    return lax.platform_dependent(*arrays, ct, cpu=cpu, default=default)


_faster.defvjp(_forward, _backward)


def slices(x: jax.Array, size, strides, pads, shape) -> list[jax.Array]:
    """What each position of the kernel sees: kh * kw arrays of the output's shape."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    (sh, sw), (height, width) = strides, shape
    return [
        x[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
        for i in range(size[0])
        for j in range(size[1])
    ]


def _output_shape(x, w, strides, pads) -> tuple[int, int]:
    sizes = zip(x.shape[1:3], w.shape[:2], strides, pads, strict=True)
    height, width = ((n + sum(p) - k) // s + 1 for n, k, s, p in sizes)
    return height, width


def as_product(x: jax.Array, w: jax.Array, strides: int, pads: Pads) -> jax.Array:
    """A convolution without groups as one matrix product of shifted slices.

    For loops, and for `vmap` over kernels, where XLA's CPU backend is many times slower
    at its own.

    Args:
      x: (N, H, W, Cin).
      w: (kh, kw, Cin, Cout), of the dtype of `x`.
      strides: of both axes.
      pads: zeros before and after each axis.
    """
    both = (strides, strides)
    parts = slices(x, w.shape[:2], both, pads, _output_shape(x, w, both, pads))
    return jnp.matmul(jnp.concatenate(parts, axis=-1), w.reshape(-1, w.shape[3]))


def _depthwise(x, w, strides, pads, groups, precision):
    """y[n, i, o] = sum_k x[n, i + k, o // m] w[k, o], for m outputs of each input."""
    x = jnp.repeat(x, w.shape[3] // groups, axis=3)
    parts = slices(x, w.shape[:2], strides, pads, _output_shape(x, w, strides, pads))
    rows = w.reshape(-1, 1, 1, 1, w.shape[3])
    return sum(part * row for part, row in zip(parts, rows, strict=True))


def _depthwise_gradient(x, w, ct, strides, pads, groups, precision):
    x = jnp.repeat(x, w.shape[3] // groups, axis=3)
    parts = slices(x, w.shape[:2], strides, pads, ct.shape[1:3])
    sums = [jnp.sum(_fold(part * ct), axis=(0, 1, 2)) for part in parts]
    return jnp.stack(sums).reshape(w.shape)


def _pointwise_gradient(x, w, ct, strides, pads, groups, precision):
    seen = x[:, :: strides[0], :: strides[1]]
    flat = lambda y: y.reshape(-1, y.shape[3])
    product = jnp.matmul(flat(seen).T, flat(ct), precision=precision)
    return product.reshape(w.shape)


def grouped_gradient(x, w, ct, *given):
    """The kernel gradients of XLA of groups of images, summed."""
    count = min(x.shape[0] // _IMAGES, 16)
    ends = [x.shape[0] * i // count for i in range(count + 1)]
    parts = [slice(*pair) for pair in itertools.pairwise(ends)]
    pull = lambda x: jax.vjp(lambda w: plain(x, w, *given), w)[1]
    return sum(pull(x[part])(ct[part])[0] for part in parts)


def _fold(x: jax.Array) -> jax.Array:
    """Adds halves of the images: whole arrays, which the backend vectorizes."""
    while x.shape[0] > _FOLDED:
        half, odd = divmod(x.shape[0], 2)
        rest = x[2 * half :]
        x = x[:half] + x[half : 2 * half]
        x = x.at[:odd].add(rest) if odd else x
    return x
