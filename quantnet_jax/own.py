"""Calls for a training loop of your own: update, gap, BatchNorm recalibration."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from quantnet_jax.core.quantizer import Quantizer, ScalarOrSchedule, as_schedule
from quantnet_jax.evaluation.recalibration import average_statistics
from quantnet_jax.logging.scores import Unit
from quantnet_jax.trees.guard import unguarded
from quantnet_jax.trees.tree import dequantize_tree

if TYPE_CHECKING:
    import optax

PyTree = Any
META_LEARNING_RATE = 3e-4
"""Of Adam, the default optimizer of what quantizers learn: slow beside the weights."""
FAR = 2.0**20
"""Running statistics from which the momentum is read: far from those of any batch."""


class Update(NamedTuple):
    """A pair of pure functions, see `make_update`.

    Attributes:
      init: `(params, qparams) -> state`.
      step: `(loss, params, qparams, state, *args, key=None) -> (params, qparams, state,
        value)`.
    """

    init: Callable[..., "UpdateState"]
    step: Callable[..., tuple]


class UpdateState(NamedTuple):
    """What an update carries from step to step.

    Attributes:
      step: int32 scalar, updates so far: the `step` of `Quantizer.soft`.
      opt_state: of both optimizers.
    """

    step: jax.Array
    opt_state: Any


class Gap(NamedTuple):
    """Scores of soft and hard weights.

    Attributes:
      soft, hard: scores.
      gap: by how much hard is worse than soft.
    """

    soft: float
    hard: float
    gap: float

    def __repr__(self) -> str:
        return f"Gap(soft={self.soft:.4g}, hard={self.hard:.4g}, gap={self.gap:.4g})"


def make_update(
    q: Quantizer,
    tx: "optax.GradientTransformation",
    meta: "optax.GradientTransformation | None" = None,
    *,
    learning_rate: ScalarOrSchedule | None = None,
    has_aux: bool = False,
) -> Update:
    """One training step of weights and quantizers, for any loss and any model.

    Forward: loss(soft(qparams, params), *args) + penalty(qparams, params).
    Backward: the gradient of that, with respect to both; of a quantizer with a
      `gradient` that rule, learned through the update (`Quantizer.gradient`). After
      the update `Quantizer.project`, where there is one.

    It is the step of the training program: the same functions compute it.

    Args:
      q: of `tree_quantizer`.
      tx: optimizer of the weights.
      meta: optimizer of `qparams`; default Adam with a learning rate of 3e-4.
      learning_rate: that of `tx`, a number or a schedule of the step; for quantizers
        with a `gradient` alone (MetaQuant), which differentiate the update.
      has_aux: whether `loss` returns (loss, aux), such as new BatchNorm statistics.

    Returns:
      `init(params, qparams)` and `step(loss, params, qparams, state, *args, key=None)`.
      `loss(weights, *args)` returns a scalar; `key` is for stochastic quantizers. The
      value is the loss with the penalty, or with `has_aux` (that, aux). Both are pure:
      jit them, with `loss` static or in your own function.

    Raises:
      ValueError: a quantizer with a `gradient`, and no `learning_rate`.

    Example:
      >>> import optax
      >>> from quantnet_jax import Rule, binaryconnect, tree_quantizer
      >>> params = {"w": jnp.asarray([[0.4], [-0.8]])}
      >>> q = tree_quantizer([Rule("w", binaryconnect())], params)
      >>> qparams = q.init(jax.random.key(0), params)
      >>> update = make_update(q, optax.sgd(0.5))
      >>> state = update.init(params, qparams)
      >>> loss = lambda weights, x, y: jnp.mean((x @ weights["w"] - y) ** 2)
      >>> x, y = jnp.ones((1, 2)), jnp.full((1, 1), -2.0)
      >>> params, qparams, state, value = update.step(
      ...     loss, params, qparams, state, x, y
      ... )
      >>> float(value), params["w"][:, 0].tolist()  # of the signs +1 and -1; clipped
      (4.0, [-1.0, -1.0])
    """
    import optax  # an extra, which whoever has a `tx` has

    from quantnet_jax.training import optim
    from quantnet_jax.training.estimators import gradients
    from quantnet_jax.training.state import TrainState

    if q.gradient is not None and learning_rate is None:
        raise ValueError(
            f"learning_rate=None, expected that of `tx`: {q!r} has a gradient of its "
            "own, which is learned through the update of the weights"
        )
    q, rate = unguarded(q), cast(Any, as_schedule(learning_rate or 0.0))
    meta = optax.adam(META_LEARNING_RATE) if meta is None else meta
    both = optim.with_quantizer(optim.partition(tx, meta), q)

    def init(params, qparams):
        opt_state = both.init({"model": params, "quant": qparams})
        return UpdateState(jnp.zeros((), jnp.int32), opt_state)

    def step(loss, params, qparams, state, *args, key=None):
        def total(model, quant, batch_stats, data, args, step, offset=None):
            weights = q.soft(quant, model, step=step, key=key)
            if offset is not None:
                weights = jax.tree.map(jnp.add, weights, offset)
            found = loss(weights, *args)
            value, aux = found if has_aux else (found, None)
            value = value + q.penalty(quant, model, step=step)
            return value, ({}, (value, aux))

        prepare = lambda data, batch: batch
        if q.gradient is None:
            estimate = gradients.joint(total, prepare)
        else:
            estimate = gradients.delayed(total, prepare, rate, q, both)
        old = {"model": params, "quant": qparams}
        grads, (_, result), opt_state = estimate(
            TrainState(state.step, old, {}, state.opt_state, {}), None, args, None
        )
        updates, opt_state = both.update(grads, opt_state, old)
        new: Any = optax.apply_updates(old, updates)
        state = UpdateState(state.step + 1, opt_state)
        return new["model"], new["quant"], state, result if has_aux else result[0]

    return Update(init, step)


def gap(
    score: Callable[[PyTree], Any],
    q: Quantizer,
    qparams: PyTree,
    params: PyTree,
    step: Any,
    *,
    higher_is_better: bool = True,
) -> Gap:
    """What is lost where hard weights replace the soft ones of training.

    Args:
      score: `weights -> number`, one function for both: float arrays in the place of
        all parameters.
      q: of `tree_quantizer`.
      qparams, params: as trained.
      step: the number of updates, `state.step` of `make_update`.
      higher_is_better: False for losses.

    Returns:
      `Gap(soft, hard, gap)`; gap is soft - hard, or hard - soft of a loss.

    Example:
      >>> from quantnet_jax import Rule, proxquant, tree_quantizer
      >>> params = {"w": jnp.asarray([[0.5], [-1.0]])}
      >>> q = tree_quantizer([Rule("w", proxquant())], params)
      >>> gap(lambda weights: weights["w"].sum(), q, {"w": ()}, params, 0)
      Gap(soft=-0.5, hard=0, gap=-0.5)
    """
    soft = float(score(jax.jit(q.soft)(qparams, params, step=step)))
    hard = float(score(dequantize_tree(jax.jit(q.hard)(qparams, params))))
    unit = Unit(higher_is_better=higher_is_better)
    return Gap(soft, hard, unit.gap(soft, hard))


def recalibrate(
    update: Callable[[PyTree, PyTree, Any], PyTree],
    params: PyTree,
    stats: PyTree,
    batches: Iterable[Any],
) -> PyTree:
    """BatchNorm statistics of given weights: the mean over training batches.

    Running statistics belong to the soft weights of the last steps; hard weights have
    others. With s <- m s + (1 - m) b, as each batch moves them, the b of every batch
    are averaged; the momentum m is read from the first.

    Args:
      update: `(weights, stats, batch) -> new stats`: the network in training mode,
        such as `model.apply(..., train=True, mutable=["batch_stats"])`.
      params: with `QTensor` leaves or without.
      stats: as trained; its floats are replaced.
      batches: what `update` takes.

    Returns:
      A tree like `stats`.

    Raises:
      ValueError: no batch, or statistics that a batch does not move.

    Example:
      >>> move = lambda weights, stats, x: 0.9 * stats + 0.1 * (weights * x).mean()
      >>> batches = [jnp.asarray([1.0, 3.0]), jnp.asarray([5.0])]
      >>> float(recalibrate(move, jnp.asarray(2.0), jnp.asarray(9.0), batches).round(4))
      7.0
    """
    weights, update = dequantize_tree(params), jax.jit(update)
    leaves, treedef = jax.tree.flatten(stats)
    moves = lambda x: jnp.issubdtype(x.dtype, jnp.floating)

    def started(value):
        fill = lambda x: jnp.full_like(x, value) if moves(x) else x
        return jax.tree.map(fill, stats)

    shares: list[jax.Array] = []

    def of_batch(weights, zeros, data, batch):
        del data
        moved = lambda stats: list(
            filter(moves, jax.tree.leaves(update(weights, stats, batch)))
        )
        new = moved(zeros)
        if not shares:
            shares.extend(map(_share, new, moved(started(FAR))))
        return [x / share for x, share in zip(new, shares, strict=True)]

    means = iter(average_statistics(of_batch, weights, started(0.0), None, batches))
    new = [next(means) if moves(x) else x for x in leaves]
    return jax.tree.unflatten(treedef, new)


def _share(near: jax.Array, far: jax.Array) -> jax.Array:
    """1 - m of statistics that move from 0 to `near`, from `FAR` to `far`."""
    share = 1.0 - (far - near) / FAR
    if not bool(jnp.all(share > 1e-5)):
        raise ValueError(
            "`update` does not move the statistics as running means, expected the "
            "network in training mode, with a momentum below 1"
        )
    return share
