"""The training step: a pure function of (state, data, batch).

It takes `axis_name`, the mapped axis of the devices, or None where one program sees the
whole batch. A runner of `quantnet_jax.distributed.runners` compiles it.
"""

import contextlib
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.models.layers import Conv, replace_convolutions
from quantnet_jax.models.sparse import SparseConv
from quantnet_jax.tasks import Task, layer_inputs
from quantnet_jax.tasks.terms import Context, Term
from quantnet_jax.training.estimators.gradients import Gradients, pmean
from quantnet_jax.training.state import TrainState, average
from quantnet_jax.trees.guard import unguarded

PyTree = Any
ACTIVATIONS = 1
"""For `fold_in`: separates the noise of activations from that of weights."""
OF_ACTIVATIONS = "penalty of activations"
"""A metric of the loss, which the training step adds to 'penalty'."""


def make_loss(
    apply: Callable,
    quantizer: Quantizer,
    task: Task,
    *,
    seed: int,
    terms: Term | None = None,
    inputs: bool = False,
) -> Callable:
    """Makes `loss(model, quant, batch_stats, data, examples, step, offset=None)`.

    It returns (task loss + penalty + terms, (new batch_stats, metrics)).

    Args:
      apply: `(variables, input, train) -> (outputs, updated)`, as `model.apply` with
        `mutable=['batch_stats', 'penalty']` when `train`. Its statistics must be equal
        on all devices, as those of our BatchNorm with an `axis_name` are. Activation
        quantizers read 'training', see `quantnet_jax.activations.sites`.
      quantizer: over the tree of the model's parameters.
      task: its loss and metrics; `examples` are what its `prepare` returns, with a mask
        whose mean is 1, and 'teacher', the outputs of a teacher, where there is one.
      seed: of the noise of stochastic quantizers.
      terms: the sum of further terms, see `quantnet_jax.tasks.terms`.
      inputs: whether these get the inputs of the network's convolutions.

    `offset` is added to the soft weights: the gradient with respect to it is that of
    the quantized weights.
    """
    quantizer = unguarded(quantizer)

    def loss(model, quant, batch_stats, data, examples, step, offset=None):
        # The same on every replica: noise on replicated weights must be equal.
        key = jax.random.fold_in(jax.random.key(seed), step)
        weights = quantizer.soft(quant, model, step=step, key=key)
        penalty = quantizer.penalty(quant, model, step=step)
        if offset is not None:
            weights = jax.tree.map(jnp.add, weights, offset)
        variables = {
            "params": weights,
            "batch_stats": batch_stats,
            "training": {"step": step, "key": jax.random.fold_in(key, ACTIVATIONS)},
        }
        seen: dict[str, Any] = {}

        def look(layer, path, *given):
            seen[path] = layer_inputs.input_of(layer, *given)

        both = (Conv, SparseConv)
        looking = (
            replace_convolutions(look, both) if inputs else contextlib.nullcontext()
        )
        with looking:
            outputs, updated = apply(variables, examples["input"], train=True)
        mean = lambda x: jnp.mean(x * examples["mask"])
        own = mean(task.loss(outputs, examples, train=True))
        measured = jax.tree.map(mean, task.metrics(outputs, examples))
        metrics = {"loss": own, **measured, "penalty": penalty}
        total = own + penalty
        if penalties := jax.tree.leaves(updated.get("penalty", {})):
            metrics[OF_ACTIVATIONS] = sum(penalties)
            total += metrics[OF_ACTIVATIONS]
        if terms is not None:
            context = Context(
                outputs=outputs,
                examples=examples,
                loss=own,
                params=model,
                soft=weights,
                teacher_outputs=examples.get("teacher"),
                teacher_params=(data or {}).get("teacher_params"),
                step=step,
                quant=quant,
                inputs=seen if inputs else None,
            )
            metrics["terms"] = terms(context)
            total += metrics["terms"]
        return total, (updated.get("batch_stats", {}), metrics)

    return loss


def make_train_step(
    gradients: Gradients, tx: optax.GradientTransformation, *, decay: float = 0.0
) -> Callable:
    """Makes `train_step(state, data, batch, axis_name) -> (state, metrics)`.

    Args:
      gradients: one of `quantnet_jax.training.estimators.gradients`.
      tx: optimizer over {'model', 'quant'}.
      decay: of the moving average in the state, 0 for none.

    The metrics are float32 scalars, equal on all devices: 'loss' (of the task), its
    metrics by their names, 'penalty', 'grad_norm' (weights), 'meta_grad_norm'.
    """

    def train_step(state: TrainState, data, batch, axis_name):
        # With the mean 1: means of parts of the batch then make up the masked mean.
        batch = batch | {"mask": unit_mean(batch["mask"], axis_name)}
        grads, (batch_stats, metrics), opt_state = gradients(
            state, data, batch, axis_name
        )
        updates, opt_state = tx.update(grads, opt_state, state.params)
        penalty = metrics.pop("penalty")  # of weights, which all devices share
        metrics = pmean(metrics, axis_name)
        metrics |= {
            "penalty": penalty + metrics.pop(OF_ACTIVATIONS, 0.0),
            "grad_norm": optax.tree.norm(grads["model"]),
            "meta_grad_norm": jnp.asarray(optax.tree.norm(grads["quant"]), jnp.float32),
        }
        params = cast(dict, optax.apply_updates(state.params, updates))
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=average(state, params, batch_stats, decay),
        )
        return new_state, metrics

    return train_step


def make_chunk(train_step: Callable, unroll: bool) -> Callable:
    """Makes `chunk(state, data, batches, axis_name) -> (state, metrics)`: many steps.

    `batches` holds the batches of the steps along a new first axis, and so do the
    metrics those of each step.

    Args:
      train_step: of `make_train_step`.
      unroll: write the steps out, one after the other, and compile each, for CPUs,
        where convolutions inside of a loop take many times as long.
    """

    def chunk(state: TrainState, data, batches, axis_name):
        def step(state, batch):
            return train_step(state, data, batch, axis_name)

        return jax.lax.scan(step, state, batches, unroll=unroll)

    return chunk


def all_finite(state: TrainState, axis_name) -> jax.Array:
    """Whether no number of a state is infinite or NaN."""
    del axis_name
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state)]
    return jnp.all(jnp.stack(finite))


def unit_mean(mask: jax.Array, axis_name: str | None) -> jax.Array:
    """Weights of examples whose mean, over all devices, is 1, and 0 for padding.

    The mean of `x * weights` over all rows is that of `x` over the real ones; and so is
    the mean of its means over equal parts of the rows.

    Args:
      mask: float32 (N,) of this device, 1 for real examples.
      axis_name: mapped axis of the devices, or None.
    """
    share = jnp.mean(mask)
    if axis_name is not None:
        share = jax.lax.pmean(share, axis_name)
    return mask / share
