"""Pure functions from `flax.nnx` models: plain parameters, plain state, one `apply`."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

PyTree = Any


def split(model: nnx.Module) -> tuple[dict, dict, Callable[..., tuple[Any, dict]]]:
    """Splits a model into parameters, state and a pure function.

    The model is unchanged. Items of an `nnx.List` have integers as keys, so that paths
    are 'layers/0/kernel', as `quantnet_jax.Rule` matches them.

    Args:
      model: any module, also with scanned, vmapped and shared layers.

    Returns:
      (params, state, apply): nested dicts of the values of all `nnx.Param`, and of all
      other variables but those of random streams, such as BatchNorm's statistics; and

        `apply(params, state, *inputs, train=False, rngs=None, **options)
        -> (outputs, state)`,

      which calls the model in the mode of `model.train()` or `model.eval()` and returns
      the state after the call. `rngs` is a key (or `nnx.Rngs`) that seeds all random
      streams of the model. A model whose `__call__` has parameters `train` or `rngs`
      receives them; `options` go to it as they are.

    Raises:
      TypeError: `model` is no `nnx.Module`.
      ValueError: by `apply`, if it trains a model with Dropout or another random stream
        without `rngs`, which would repeat one mask.

    Example:
      >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
      >>> params, state, apply = split(model)
      >>> sorted(params), sorted(state)
      (['bias', 'scale'], ['mean', 'var'])
      >>> outputs, state = apply(params, state, jnp.ones((4, 2)), train=True)
      >>> float(state["mean"][0]) > 0
      True
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"`model` is a {type(model).__name__}, expected an nnx.Module")
    modes = {}
    for train in (True, False):
        copy = nnx.merge(*nnx.split(model))
        copy.train() if train else copy.eval()
        modes[train] = _parts(copy)
    _, params, streams, state = modes[True]
    accepted = inspect.signature(type(model).__call__).parameters

    def apply(params, state, *inputs, train=False, rngs: Any = None, **options):
        key: Any = rngs() if isinstance(rngs, nnx.Rngs) else rngs
        if key is None and train and streams:
            names = sorted({*map(str, streams)})
            raise ValueError(
                f"`rngs` is missing: {', '.join(names)} draw random numbers"
            )
        seeded = streams if key is None else _seeded(streams, key)
        if "train" in accepted:
            options["train"] = train
        if "rngs" in accepted and key is not None:
            options["rngs"] = nnx.Rngs(key)
        copy = nnx.merge(modes[bool(train)][0], params, seeded, state)
        outputs = copy(*inputs, **options)
        return outputs, _parts(copy)[-1]

    return params, state, apply


def merge(model: nnx.Module, params: dict, state: dict | None = None) -> nnx.Module:
    """A new model like `model` with other values; the inverse of `split`.

    Args:
      model: gives structure, mode and random streams; unchanged.
      params: as `split` returns them, arrays at all leaves.
      state: as `split` returns it; default that of `model`.
    """
    graph, _, streams, own = _parts(model)
    return nnx.merge(graph, params, streams, own if state is None else state)


def _parts(model: nnx.Module) -> tuple[Any, dict, dict, dict]:
    """(graph, parameters, random streams, all else), the last three as dicts."""
    graph, params, streams, rest = nnx.split(model, nnx.Param, nnx.RngState, ...)
    pure = nnx.to_pure_dict
    return graph, pure(params), pure(streams), pure(rest)


def _seeded(streams: dict, key: jax.Array) -> dict:
    """The random streams, restarted from different keys."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    leaves, structure = jax.tree.flatten(streams)
    for number, x in enumerate(leaves):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            own = jax.random.fold_in(key, number)
            leaves[number] = jax.random.split(own, x.shape) if x.shape else own
        else:
            leaves[number] = jnp.zeros_like(x)
    return jax.tree.unflatten(structure, leaves)
