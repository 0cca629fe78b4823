"""The state of training: one pytree of arrays, and nothing that is not in it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from quantnet_jax.core.base import Quantizer

PyTree = Any


class TrainState(NamedTuple):
    """What a checkpoint holds.

    It carries no PRNG key: every random number is a function of (seed, step, purpose).

    Attributes:
      step: int32 scalar, optimizer steps taken.
      params: {'model': float32 latent weights, 'quant': qparams of the tree quantizer}.
      batch_stats: running statistics of BatchNorm, {} without BatchNorm.
      opt_state: of the optimizer over `params`.
    """

    step: jax.Array
    params: dict[str, PyTree]
    batch_stats: PyTree
    opt_state: PyTree


def create_state(
    variables: PyTree,
    quantizer: Quantizer,
    tx: optax.GradientTransformation,
    key: jax.Array,
) -> TrainState:
    """The state before the first step.

    Args:
      variables: of the model: 'params' and, if it has BatchNorm, 'batch_stats'.
      quantizer: over the tree of `variables['params']`.
      tx: optimizer over {'model', 'quant'}.
      key: for the initialization of `qparams`.
    """
    model = variables["params"]
    params = {"model": model, "quant": quantizer.init(key, model)}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
    )
