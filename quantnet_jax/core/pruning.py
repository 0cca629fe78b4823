"""Pruning by magnitude: masks, sparse quantizers, and schedules of the pruning rate.

A pruned weight is an exact zero of the latent weights, so that a mask needs no place in
a state: zeros are again the smallest magnitudes of the next step. The schedules are
plain data for `quantnet_jax.core.schedules.from_spec`: pure functions of the step.

Reference: Tian et al., Meta-Learning with Network Pruning, arXiv 2007.03219.
"""

from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number, Scheduled, check, passes
from quantnet_jax.core.qtensor import QTensor, lookup
from quantnet_jax.core.quantizer import (
    Quantizer,
    ScalarOrSchedule,
    as_schedule,
    factory,
)

PyTree = Any
RATE = Scheduled(Number(0, 1, below=True))
"""Part of the weights that is pruned."""


def magnitude_mask(params: PyTree, rate: float | jax.Array) -> PyTree:
    """Which weights are not among the smallest of their tensor.

    Forward: |w| > the k-th smallest |w| of the tensor, k = round(rate size).
    Ties with the k-th are pruned as well; rate 0 prunes nothing.

    Args:
      params: tree of float arrays.
      rate: of the weights that are pruned in each tensor, in [0, 1).

    Returns:
      A tree of bool arrays, False for pruned weights.

    Example:
      >>> magnitude_mask({"w": jnp.asarray([0.5, -0.1, 2.0, -3.0])}, 0.5)["w"].tolist()
      [False, False, True, True]
    """

    def one(w: jax.Array) -> jax.Array:
        size = jnp.sort(jnp.abs(w).reshape(-1))
        count = jnp.round(jnp.asarray(rate, jnp.float32) * w.size).astype(jnp.int32)
        smallest = jnp.where(count > 0, size[count - 1], -1.0)
        return jnp.abs(w) > smallest

    return jax.tree.map(one, params)


@factory
def sparse(q: Quantizer, rate: ScalarOrSchedule) -> Quantizer:
    """A quantizer whose pruned weights are exactly zero.

    Forward: soft(w) m(w) with m(w) = [w != 0] where rate(step) > 0, else 1; hard
      values of w = 0 are the level 0, which is added to the table of `q`.
    Backward: that of `q` times m: pruned weights stay at zero until the rate is 0
      again; then they are trained from zero. So a tensor that starts at zero stays
      there while the rate is above 0.
    Projection: after each update w <- w magnitude_mask(w, rate(step + 1)), after that
      of `q`. So the first step is that of `q` alone.

    Args:
      q: the quantizer; its own table has at most 255 levels.
      rate: of the weights of a tensor that are pruned, in [0, 1).

    Raises:
      ValueError: a rate beyond its range; `q` has a gradient of its own (MetaQuant);
        or, from `hard`, a table of 256 levels.

    Reference: see the top of this file. With a constant rate and w <- w mask after
    each update: iterative hard thresholding.
    """
    if not passes(rate):
        check("rate", rate, RATE)
    if q.gradient is not None:
        raise ValueError(
            f"sparsity cannot be combined with {q!r}, whose gradient is its own"
        )
    now = as_schedule(rate)

    def soft(qparams, w, *, step, key=None):
        kept = (w != 0) | (now(step) <= 0)
        return q.soft(qparams, w, step=step, key=key) * kept.astype(w.dtype)

    def hard(qparams, w):
        made = q.hard(qparams, w)  # of the identity `w` itself, with its zeros
        return _with_zero(made, w == 0) if isinstance(made, QTensor) else made

    def project(qparams, w, *, step):
        if q.project is not None:
            qparams, w = q.project(qparams, w, step=step)
        share = now(step + 1)
        prune = lambda w: w * magnitude_mask(w, share).astype(w.dtype)
        return qparams, jax.lax.cond(share > 0, prune, lambda w: w, w)

    return Quantizer(q.init, soft, hard, q.penalty, None, project)


def _with_zero(qt: QTensor, pruned: jax.Array) -> QTensor:
    """The tensor with a level 0 for pruned weights, its levels in ascending order."""
    count = qt.levels.shape[-1]
    if count > 255:
        raise ValueError(f"a table of {count} levels has no room for that of sparsity")
    zero = jnp.zeros((*qt.levels.shape[:-1], 1), jnp.float32)
    levels = jnp.concatenate([qt.levels, zero], axis=-1)
    order = jnp.argsort(levels, axis=-1)
    place = jnp.argsort(order, axis=-1).astype(jnp.float32)
    codes = jnp.where(pruned, jnp.uint8(count), qt.codes)
    found = QTensor(codes, place, jnp.ones((), jnp.float32))
    levels = jnp.take_along_axis(levels, order, axis=-1)
    return QTensor(lookup(found).astype(jnp.uint8), levels, qt.scale)


def dense_sparse_dense(
    rate: float, *, start: float = 0.3, end: float = 0.9
) -> dict[str, Any]:
    """Pruned once at `start`, released at `end` (DSD).

    Forward: rate(t) = rate for start <= t < end, else 0; t is a fraction of training.

    Returns:
      A specification for `schedules.from_spec`.

    Example:
      >>> from quantnet_jax.core.schedules import from_spec
      >>> schedule = from_spec(dense_sparse_dense(0.3), 100)
      >>> [round(float(schedule(step)), 2) for step in (29, 30, 89, 90)]
      [0.0, 0.3, 0.3, 0.0]
    """
    pieces = ((start, rate), (end, 0.0))
    return {"schedule": "piecewise", "start": 0.0, "boundaries": pieces}


def iterative_hard_thresholding(
    rate: float,
    *,
    first: float = 0.1,
    start: float = 0.2,
    interval: float = 0.2,
    ratio: float = 0.75,
) -> dict[str, Any]:
    """Pruned and released again and again, by growing rates (IHT).

    Forward: from `start` on, in the j-th of n intervals, r_j for its first `ratio` and
      0 for the rest; r_j = first + (rate - first) j / (n - 1).

    Args:
      rate: of the last interval.
      first: rate of the first one.
      start, interval: fractions of training.
      ratio: part of an interval in which pruned weights stay zero.

    Returns:
      A specification for `schedules.from_spec`.

    Reference: the lengths and `first` are those of the code of arXiv 2007.03219 over
    100,000 iterations; how the rate grows is a reconstruction (linear).
    """
    count = max(1, round((1.0 - start) / interval))
    pieces = []
    for j in range(count):
        begin = start + j * interval
        share = first + (rate - first) * j / (count - 1) if count > 1 else rate
        pieces += [(round(begin, 6), round(share, 6))]
        pieces += [(round(begin + ratio * interval, 6), 0.0)]
    return {"schedule": "piecewise", "start": 0.0, "boundaries": tuple(pieces)}
