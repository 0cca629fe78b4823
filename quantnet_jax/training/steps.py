"""Pure functions of one batch: the training step, the forward pass, the tally.

Each takes `axis_name`, the mapped axis of the devices, or None where one program sees
the whole batch. A runner of `quantnet_jax.training.parallel` compiles them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from quantnet_jax.core.merge import merged
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.tasks import classification as losses
from quantnet_jax.training.accumulation import accumulate
from quantnet_jax.training.state import TrainState, average

PyTree = Any


class Meta(NamedTuple):
    """How the sub-network is optimized.

    Attributes:
      mode: 'joint' (one gradient step on weights and sub-network from one batch) or
        'bilevel' (the sub-network's gradient is that of held-out examples after a
        look-ahead step of the weights).
      every: in 'bilevel', each `every`-th example of a batch is held out.
      exact: in 'bilevel', differentiate through the look-ahead step; else first order.
      rate: learning rate of the weights, a schedule of the step: of the look-ahead in
        'bilevel', and of the update that a gradient network learns through.
    """

    mode: str = "joint"
    every: int = 4
    exact: bool = False
    rate: optax.Schedule = optax.constant_schedule(0.0)


def make_train_step(
    apply: Callable,
    quantizer: Quantizer,
    tx: optax.GradientTransformation,
    prepare: Callable,
    *,
    seed: int,
    criterion: Callable = losses.criterion,
    meta: Meta = Meta(),  # noqa: B008 (immutable)
    accumulate: Callable = accumulate,
    decay: float = 0.0,
) -> Callable:
    """Makes `train_step(state, data, batch, axis_name) -> (state, metrics)`.

    Args:
      apply: `(variables, image, train) -> logits`, as `model.apply` with
        `mutable=['batch_stats']` when `train`. Its statistics must be equal on all
        devices, as those of our BatchNorm with an `axis_name` are.
      quantizer: over the tree of the model's parameters.
      tx: optimizer over {'model', 'quant'}.
      prepare: `(data, batch) -> {'image', 'label', 'mask'}`, with augmentation, and
        'teacher', logits to imitate, where there is one.
      seed: of the noise of stochastic quantizers.
      criterion: `(logits, prepared batch) -> float32 (N,)`, the loss of each example.
      meta: how the sub-network is optimized.
      accumulate: `accumulation.accumulate` with its options; for 'joint'.
      decay: of the moving average in the state, 0 for none.

    A quantizer with a `gradient` of its own (MetaQuant) needs the optimizer state of
    `optim.lagged`: the gradient for the quantized weights waits there until the next
    batch, whose loss is that of the weights after the update it makes; so what makes a
    gradient of it is trained through the update. `meta.mode` must then be 'joint'.

    The metrics are float32 scalars, equal on all devices: 'loss' (of the task),
    'accuracy', 'penalty', 'grad_norm' (weights), 'meta_grad_norm'.
    """

    @merged  # one backward pass through a sub-network, not one for each of the two
    def soft_and_penalty(quant, model, step, key):
        weights = quantizer.soft(quant, model, step=step, key=key)
        return weights, quantizer.penalty(quant, model, step=step)

    def loss_fn(model, quant, batch_stats, batch, step, offset=None):
        # The same on every replica: noise on replicated weights must be equal.
        key = jax.random.fold_in(jax.random.key(seed), step)
        weights, penalty = soft_and_penalty(quant, model, step, key)
        if offset is not None:
            weights = jax.tree.map(jnp.add, weights, offset)
        logits, updated = apply(
            {"params": weights, "batch_stats": batch_stats}, batch["image"], train=True
        )
        mean = lambda x: jnp.mean(x * batch["mask"])
        task = mean(criterion(logits, batch))
        metrics = {
            "loss": task,
            "accuracy": mean(losses.correct(logits, batch["label"])),
            "penalty": penalty,
        }
        return task + penalty, (updated.get("batch_stats", {}), metrics)

    def joint(state, data, batch, axis_name):
        def part(batch_stats, rows):
            rows = prepare(data, rows)

            def loss(params):
                model, quant = params["model"], params["quant"]
                return loss_fn(model, quant, batch_stats, rows, state.step)

            grads, (batch_stats, metrics) = jax.grad(loss, has_aux=True)(state.params)
            return batch_stats, (grads, metrics)

        batch_stats, means = accumulate(part, state.batch_stats, batch)
        grads, metrics = means
        return pmean(grads, axis_name), (batch_stats, metrics), state.opt_state

    def bilevel(state, data, batch, axis_name):
        batch = prepare(data, batch)
        held_out = jax.tree.map(lambda x: _every(x, meta.every, True), batch)
        batch = jax.tree.map(lambda x: _every(x, meta.every, False), batch)
        model, quant = state.params["model"], state.params["quant"]

        def weight_grads(quant):
            grads, aux = jax.grad(loss_fn, has_aux=True)(
                model, quant, state.batch_stats, batch, state.step
            )
            return pmean(grads, axis_name), aux

        def held_out_loss(quant):
            grads, aux = weight_grads(quant)
            step_grads = grads if meta.exact else jax.lax.stop_gradient(grads)
            rate = meta.rate(state.step)
            ahead = jax.tree.map(lambda w, g: w - rate * g, model, step_grads)
            loss, _ = loss_fn(ahead, quant, state.batch_stats, held_out, state.step)
            return loss, (grads, aux)

        meta_grads, (grads, aux) = jax.grad(held_out_loss, has_aux=True)(quant)
        grads = {"model": grads, "quant": pmean(meta_grads, axis_name)}
        return grads, aux, state.opt_state

    def lagged(state, data, batch, axis_name):
        batch = prepare(data, batch)
        params, stop = state.params, jax.lax.stop_gradient

        def updated(quant):
            """The weights after the update that waits, and the gradient it is of."""
            grads = quantizer.gradient(  # pyright: ignore[reportOptionalCall]
                quant, params["model"], state.opt_state.pending, step=state.step
            )
            both = {"model": stop(grads), "quant": jax.tree.map(jnp.zeros_like, quant)}
            updates, _ = tx.update(both, state.opt_state, params)
            # What the optimizer adds to rate * gradient is held constant.
            rate = meta.rate(state.step)
            model = jax.tree.map(
                lambda w, u, g: stop(w + u) - rate * (g - stop(g)),
                params["model"],
                cast(dict, updates)["model"],
                grads,
            )
            return model, grads

        def loss(quant, offset):
            model, grads = updated(quant)
            value, aux = loss_fn(
                model, quant, state.batch_stats, batch, state.step, offset
            )
            return value, (grads, aux)

        offset = jax.tree.map(jnp.zeros_like, params["model"])
        grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
        new, (grads, aux) = grad(params["quant"], offset)
        quant_grads, pending = pmean(new, axis_name)
        grads = {"model": grads, "quant": quant_grads}
        return grads, aux, state.opt_state._replace(pending=pending)

    gradients = {"joint": joint, "bilevel": bilevel}[meta.mode]
    if quantizer.gradient is not None:
        gradients = lagged

    def train_step(state: TrainState, data, batch, axis_name):
        # With the mean 1: means of parts of the batch then make up the masked mean.
        batch = batch | {"mask": losses.weights(batch["mask"], axis_name)}
        grads, (batch_stats, metrics), opt_state = gradients(
            state, data, batch, axis_name
        )
        updates, opt_state = tx.update(grads, opt_state, state.params)
        means = pmean({k: metrics.pop(k) for k in ("loss", "accuracy")}, axis_name)
        metrics |= means | {
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


def make_chunk(train_step: Callable) -> Callable:
    """Makes `chunk(state, data, batches, axis_name) -> (state, metrics)`: many steps.

    `batches` holds the batches of the steps along a new first axis, and so do the
    metrics those of each step.
    """

    def chunk(state: TrainState, data, batches, axis_name):
        def step(state, batch):
            return train_step(state, data, batch, axis_name)

        return jax.lax.scan(step, state, batches)

    return chunk


def all_finite(state: TrainState, axis_name) -> jax.Array:
    """Whether no number of a state is infinite or NaN."""
    del axis_name
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state)]
    return jnp.all(jnp.stack(finite))


def pmean(tree: PyTree, axis_name: str | None) -> PyTree:
    """Mean over the mapped axis, or the tree itself without one."""
    if axis_name is None or not jax.tree.leaves(tree):
        return tree
    return jax.lax.pmean(tree, axis_name)


def _every(x: jax.Array, every: int, kept: bool) -> jax.Array:
    """Each `every`-th row, or the rest: the same rows however a batch is sharded."""
    blocks = x.reshape(-1, every, *x.shape[1:])
    part = blocks[:, -1:] if kept else blocks[:, :-1]
    return part.reshape(-1, *x.shape[1:])
