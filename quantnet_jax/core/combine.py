"""Combinators: quantizers made of quantizers.

Each takes a `Quantizer` and returns one. None of them branches on a method.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from quantnet_jax.core.qtensor import QTensor, dequantize
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    Reparam,
    ScalarOrSchedule,
    as_schedule,
    factory,
)


@factory
def chain(*parts: Reparam | Quantizer) -> Quantizer:
    """Quantizes a composition of continuous maps.

    Args:
      *parts: any number of `Reparam`s, applied from left to right, and a `Quantizer` at
        the end. `qparams` is the tuple of their parameters.

    Raises:
      ValueError: if the last part is not a Quantizer or an earlier one is.
    """
    maps = [part for part in parts[:-1] if isinstance(part, Reparam)]
    q = parts[-1] if parts else None
    if not isinstance(q, Quantizer) or len(maps) != len(parts) - 1:
        got = ", ".join(type(p).__name__ for p in parts)
        raise ValueError(f"chain takes Reparams and, last, one Quantizer; got {got}")
    _plain(q, "chain")

    def init(key, w):
        qparams = []
        for part, k in zip(parts, jax.random.split(key, len(parts)), strict=True):
            qparams.append(part.init(k, w))
            if isinstance(part, Reparam):
                w = part.apply(qparams[-1], w)
        return tuple(qparams)

    def mapped(qparams, w):
        for part, p in zip(maps, qparams[:-1], strict=True):
            w = part.apply(p, w)
        return w

    def soft(qparams, w, *, step, key=None):
        return q.soft(qparams[-1], mapped(qparams, w), step=step, key=key)

    def penalty(qparams, w, *, step):
        return q.penalty(qparams[-1], mapped(qparams, w), step=step)

    hard = lambda qparams, w: q.hard(qparams[-1], mapped(qparams, w))
    return Quantizer(init, soft, hard, penalty)


@factory
def straight_through(
    q: Quantizer, backward: Callable[..., jax.Array] | None = None
) -> Quantizer:
    """Forward: dequantize(q.hard). Backward: the VJP of a surrogate.

    Args:
      q: gives the forward value, and the surrogate unless `backward` is given.
      backward: `(qparams, w, *, step, key) -> array like w`, differentiated in place of
        the forward value; default `q.soft`.

    By `jax.custom_vjp`: `soft + stop_gradient(hard - soft)` is not exact in floats.
    """
    surrogate = q.soft if backward is None else backward

    @jax.custom_vjp
    def forward(qparams, w, step, key):
        return dequantize(q.hard(qparams, w))

    def forward_fwd(qparams, w, step, key):
        _, vjp = jax.vjp(lambda p, v: surrogate(p, v, step=step, key=key), qparams, w)
        return forward(qparams, w, step, key), vjp

    def forward_bwd(vjp, g):
        return (*vjp(g), None, None)

    forward.defvjp(forward_fwd, forward_bwd)
    soft = lambda qparams, w, *, step, key=None: forward(qparams, w, step, key)
    return q._replace(soft=soft)


@factory
def per_channel(q: Quantizer) -> Quantizer:
    """Separate parameters, levels and scale for each output channel (last axis).

    Equal to a loop over `w[..., c]` with split keys; parameters get a new first axis.
    """

    def init(key, w):
        return jax.vmap(q.init, (0, -1))(jax.random.split(key, w.shape[-1]), w)

    def soft(qparams, w, *, step, key=None):
        keys = None if key is None else jax.random.split(key, w.shape[-1])
        one = lambda p, v, k: q.soft(p, v, step=step, key=k)
        return jax.vmap(one, (0, -1, 0), -1)(qparams, w, keys)

    def hard(qparams, w):
        def one(p, v):
            qt = q.hard(p, v)
            shape = qt.scale.shape or (1,) * v.ndim
            return qt.codes, qt.levels, jnp.broadcast_to(qt.scale, shape)

        return QTensor(*jax.vmap(one, (0, -1), (-1, 0, -1))(qparams, w))

    def penalty(qparams, w, *, step):
        one = functools.partial(q.penalty, step=step)
        return jnp.mean(jax.vmap(one, (0, -1))(qparams, w))

    def gradient(qparams, w, g, *, step):
        one = functools.partial(q.gradient, step=step)  # pyright: ignore
        return jax.vmap(one, (0, -1, -1), -1)(qparams, w, g)

    def project(qparams, w, *, step):
        one = functools.partial(q.project, step=step)  # pyright: ignore
        return jax.vmap(one, (0, -1), (0, -1))(qparams, w)

    rules = q.gradient and gradient, q.project and project
    return Quantizer(init, soft, hard, penalty, *rules)


@factory
def scale_by_mean_abs(
    q: Quantizer, *, per: str = "channel", detach: bool = False
) -> Quantizer:
    """Multiplies soft and hard values by mean |w| (BWN / XNOR-Net, arXiv 1603.05279).

    Args:
      q: the quantizer to scale; sees `w` unscaled.
      per: 'channel' (one factor per output channel) or 'tensor'.
      detach: if True the factor gets no gradient.
    """
    mean = _reduction(jnp.mean, per)
    return _scaled(q, lambda w: mean(jnp.abs(w)), detach)


@factory
def scale_by_max(
    q: Quantizer, *, per: str = "channel", detach: bool = False
) -> Quantizer:
    """Multiplies soft and hard values by max |w|; arguments as `scale_by_mean_abs`."""
    largest = _reduction(jnp.max, per)
    return _scaled(q, lambda w: largest(jnp.abs(w)), detach)


@factory
def learned_scale(q: Quantizer, *, per: str = "channel") -> Quantizer:
    """Multiplies soft and hard values by a learned positive factor.

    The parameter is its logarithm, one per output channel or one per tensor, starting
    from log(mean |w|); per tensor even where a rule shares the other parameters.
    """
    _plain(q, "learned_scale")
    mean = _reduction(jnp.mean, per)

    def init(key, w):
        return PerTensor(jnp.log(mean(jnp.abs(w)) + 1e-12)), q.init(key, w)

    def soft(qparams, w, *, step, key=None):
        return q.soft(qparams[1], w, step=step, key=key) * jnp.exp(qparams[0].value)

    def hard(qparams, w):
        qt = q.hard(qparams[1], w)
        return QTensor(qt.codes, qt.levels, qt.scale * jnp.exp(qparams[0].value))

    penalty = lambda qparams, w, *, step: q.penalty(qparams[1], w, step=step)
    return Quantizer(init, soft, hard, penalty)


@factory
def add_penalty(
    q: Quantizer, fn: Callable[..., jax.Array], weight: ScalarOrSchedule = 1.0
) -> Quantizer:
    """Adds `weight(step) * fn(qparams, w, step=step)` to the penalty of `q`."""
    weight = as_schedule(weight)

    def penalty(qparams, w, *, step):
        own = q.penalty(qparams, w, step=step)
        return own + weight(step) * fn(qparams, w, step=step)

    return q._replace(penalty=penalty)


@factory
def bit_planes(q: Quantizer, bits: int) -> Quantizer:
    """A `bits`-bit quantizer from a binary one: each plane quantizes the residual.

    With a_j = 2^j / (2^bits - 1), r = w at first, and j from the highest plane down:
    b_j = q(r), r <- r - a_j b_j, and the value is sum_j a_j b_j. Hard values are the
    2^bits uniform levels of [-1, 1]; soft values are as smooth as those of `q`. Every
    plane has parameters of its own.

    Args:
      q: binary, with levels -1 and +1 and scale 1 (put scalings around the planes).
      bits: 1 to 8.

    Raises:
      ValueError: if `bits` is out of range or `q` is not binary.
    """
    if bits not in range(1, 9):
        raise ValueError(f"bits={bits!r}, expected an integer from 1 to 8")
    _plain(q, "bit_planes")
    planes = [(j, 2**j / (2**bits - 1)) for j in reversed(range(bits))]

    def init(key, w):
        return tuple(q.init(k, w) for k in jax.random.split(key, bits))

    def soft(qparams, w, *, step, key=None):
        keys = [None] * bits if key is None else jax.random.split(key, bits)
        total, residual = jnp.zeros_like(w), w
        for (_, a), p, k in zip(planes, qparams, keys, strict=True):
            b = a * q.soft(p, residual, step=step, key=k)
            total, residual = total + b, residual - b
        return total

    def hard(qparams, w):
        codes, residual = jnp.zeros(w.shape, jnp.uint8), w
        for (j, a), p in zip(planes, qparams, strict=True):
            qt = q.hard(p, residual)
            if qt.levels.shape != (2,):
                found = f"levels of shape {qt.levels.shape}"
                raise ValueError(f"bit_planes needs a binary quantizer, got {found}")
            codes = codes + (qt.codes << jnp.uint8(j))
            residual = residual - a * dequantize(qt)
        return QTensor(codes, uniform_levels(bits), jnp.ones((), jnp.float32))

    def penalty(qparams, w, *, step):
        total, residual = jnp.zeros((), jnp.float32), w
        for (_, a), p in zip(planes, qparams, strict=True):
            total = total + q.penalty(p, residual, step=step)
            residual = residual - a * q.soft(p, residual, step=step)
        return total / bits

    return Quantizer(init, soft, hard, penalty)


@factory
def mix(q: Quantizer, amount: ScalarOrSchedule) -> Quantizer:
    """(1 - a) w + a soft(w) with a = amount(step): a warm-up from float weights.

    `hard` is that of `q`; `amount` must end at 1 for soft and hard to meet.
    """
    amount = as_schedule(amount)

    def soft(qparams, w, *, step, key=None):
        a = amount(step)
        return (1.0 - a) * w + a * q.soft(qparams, w, step=step, key=key)

    return q._replace(soft=soft)


def uniform_levels(bits: int) -> jax.Array:
    """float32[2**bits]: evenly spaced from -1 to 1."""
    n = 2**bits - 1
    return (2.0 * jnp.arange(n + 1, dtype=jnp.float32) - n) / n


def _plain(q: Quantizer, combinator: str) -> None:
    """Refuses rules for latent weights, which are not those that `q` gets."""
    for field in ("gradient", "project"):
        if getattr(q, field) is not None:
            raise ValueError(f"{combinator} cannot retain the `{field}` of a quantizer")


def _scaled(q: Quantizer, factor: Callable, detach: bool) -> Quantizer:
    def soft(qparams, w, *, step, key=None):
        s = jax.lax.stop_gradient(factor(w)) if detach else factor(w)
        return q.soft(qparams, w, step=step, key=key) * s

    def hard(qparams, w):
        qt = q.hard(qparams, w)
        return QTensor(qt.codes, qt.levels, qt.scale * factor(w))

    return q._replace(soft=soft, hard=hard)


def _reduction(reduce: Callable, per: str) -> Callable:
    """`reduce` over each channel or the whole tensor, with `keepdims`."""
    if per not in ("channel", "tensor"):
        raise ValueError(f"per={per!r}, expected 'channel' or 'tensor'")

    def apply(x):
        if x.size == 0:
            raise ValueError(f"cannot scale an empty tensor of shape {x.shape}")
        axes = tuple(range(x.ndim - 1)) if per == "channel" else None
        return reduce(x, axis=axes, keepdims=True)

    return apply
