"""Relaxed quantization: weights as random grid points (RQ, RQ-ST)."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number
from quantnet_jax.core.qtensor import QTensor, encode
from quantnet_jax.core.quantizer import (
    PerTensor,
    PyTree,
    Quantizer,
    as_schedule,
    factory,
    no_penalty,
)
from quantnet_jax.quantizers.multibit.uniform import rms
from quantnet_jax.quantizers.options import Sharpness

GridBits = Annotated[int, Number(2, 4, whole=True)]
"""Of a code: every grid point is paid for in memory."""
EPS = 1e-12
SMALLEST_ODDS = 1e-30


class Grid(NamedTuple):
    """The grid a {-2^(bits-1), ..., 2^(bits-1) - 1} + b, and the noise around weights.

    Attributes:
      points: float32[2^bits], rising.
      width: a, between two points.
      noise: sigma, the scale of a logistic distribution.
    """

    points: jax.Array
    width: jax.Array
    noise: jax.Array


def start(w: jax.Array, bits: int) -> PyTree:
    """{'width', 'noise': logarithms, 'offset'} that suit normal weights.

    The grid reaches 2, 2.5 and 3 times the root mean square at 2, 3 and 4 bits; the
    noise is a third of its width.
    """
    reach = {2: 2.0, 3: 2.5, 4: 3.0}[bits] * rms(w) + EPS
    width = jnp.log(reach / 2 ** (bits - 1))
    zero = jnp.zeros((), jnp.float32)
    return {"width": width, "noise": width - jnp.log(jnp.float32(3)), "offset": zero}


def grid(p: PyTree, bits: int) -> Grid:
    """The grid of learned parameters."""
    whole = jnp.arange(2**bits, dtype=jnp.float32) - 2 ** (bits - 1)
    width = jnp.maximum(jnp.exp(p["width"]), EPS)
    noise = jnp.maximum(jnp.exp(p["noise"]), EPS / 100)
    return Grid(width * whole + p["offset"], width, noise)


def odds(w: jax.Array, g: Grid) -> jax.Array:
    """Probability of each grid point for weights w + logistic noise, w.shape + (L,).

    pi_i = F(g_i + a/2) - F(g_i - a/2), F(t) = sigmoid((t - w) / sigma), over their sum.
    Weights beyond the grid's last cells are taken to be on the edge.
    """
    low, high = g.points[0] - g.width / 2, g.points[-1] + g.width / 2
    # Not jnp.clip, which halves the gradient on the edge.
    w = jnp.where(w < low, low, jnp.where(w > high, high, w))[..., None]
    edges = jnp.concatenate([g.points - g.width / 2, high[None]])
    far = (edges.reshape((1,) * (w.ndim - 1) + (-1,)) - w) / g.noise
    # Differences near 0, not near 1: which of two far points is likelier counts where
    # the ones between are dropped.
    side = jnp.where(far[..., :-1] > 0, -1.0, 1.0)
    below, above = (jax.lax.logistic(side * x) for x in (far[..., :-1], far[..., 1:]))
    mass = side * (above - below) + SMALLEST_ODDS
    return mass / jnp.sum(mass, axis=-1, keepdims=True)


@jax.custom_vjp
def instead(soft: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, with the gradient of `soft`."""
    return value


instead.defvjp(lambda soft, value: (value, value), lambda v, g: (g, jnp.zeros_like(v)))


@factory
def rq(
    *,
    bits: GridBits = 2,
    sharpness: Sharpness = 1.0,
    temperature: Annotated[float, Number(1e-3, 1e3)] = 1.0,
    straight: bool = False,
) -> Quantizer:
    """Relaxed quantization, 2 to 4 bits: a mixture of grid points, drawn at random.

    Forward: sum_i z_i g_i, g the grid a {-2^(bits-1), ..., 2^(bits-1) - 1} + b, z =
      softmax((log pi + u) / t), u Gumbel noise, t the temperature; pi_i =
      sigmoid((g_i + a/2 - w) / s) - sigmoid((g_i - a/2 - w) / s), over their sum, s =
      sigma / sharpness(step). With `straight` (RQ-ST) the point of the largest z.
      Deployed: the nearest grid point. Without a key u = 0.
    Backward: exact, of the mixture (RQ-ST too), for a, b and sigma as well.
    Learned: log a, b and log sigma, one per tensor; the grid starts at 2 to 3 times
      the root mean square (by the width), b at 0, sigma at a / 3.

    Reference: Louizos et al., Relaxed Quantization, arXiv 1810.01875.
    Deviations: the sharpness, which ends the noise; weights beyond the grid are on its
    edge.

    Args:
      bits: 2 to 4.
      sharpness: positive; a number or a schedule of the step.
      temperature: t, positive.
      straight: RQ-ST.
    """
    sharpness = as_schedule(sharpness)

    def soft(qparams, w, *, step, key=None):
        g = grid(qparams.value, bits)
        pi = odds(w, g._replace(noise=g.noise / sharpness(step)))
        gumbel = jax.random.gumbel
        noise = jnp.zeros_like(pi) if key is None else gumbel(key, pi.shape, pi.dtype)
        z = jax.nn.softmax((jnp.log(pi) + noise) / temperature, axis=-1)
        mixture = jnp.sum(z * g.points.reshape((1,) * w.ndim + (-1,)), axis=-1)
        return instead(mixture, g.points[jnp.argmax(z, -1)]) if straight else mixture

    def hard(qparams, w):
        points = grid(qparams.value, bits).points
        return QTensor(encode(w, points), points, jnp.ones((), jnp.float32))

    init = lambda key, w: PerTensor(start(w, bits))
    return Quantizer(init, soft, hard, no_penalty)
