"""Optimizers: weights and sub-network are two groups of one `optax.partition`."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from quantnet_jax.config.checks import OPTIMIZERS, SCHEDULES


def learning_rate(
    peak: float,
    total_steps: int,
    *,
    schedule: str = "cosine",
    warmup: float = 0.0,
    milestones: tuple[float, ...] = (0.5, 0.75),
    factor: float = 0.1,
) -> optax.Schedule:
    """A learning-rate schedule.

    Args:
      peak: rate after the warm-up, not negative.
      total_steps: steps of the whole run.
      schedule: 'cosine' or 'linear' (to 0 at the end), 'constant', or 'steps' (times
        `factor` at each milestone).
      warmup: fraction of training over which the rate rises from 0, in [0, 1).
      milestones: for 'steps', rising fractions of training.
      factor: for 'steps'.

    Raises:
      ValueError: for a value outside its range.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}, expected one of {SCHEDULES}")
    if peak < 0 or not 0 <= warmup < 1:
        raise ValueError(
            f"learning_rate={peak} and warmup={warmup}, expected a rate of at least 0 "
            "and a warm-up in [0, 1)"
        )
    rising = round(warmup * total_steps)
    rest = max(1, total_steps - rising)
    if schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest)
    elif schedule == "linear":
        main = optax.linear_schedule(peak, 0.0, rest)
    elif schedule == "steps":
        if not all(0 < m < 1 for m in milestones) or list(milestones) != sorted(
            set(milestones)
        ):
            raise ValueError(
                f"milestones={tuple(milestones)}, expected rising fractions in (0, 1)"
            )
        bounds = {round(m * total_steps) - rising: factor for m in milestones}
        main = optax.piecewise_constant_schedule(peak, bounds)
    else:
        main = optax.constant_schedule(peak)
    if rising:
        warming = optax.linear_schedule(0.0, peak, rising)
        main = optax.join_schedules([warming, main], [rising])
    # Not all of optax's schedules take an integer step under strict promotion.
    return lambda step: main(jnp.asarray(step, jnp.float32))


def optimizer(
    name: str,
    rate: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """An optimizer for one of the two groups.

    Args:
      name: 'sgd' (Nesterov momentum; decay enters the gradient) or 'adam' (decay apart
        from the gradient, as in AdamW).
      rate: learning-rate schedule.
      momentum: of SGD; the first moment's decay of Adam.
      weight_decay: on tensors of rank 2 and up; scales and biases are spared.
      clip: largest global norm of the gradient of this group; 0 for no clipping.

    Raises:
      ValueError: for a value outside its range.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer name={name!r}, expected one of {OPTIMIZERS}")
    if not 0 <= momentum < 1 or weight_decay < 0 or clip < 0:
        raise ValueError(
            f"momentum={momentum}, weight_decay={weight_decay}, clip={clip}: expected "
            "a momentum in [0, 1) and the others at least 0"
        )
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    decay = [optax.add_decayed_weights(weight_decay, _is_matrix)] * bool(weight_decay)
    if name == "sgd":
        parts += [*decay, optax.trace(momentum, nesterov=momentum > 0)]
    else:
        parts += [optax.scale_by_adam(b1=momentum), *decay]
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def partition(
    weights: optax.GradientTransformation, meta: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimizer over {'model', 'quant'}: `weights` and `meta`, in this order."""
    tx = optax.partition(
        {"weights": weights, "meta": meta}, {"model": "weights", "quant": "meta"}
    )

    def update(updates, state, params=None):
        # Adam's bias correction does not trace under strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


class Projected(NamedTuple):
    """State of `projected`: int32 steps taken, and the optimizer's own state."""

    step: jax.Array
    inner: optax.OptState


def projected(
    tx: optax.GradientTransformation, project: Callable
) -> optax.GradientTransformation:
    """`tx`, after whose updates the parameters are projected (ProxQuant, LQ-Nets).

    Args:
      tx: over {'model', 'quant'}.
      project: `(quant, model, *, step) -> (quant, model)`, a `Quantizer.project`.
    """

    def init(params):
        return Projected(jnp.zeros((), jnp.int32), tx.init(params))

    def update(updates, state, params=None):
        updates, inner = tx.update(updates, state.inner, params)
        moved = cast(dict, optax.apply_updates(cast(dict, params), updates))
        quant, model = project(moved["quant"], moved["model"], step=state.step)
        new = {"model": model, "quant": quant}
        return jax.tree.map(jnp.subtract, new, params), Projected(state.step + 1, inner)

    return optax.GradientTransformation(init, update)


class Lagged(NamedTuple):
    """State of `lagged`.

    Attributes:
      inner: state of the optimizer inside.
      pending: gradient of the last loss for the quantized weights, like the model's
        parameters; it makes the next update.
    """

    inner: optax.OptState
    pending: Any


def lagged(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx`, with a place in its state where a gradient waits for the next batch.

    The training step of a quantizer with a `gradient` reads and fills it.
    """

    def init(params):
        pending = jax.tree.map(jnp.zeros_like, params["model"])
        return Lagged(tx.init(params), pending)

    def update(updates, state, params=None):
        updates, inner = tx.update(updates, state.inner, params)
        return updates, Lagged(inner, state.pending)

    return optax.GradientTransformation(init, update)


def _is_matrix(params) -> Callable:
    return jax.tree.map(lambda p: p.ndim > 1, params)
