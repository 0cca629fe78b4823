"""QuantNet's differentiable sub-network: encode, nonlinearity, compress.

Reconstruction (ours): the layers of the sub-network of QuantNet (arXiv 2009.04626) are
not public; that it is differentiable, takes the float weights and outputs the binary
ones is. Everything here is ordinary smooth arithmetic.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Choice, Number, checked
from quantnet_jax.core.quantizer import Reparam, no_params
from quantnet_jax.quantizers.options import Width

EXACT = jax.lax.Precision.HIGHEST
"""Float32 products everywhere: accelerators' default would move weights across zero."""
UNITS = ("weight", "slice", "filter", "conv")
NONLINEARITIES = {
    "linear": lambda x: x,
    "tanh": jnp.tanh,
    "silu": lambda x: x * jax.lax.logistic(x),
    "relu": lambda x: jnp.maximum(x, 0.0),
}
"""Written out, because those of `jax.nn` carry custom derivative rules."""
Unit = Annotated[str, Choice(UNITS)]
Depth = Annotated[int, Number(1, 64, whole=True)]
Nonlinearity = Annotated[str, Choice(tuple(NONLINEARITIES))]
Window = Annotated[int, Number(1, 31, whole=True)]


def conflict(*, unit: str, width: int, window: int, **others: object) -> str:
    """What is wrong with options of `subnet` that are fine alone; '' for nothing."""
    if unit == "conv" and width > 16:
        return (
            f"width={width}, expected at most 16 with unit='conv', where it multiplies "
            "the number of input channels"
        )
    return "" if window % 2 else f"window={window}, expected an odd number"


def normalize(
    kind: str = "rms", *, divisor: float = 1.0, eps: float = 1e-12
) -> Reparam:
    """Normalizes each output channel (last axis); differentiated through.

    Without it the sub-network could undo the sharpness schedule by growing.

    Args:
      kind: 'rms' (w / root mean square), 'standard' (zero mean, unit standard
        deviation) or 'none'.
      divisor: divides the normalized result (not that of 'none', which leaves `w` as it
        is); the width of the quantizer's range in units of the root mean square.
      eps: added to the mean square; all-zero channels stay zero.
    """
    if kind not in ("rms", "standard", "none"):
        raise ValueError(
            f"`norm` is {kind!r}, expected one of ['none', 'rms', 'standard']"
        )

    def apply(rparams, w):
        del rparams
        if kind == "none":
            return w
        axes = tuple(range(w.ndim - 1))
        if kind == "standard":
            w = w - jnp.mean(w, axes, keepdims=True)
        mean_square = jnp.mean(w * w, axes, keepdims=True)
        return w * jax.lax.rsqrt(mean_square + eps) / divisor

    return Reparam(no_params, apply)


@checked(together=conflict)
def subnet(
    *,
    unit: Unit = "slice",
    width: Width = 64,
    depth: Depth = 1,
    nonlinearity: Nonlinearity = "tanh",
    skip: bool = True,
    window: Window = 1,
) -> Reparam:
    """The sub-network: unit u -> encode to `width` -> nonlinearity -> compress to u.

    h = phi(A u + a), `depth - 1` hidden layers of the same width, c = B h + b, and with
    `skip` c + u. With `skip` B starts at zero, so that the map starts as the identity.

    Args:
      unit: what the sub-network sees at once: 'weight' (one number), 'slice' (the k*k
        numbers of one input and one output channel; of 1x1 and dense kernels, where
        that is one number, the filter), 'filter' (all numbers of one output channel) or
        'conv' (a convolution over the kernel's plane with the input channels as
        features; `width` then multiplies their number, at most 16).
      width: of the latent space, at least 1.
      depth: hidden layers, at least 1.
      nonlinearity: 'tanh', 'silu', 'relu' or 'linear'.
      skip: whether the unit is added to the compressed output.
      window: spatial size of the convolutions of unit 'conv', odd.

    Returns:
      A `Reparam` for kernels of rank 2 (in, out) and up (..., in, out); a dense kernel
      counts as a 1x1 convolution. Parameters: a tuple of {'w', 'b'}, float32.

    Raises:
      ValueError: for a value that is not in its range.
    """
    phi = NONLINEARITIES[nonlinearity]

    def init(key, w):
        _check_rank(w)
        size, hidden, taps = _sizes(_unit_of(w, unit), width, window, w.shape)
        sizes = [size] + [hidden] * depth + [size]
        layers = []
        for n, (k, m) in enumerate(
            zip(jax.random.split(key, depth + 1), sizes, strict=False)
        ):
            last = n == depth
            spread = 0.0 if last and skip else (m * taps**2) ** -0.5
            shape = (taps, taps) * (unit == "conv") + (m, sizes[n + 1])
            weights = spread * jax.random.normal(k, shape, jnp.float32)
            layers.append({"w": weights, "b": jnp.zeros(sizes[n + 1], jnp.float32)})
        return tuple(layers)

    def apply(rparams, w):
        _check_rank(w)
        of_w = _unit_of(w, unit)
        size, *_ = _sizes(of_w, width, window, w.shape)
        forward = _convolve if of_w == "conv" else _contract
        u = _to_plane(w) if of_w == "conv" else _to_units(w, size)
        h = u
        for n, layer in enumerate(rparams):
            h = forward(layer, h)
            h = phi(h) if n < depth else h
        c = h + u if skip else h
        return c.reshape(w.shape) if of_w == "conv" else _from_units(c, w.shape)

    return Reparam(init, apply)


def _unit_of(w: jax.Array, unit: str) -> str:
    """A map of single numbers alone could move many of them to zero, and leave them."""
    return "filter" if unit == "slice" and w[..., 0, 0].size == 1 else unit


def _sizes(unit: str, width: int, window: int, shape: tuple[int, ...]):
    """(numbers in a unit, hidden size, spatial taps) for a kernel of `shape`."""
    *spatial, channels, _ = shape
    plane = 1
    for n in spatial:
        plane *= n
    if unit == "conv":
        return channels, width * channels, window
    size = {"weight": 1, "slice": plane, "filter": plane * channels}[unit]
    return size, width, 1


def _to_plane(w: jax.Array) -> jax.Array:
    """(height, width, channels, filters)."""
    *spatial, channels, filters = w.shape
    return w.reshape(spatial[0] if spatial else 1, -1, channels, filters)


def _to_units(w: jax.Array, size: int) -> jax.Array:
    """(unit size, units): contracting the first axis moves no weight of a filter.

    One filter after another: devices that divide the filters have whole units.
    """
    columns = jnp.swapaxes(w.reshape(size, -1, w.shape[-1]), 1, 2)
    return columns.reshape(size, -1)


def _from_units(c: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverse of `_to_units`."""
    return jnp.swapaxes(c.reshape(len(c), shape[-1], -1), 1, 2).reshape(shape)


def _contract(layer: dict, h: jax.Array) -> jax.Array:
    """(n, units) -> (m, units) for weights (n, m)."""
    return jnp.matmul(layer["w"].T, h, precision=EXACT) + layer["b"][:, None]


def _convolve(layer: dict, h: jax.Array) -> jax.Array:
    out = jax.lax.conv_general_dilated(
        h,
        layer["w"],
        (1, 1),
        "SAME",
        dimension_numbers=("HWCN", "HWIO", "HWCN"),
        precision=EXACT,
    )
    return out + layer["b"].reshape(1, 1, -1, 1)


def _check_rank(w) -> None:
    if w.ndim < 2:
        raise ValueError(
            f"a sub-network quantizes kernels of rank 2 or more, got shape {w.shape}"
        )
