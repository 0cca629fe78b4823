"""Chooses the gradient estimator that a configuration and its quantizer need."""

import functools
from collections.abc import Callable

import optax

from quantnet_jax.config import Config
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.distributed import hosts
from quantnet_jax.training import build_check
from quantnet_jax.training.estimators import gradients, reptile
from quantnet_jax.training.estimators.gradients import Gradients


def choose(
    c: Config,
    loss: Callable,
    prepare: Callable,
    rate: optax.Schedule,
    quantizer: Quantizer,
    tx: optax.GradientTransformation,
    devices: int,
    adapt: Callable | None = None,
) -> Gradients:
    """The estimator of `c.meta.mode`, or the one that the quantizer needs.

    Args:
      c: the configuration.
      loss: of `quantnet_jax.training.steps.make_loss`.
      prepare: `(data, batch) -> examples`, with augmentation.
      rate: learning rate of the weights, a schedule of the step.
      quantizer: over the tree of the model's parameters.
      tx: the optimizer.
      devices: of the run.
      adapt: of `reptile.make_adapt`, None where the task needs no adaptation.

    Raises:
      ValueError: one line that names the key.
    """
    needs_delay = quantizer.gradient is not None
    build_check.check_adaptation(c, adapt is not None, needs_delay)
    gradients.check_accumulation(c.accumulation_steps, c.meta.mode, needs_delay)
    every = build_check.held_out(c, devices, needs_delay)
    if adapt is not None:
        return reptile.reptile(adapt, prepare)
    if needs_delay:
        return gradients.delayed(loss, prepare, rate, quantizer, tx)
    if c.meta.mode == "bilevel":
        return gradients.bilevel(loss, prepare, rate, every=every, exact=c.meta.exact)
    in_parts = functools.partial(
        gradients.accumulate,
        parts=c.accumulation_steps,
        loop=hosts.backend() != "cpu",
    )
    return gradients.joint(loss, prepare, in_parts)
