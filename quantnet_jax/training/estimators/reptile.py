"""Reptile: initial weights from which a few steps lead to each task.

Tasks are examples of a batch: they are mapped over, and divided over devices like any
other examples.

Reference: Nichol et al., On First-Order Meta-Learning Algorithms, arXiv 1803.02999.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.models.layers import Conv, replace_convolutions
from quantnet_jax.ops import cpu_conv
from quantnet_jax.training.estimators.gradients import Gradients, pmean
from quantnet_jax.training.optim import unstrict
from quantnet_jax.training.state import TrainState
from quantnet_jax.trees import tree

PyTree = Any


def make_adapt(loss: Callable, inner: optax.GradientTransformation) -> Callable:
    """Makes `adapt(state, data, examples) -> (params, batch_stats, metrics)`.

    Args:
      loss: of `quantnet_jax.training.steps.make_loss`.
      inner: the optimizer, for all parameters, from its first state in each example.

    `examples` has 'support', arrays (B, M, ...) among them 'input', and 'order', int
    (B, steps, batch size): which of the M images a step takes. The results have an axis
    B in front; the metrics are those of the last step.
    """

    inner = unstrict(inner)

    def step_of(support, data, now):
        def step(carry, rows):
            params, stats, inner_state = carry
            images = jax.tree.map(lambda x: x[rows], support)
            images["mask"] = jnp.ones(rows.shape, jnp.float32)

            def of_params(params):
                return loss(params["model"], params["quant"], stats, data, images, now)

            grads, (stats, metrics) = jax.grad(of_params, has_aux=True)(params)
            updates, inner_state = inner.update(grads, inner_state, params)
            return (optax.apply_updates(params, updates), stats, inner_state), metrics

        return step

    def adapt(state: TrainState, data, examples):
        first = state.params, state.batch_stats, inner.init(state.params)

        def one(support, order):
            step = step_of(support, data, state.step)
            (params, stats, _), metrics = jax.lax.scan(step, first, order)
            return params, stats, jax.tree.map(lambda x: x[-1], metrics)

        return jax.vmap(one)(examples["support"], examples["order"])

    return adapt


def reptile(adapt: Callable, prepare: Callable) -> Gradients:
    """A gradient estimator: how far the mean of the adapted parameters is.

    g = w - mean over tasks of w', w' the parameters adapted to a task
    With plain SGD of rate r, w <- w + r (mean of w' - w).

    Args:
      adapt: of `make_adapt`.
      prepare: `(data, batch) -> examples`.
    """

    def gradients(state, data, batch, axis_name):
        examples = prepare(data, batch)
        params, batch_stats, metrics = adapt(state, data, examples)
        mask = examples["mask"]

        def mean(x):
            return jnp.mean(x * mask.reshape(-1, *[1] * (x.ndim - 1)), axis=0)

        means = jax.tree.map(mean, (params, batch_stats, metrics))
        params, *aux = pmean(means, axis_name)
        grads = jax.tree.map(jnp.subtract, state.params, params)
        return grads, tuple(aux), state.opt_state

    return gradients


def make_outputs(
    adapt: Callable, apply: Callable, quantizer: Quantizer, prepare: Callable
) -> Callable:
    """Makes `outputs(state, data, batch, axis_name) -> {'soft', 'hard'}`.

    Of each example what the network returns that was adapted to it, with soft and with
    hard weights; normalized by the statistics of its own inputs (transductive).

    Args:
      adapt: of `make_adapt`.
      apply: `(variables, input, train=True) -> (outputs, updated)`.
      quantizer: over the tree of the model's parameters.
      prepare: `(data, batch) -> examples`, without augmentation.
    """

    def outputs(state, data, batch, axis_name):
        del axis_name  # no task needs another
        examples, step = prepare(data, batch), state.step
        params, batch_stats, _ = adapt(state, data, examples)
        training = {"step": step, "key": jax.random.key(0)}

        def one(params, stats, inputs):
            model, quant = params["model"], params["quant"]
            soft = quantizer.soft(quant, model, step=step)
            hard = tree.dequantize_tree(quantizer.hard(quant, model))
            rest = {"batch_stats": stats, "training": training}
            of = lambda w: apply({"params": w, **rest}, inputs, train=True)[0]
            return {"soft": of(soft), "hard": of(hard)}

        return jax.vmap(one)(params, batch_stats, examples["input"])

    return outputs


def in_loops(apply: Callable) -> Callable:
    """`apply` of a network whose convolutions are matrix products.

    For XLA's CPU backend, which is slow at convolutions in a loop, or of as many
    kernels as there are tasks.
    """

    def product(layer: Conv, path: str, x: jax.Array) -> jax.Array | None:
        del path
        if layer.groups != 1:
            return None
        kernel = layer.get_variable("params", "kernel").astype(x.dtype)
        return cpu_conv.as_product(x, kernel, layer.strides, layer.padding)

    def wrapped(*args, **options):
        with replace_convolutions(product):
            return apply(*args, **options)

    return wrapped
