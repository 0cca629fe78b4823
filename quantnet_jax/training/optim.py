"""Optimizers: weights and sub-network are two groups of one `optax.partition`."""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.training import of_optax
from quantnet_jax.trees import paths


def learning_rate(
    peak: float,
    total_steps: int,
    *,
    schedule: str = "cosine",
    warmup: float = 0.0,
    milestones: tuple[float, ...] = (0.5, 0.75),
    factor: float = 0.1,
    options: Iterable[tuple[str, Any]] = (),
) -> optax.Schedule:
    """A learning-rate schedule.

    Args:
      peak: learning rate after the warm-up, not negative.
      total_steps: steps of the whole run.
      schedule: 'cosine' or 'linear' (to 0 at the end), 'constant', 'steps' (times
        `factor` at each milestone), or the name of a schedule of optax.
      warmup: fraction of training over which the rate rises from 0, in [0, 1).
      milestones: for 'steps', ascending fractions of training.
      factor: for 'steps'.
      options: (name, value) arguments of a schedule of optax; numbers of steps among
        them are fractions of what is left after the warm-up. Its peak or initial value
        is `peak`, unless it is given.

    Raises:
      ValueError: options that the schedule of optax does not take.
    """
    rising = round(warmup * total_steps)
    rest = max(1, total_steps - rising)
    if schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest)
    elif schedule == "linear":
        main = optax.linear_schedule(peak, 0.0, rest)
    elif schedule == "steps":
        bounds = {round(m * total_steps) - rising: factor for m in milestones}
        main = optax.piecewise_constant_schedule(peak, bounds)
    elif schedule == "constant":
        main = optax.constant_schedule(peak)
    else:
        main = of_optax.schedule(schedule, peak, rest, tuple(options))
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
    options: Iterable[tuple[str, Any]] = (),
) -> optax.GradientTransformation:
    """An optimizer for a group of parameters.

    Args:
      name: 'sgd' (Nesterov momentum, coupled weight decay: it enters the gradient),
        'adam' (decoupled weight decay, as in AdamW), or the name of a transformation of
        optax: an optimizer with a learning rate (its own weight decay, where it has
        one, else coupled), or a 'scale_by_...' (decoupled weight decay).
      rate: learning-rate schedule.
      momentum: of SGD; the first moment's decay of Adam. Others take theirs in
        `options`.
      weight_decay: on tensors of rank 2 and up; scales and biases are excluded.
      clip: largest global norm of the gradient of this group; 0 for no clipping.
      options: (name, value) arguments of a transformation of optax.

    Raises:
      ValueError: options that the transformation does not take.
    """
    options = tuple(options)
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    decay = [optax.add_decayed_weights(weight_decay, _is_matrix)] * bool(weight_decay)
    by_rate = optax.scale_by_learning_rate(rate)
    if name == "sgd":
        parts += [*decay, optax.trace(momentum, nesterov=momentum > 0), by_rate]
    elif name == "adam":
        parts += [optax.scale_by_adam(b1=momentum), *decay, by_rate]
    elif name.startswith("scale_by_"):
        parts += [of_optax.transformation(name, {}, options), *decay, by_rate]
    else:
        known = inspect.signature(getattr(optax, name)).parameters
        given: dict[str, Any] = {"learning_rate": rate}
        if "weight_decay" in known:
            given |= {"weight_decay": weight_decay}
            given |= {"mask": _is_matrix} if "mask" in known else {}
            decay = []
        parts += [*decay, of_optax.transformation(name, given, options)]
    return optax.chain(*parts)


def partition(
    weights: optax.GradientTransformation,
    meta: optax.GradientTransformation,
    rows: Sequence[tuple[str, optax.GradientTransformation]] = (),
) -> optax.GradientTransformation:
    """One optimizer over {'model', 'quant'}.

    Args:
      weights: of 'model', where no row matches.
      meta: of 'quant', where no row matches.
      rows: (pattern, optimizer): the first whose pattern matches the whole
        '/'-joined path, such as 'model/stem/kernel', counts.

    Raises:
      ValueError: from `init`: a row matches nothing.
    """
    groups: dict[Any, optax.GradientTransformation]
    groups = {"weights": weights, "meta": meta}
    groups_of: Any = {"model": "weights", "quant": "meta"}
    if rows:
        groups |= {str(number): tx for number, (_, tx) in enumerate(rows)}
        groups_of = functools.partial(_groups, [pattern for pattern, _ in rows])
    return unstrict(optax.partition(groups, groups_of))


def unstrict(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Traces under strict promotion too, as the bias correction of Adam does not."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


def _groups(patterns: Sequence[str], params: Any) -> Any:
    """For each leaf the number of its row, or 'weights' or 'meta'."""
    names = list(paths.flatten(params))
    for number, pattern in enumerate(patterns):
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(
                f"optimizers[{number}].pattern={pattern!r} matches no parameter; the "
                "paths are " + ", ".join(names)
            )
    rest = {"model": "weights", "quant": "meta"}
    found = {
        name: next(
            (str(i) for i, p in enumerate(patterns) if re.fullmatch(p, name)),
            rest[name.partition("/")[0]],
        )
        for name in names
    }
    return paths.replace(params, found)


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


class Delayed(NamedTuple):
    """State of `delayed`.

    Attributes:
      inner: state of the optimizer inside.
      pending: gradient of the last loss for the quantized weights, like the model's
        parameters; it makes the next update.
    """

    inner: optax.OptState
    pending: Any


def delayed(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` that stores the pending gradient for a delayed update.

    The training step of a quantizer with a `gradient` reads and fills it.
    """

    def init(params):
        pending = jax.tree.map(jnp.zeros_like, params["model"])
        return Delayed(tx.init(params), pending)

    def update(updates, state, params=None):
        updates, inner = tx.update(updates, state.inner, params)
        return updates, Delayed(inner, state.pending)

    return optax.GradientTransformation(init, update)


def with_quantizer(
    tx: optax.GradientTransformation, quantizer: Quantizer
) -> optax.GradientTransformation:
    """`tx` with what a quantizer needs: projections, a pending gradient.

    Args:
      tx: over {'model', 'quant'}.
      quantizer: over the tree of the model's parameters.
    """
    if quantizer.project is not None:
        tx = projected(tx, quantizer.project)
    return tx if quantizer.gradient is None else delayed(tx)


def _is_matrix(params) -> Callable:
    return jax.tree.map(lambda p: p.ndim > 1, params)
