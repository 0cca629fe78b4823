"""What a site of a network calls: a quantizer of activations, as pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.core.combine import straight_through
from quantnet_jax.core.qtensor import QTensor, dequantize
from quantnet_jax.core.quantizer import Quantizer, no_penalty
from quantnet_jax.core.surrogates import half_up
from quantnet_jax.quantizers.multibit.learned_clip import SMALLEST as SMALLEST

PyTree = Any


class ActivationQuantizer(NamedTuple):
    """A quantizer of activations; its first four fields are those of a `Quantizer`.

    Attributes:
      init: `(key, x) -> qparams`, what is learned; `x` are real activations.
      soft: `(qparams, x, *, step, key=None) -> like x`, what training differentiates.
      hard: `(qparams, x) -> QTensor`.
      penalty: `(qparams, x, *, step) -> float32 scalar`, added to the loss.
      value: `(qparams, x) -> like x`, what `hard` dequantizes to, by plain arithmetic:
        evaluation and deployment compute it. A look-up of every activation in a table
        is slow on some accelerators.
      observe: None, or `(qparams, x, *, step) -> change`, a tree like `qparams`. The
        sum of the changes of all training steps (their mean over devices) is running
        state, which is added to what is learned: all functions get the sum as
        `qparams`. Return zeros to freeze it.
    """

    init: Callable[..., PyTree]
    soft: Callable[..., jax.Array]
    hard: Callable[..., QTensor]
    penalty: Callable[..., jax.Array]
    value: Callable[..., jax.Array]
    observe: Callable[..., PyTree] | None = None

    # The other fields of a `Quantizer`, which only weights have a use for.
    gradient = None
    project = None

    __repr__ = Quantizer.__repr__


def as_activation(q: Quantizer | ActivationQuantizer) -> ActivationQuantizer:
    """Any quantizer as one of activations; by itself it has no running state."""
    if isinstance(q, ActivationQuantizer):
        return q
    return ActivationQuantizer(
        *(q.init, q.soft, q.hard, q.penalty),
        value=lambda qparams, x: dequantize(q.hard(qparams, x)),
    )


def straight_through_activation(
    *,
    init: Callable,
    value: Callable,
    hard: Callable,
    surrogate: Callable,
) -> ActivationQuantizer:
    """Forward: `value`. Backward: the VJP of `surrogate`, a `soft`."""
    q = straight_through(Quantizer(init, surrogate, value, no_penalty))
    return ActivationQuantizer(init, q.soft, hard, no_penalty, value)


def uniform(
    bits: int,
    *,
    init: Callable,
    position: Callable,
    scale: Callable,
    surrogate: Callable,
    signed: bool = False,
) -> ActivationQuantizer:
    """Values k scale(qparams), the integer k in 0 ... n = 2^bits - 1 near `position`.

    Args:
      bits: of a code.
      init, surrogate: as in `straight_through_activation`.
      position: `(qparams, x) -> like x`, halves are rounded up.
      scale: `qparams -> float32 scalar`.
      signed: values (2 k - n) scale(qparams) in place of these.
    """
    n = steps(bits)

    level = (lambda k: 2.0 * k - n) if signed else (lambda k: k)

    def codes(qparams, x):
        return half_up(jnp.clip(position(qparams, x), 0.0, n))

    def hard(qparams, x):
        levels = level(jnp.arange(n + 1, dtype=jnp.float32))
        return QTensor(codes(qparams, x).astype(jnp.uint8), levels, scale(qparams))

    return straight_through_activation(
        init=init,
        value=lambda qparams, x: level(codes(qparams, x)) * scale(qparams),
        hard=hard,
        surrogate=surrogate,
    )


def guard(x: jax.Array) -> jax.Array:
    """`x`, not below `SMALLEST`."""
    return jnp.maximum(x, SMALLEST)


def steps(bits: int) -> int:
    """2^bits - 1."""
    return 2**bits - 1
