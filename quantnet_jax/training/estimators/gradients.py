"""Gradient estimators: how the gradients of weights and sub-network come about.

Each is `gradients(state, data, batch, axis_name) -> (grads, (batch_stats, metrics),
opt_state)` with grads over {'model', 'quant'}, equal on all devices.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from quantnet_jax.core.quantizer import Quantizer

PyTree = Any
Gradients = Callable[..., tuple[PyTree, tuple[PyTree, dict], PyTree]]


def joint(
    loss: Callable, prepare: Callable, in_parts: Callable | None = None
) -> Gradients:
    """Both from one batch: the gradient of the loss with respect to all parameters.

    Args:
      loss: of `quantnet_jax.training.steps.make_loss`.
      prepare: `(data, batch) -> examples`, with augmentation.
      in_parts: `accumulate` with its options; default the batch as a whole.
    """

    def gradients(state, data, batch, axis_name):
        def part(batch_stats, rows):
            examples = prepare(data, rows)

            def of_params(params):
                model, quant = params["model"], params["quant"]
                return loss(model, quant, batch_stats, data, examples, state.step)

            grads, (batch_stats, metrics) = jax.grad(of_params, has_aux=True)(
                state.params
            )
            return batch_stats, (grads, metrics)

        batch_stats, (grads, metrics) = (in_parts or accumulate)(
            part, state.batch_stats, batch
        )
        return pmean(grads, axis_name), (batch_stats, metrics), state.opt_state

    return gradients


def bilevel(
    loss: Callable,
    prepare: Callable,
    rate: optax.Schedule,
    *,
    every: int = 4,
    exact: bool = False,
) -> Gradients:
    """The sub-network's is that of held-out examples after a look-ahead step.

    Weights: g = d/dw loss(w, q; training part)
    Sub-network: d/dq loss(w - rate g(q), q; held-out part)

    Args:
      loss: of `quantnet_jax.training.steps.make_loss`.
      prepare: `(data, batch) -> examples`, with augmentation.
      rate: of the look-ahead step, a schedule of the step.
      every: each `every`-th example of a batch is held out.
      exact: differentiate through g too; else it is held constant (first order).
    """

    def gradients(state, data, batch, axis_name):
        examples = prepare(data, batch)
        held_out = jax.tree.map(lambda x: every_nth(x, every, True), examples)
        examples = jax.tree.map(lambda x: every_nth(x, every, False), examples)
        model, quant = state.params["model"], state.params["quant"]

        def weight_grads(quant):
            grads, aux = jax.grad(loss, has_aux=True)(
                model, quant, state.batch_stats, data, examples, state.step
            )
            return pmean(grads, axis_name), aux

        def held_out_loss(quant):
            grads, aux = weight_grads(quant)
            step_grads = grads if exact else jax.lax.stop_gradient(grads)
            factor = rate(state.step)
            ahead = jax.tree.map(lambda w, g: w - factor * g, model, step_grads)
            value, _ = loss(ahead, quant, state.batch_stats, data, held_out, state.step)
            return value, (grads, aux)

        meta_grads, (grads, aux) = jax.grad(held_out_loss, has_aux=True)(quant)
        grads = {"model": grads, "quant": pmean(meta_grads, axis_name)}
        return grads, aux, state.opt_state

    return gradients


def delayed(
    loss: Callable,
    prepare: Callable,
    rate: optax.Schedule,
    quantizer: Quantizer,
    tx: optax.GradientTransformation,
) -> Gradients:
    """For a quantizer with a `gradient` of its own, learned through the update.

    The gradient of the loss for the quantized weights waits in the optimizer's state
    (`optim.delayed`) until the next batch, whose loss is that of the weights after the
    update it makes. So what makes a gradient of it is trained through that update
    (MetaQuant).

    Args:
      loss: of `quantnet_jax.training.steps.make_loss`.
      prepare: `(data, batch) -> examples`, with augmentation.
      rate: learning rate of the weights, a schedule of the step.
      quantizer: over the tree of the model's parameters.
      tx: the optimizer, of `optim.delayed`.
    """
    stop = jax.lax.stop_gradient

    def gradients(state, data, batch, axis_name):
        examples, params = prepare(data, batch), state.params

        def updated(quant):
            """The weights after the pending update, and the gradient it is of."""
            grads = quantizer.gradient(  # pyright: ignore[reportOptionalCall]
                quant, params["model"], state.opt_state.pending, step=state.step
            )
            both = {"model": stop(grads), "quant": jax.tree.map(jnp.zeros_like, quant)}
            updates, _ = tx.update(both, state.opt_state, params)
            # What the optimizer adds to rate * gradient is held constant.
            factor = rate(state.step)
            model = jax.tree.map(
                lambda w, u, g: stop(w + u) - factor * (g - stop(g)),
                params["model"],
                cast(dict, updates)["model"],
                grads,
            )
            return model, grads

        def of_quant(quant, offset):
            model, grads = updated(quant)
            value, aux = loss(
                *(model, quant, state.batch_stats, data, examples, state.step),
                offset=offset,
            )
            return value, (grads, aux)

        offset = jax.tree.map(jnp.zeros_like, params["model"])
        grad = jax.grad(of_quant, argnums=(0, 1), has_aux=True)
        new, (grads, aux) = grad(params["quant"], offset)
        quant_grads, pending = pmean(new, axis_name)
        grads = {"model": grads, "quant": quant_grads}
        return grads, aux, state.opt_state._replace(pending=pending)

    return gradients


def pmean(tree: PyTree, axis_name: str | None) -> PyTree:
    """Mean over the mapped axis, or the tree itself without one."""
    if axis_name is None or not jax.tree.leaves(tree):
        return tree
    return jax.lax.pmean(tree, axis_name)


def every_nth(x: jax.Array, every: int, held_out: bool) -> jax.Array:
    """Each `every`-th row, or the rest: the same rows however a batch is sharded."""
    blocks = x.reshape(-1, every, *x.shape[1:])
    part = blocks[:, -1:] if held_out else blocks[:, :-1]
    return part.reshape(-1, *x.shape[1:])


def accumulate(
    fn: Callable, carry: PyTree, batch: PyTree, *, parts: int = 1, loop: bool = True
) -> tuple[PyTree, PyTree]:
    """Calls `fn` on each part of a batch and averages what it returns.

    Row i of the batch belongs to part i % parts. So each device that holds neighbouring
    rows, a multiple of `parts`, holds its share of every part: nothing moves.

    Args:
      fn: `(carry, rows) -> (carry, out)`; `out` are means over the rows.
      carry: goes from part to part (running statistics).
      batch: arrays with the same first axis, a multiple of `parts`.
      parts: number of parts; with 1 this is a call of `fn`.
      loop: one compiled part in a loop, whose memory serves all parts. Else the parts
        are written out one by one, for XLA's CPU backend, which is slow at convolutions
        in a loop; it may compute them at the same time, and saves no memory.

    Returns:
      (last carry, mean of `out` over the parts).
    """
    if parts == 1:
        return fn(carry, batch)
    stacked = jax.tree.map(lambda x: _split(x, parts), batch)
    first = jax.tree.map(lambda x: x[0], stacked)
    _, shapes = jax.eval_shape(fn, carry, first)
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def one(held, rows):
        carry, total = held
        carry, out = fn(carry, rows)
        return (carry, jax.tree.map(jnp.add, total, out)), None

    unroll = 1 if loop else parts
    (carry, total), _ = jax.lax.scan(one, (carry, total), stacked, unroll=unroll)
    return carry, jax.tree.map(lambda x: x / parts, total)


def check_accumulation(parts: int, mode: str, delayed: bool) -> None:
    """Refuses what cannot be accumulated.

    Args:
      parts: value of `config.accumulation_steps`.
      mode: value of `config.meta.mode`.
      delayed: whether the quantizer learns through the weights' update (`gradient`).

    Raises:
      ValueError: one line that names the key.
    """
    if parts == 1:
        return
    if mode != "joint" or delayed:
        other = f"meta.mode={mode!r}" if mode != "joint" else "a gradient network"
        raise ValueError(
            f"accumulation_steps={parts} cannot be combined with {other}, expected 1: "
            "there the update of the weights is itself differentiated, which needs the "
            "batch as a whole"
        )


def _split(x: jax.Array, parts: int) -> jax.Array:
    """(N, ...) -> (parts, N / parts, ...)."""
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
