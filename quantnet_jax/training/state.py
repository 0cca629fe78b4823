"""The complete training state, as one pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from quantnet_jax.core.quantizer import Quantizer

PyTree = Any


class TrainState(NamedTuple):
    """What a checkpoint holds.

    It carries no PRNG key: every random number is a function of (seed, step, purpose).

    Attributes:
      step: int32 scalar, optimizer steps taken.
      params: {'model': float32 latent weights, 'quant': qparams of the tree quantizer}.
      batch_stats: running statistics of BatchNorm, {} without BatchNorm.
      opt_state: of the optimizer over `params`.
      ema: {'params', 'batch_stats'}: their moving average, see `average`; {} without.
    """

    step: jax.Array
    params: dict[str, PyTree]
    batch_stats: PyTree
    opt_state: PyTree
    ema: dict[str, PyTree]


def create_state(
    variables: PyTree,
    quantizer: Quantizer,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    averaged: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
      variables: of the model: 'params' and, if it has BatchNorm, 'batch_stats'.
      quantizer: over the tree of `variables['params']`.
      tx: optimizer over {'model', 'quant'}.
      key: for the initialization of `qparams`.
      averaged: whether the state holds a moving average.
    """
    model = variables["params"]
    params = {"model": model, "quant": quantizer.init(key, model)}
    batch_stats = variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        ema={"params": params, "batch_stats": batch_stats} if averaged else {},
    )


def first_state(
    model: Any,
    quantizer: Quantizer,
    tx: optax.GradientTransformation,
    examples: PyTree,
    seed: int,
    *,
    train: bool,
    averaged: bool = False,
) -> TrainState:
    """The state of a seed before the first step, on the host.

    Args:
      model: a linen network.
      quantizer, tx, averaged: of `create_state`.
      examples: a batch, whose shape alone counts unless `train`.
      seed: of the run.
      train: whether BatchNorm takes the statistics of `examples`.
    """

    def init(examples):
        key = jax.random.key(seed)
        variables = model.init(jax.random.fold_in(key, 0), examples, train=train)
        key = jax.random.fold_in(key, 1)
        return create_state(variables, quantizer, tx, key, averaged=averaged)

    # Not inside jit with the training: two small programs compile faster.
    return jax.device_get(jax.jit(init)(examples))


def average(
    state: TrainState, params: PyTree, batch_stats: PyTree, decay: float
) -> dict[str, PyTree]:
    """The moving average after a step: keep * old + (1 - keep) * new.

    keep = min(decay, t / (9 + t)) at the t-th step, counted from 0. So the average
    begins with the parameters of the first step, and is not drawn to the start of the
    run however near to 1 the decay is. That is the rule (1 + n) / (10 + n) of
    TensorFlow's `ExponentialMovingAverage(num_updates=n)`, for the n-th update of an
    average that exists.

    Args:
      state: before the step.
      params, batch_stats: after it.
      decay: in [0, 1); 0 for no average.

    Returns:
      What `TrainState.ema` holds; {} if `decay` is 0.
    """
    if not decay:
        return {}
    step = state.step.astype(jnp.float32)
    keep = jnp.minimum(decay, step / (9.0 + step))
    new = {"params": params, "batch_stats": batch_stats}
    return jax.tree.map(lambda a, x: keep * a + (1.0 - keep) * x, state.ema, new)


def eval_state(state: TrainState) -> TrainState:
    """The state that is evaluated and deployed: averaged, where there is an average."""
    return state._replace(**state.ema, ema={})
