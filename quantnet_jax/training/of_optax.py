"""Schedules and transformations of optax by name, tried before they are used."""

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from quantnet_jax.common.names import reason, show
from quantnet_jax.common.specs import OPTAX
from quantnet_jax.core.schedules import from_spec


def schedule(name: str, peak: float, steps: int, options: tuple) -> optax.Schedule:
    """A schedule of optax.

    Args:
      name: of it.
      peak: its peak or initial value, unless that is given.
      steps: of the run, of which fractional numbers of steps are parts.
      options: (name, value) arguments.

    Raises:
      ValueError: begins with 'schedule_options=': it does not take them, or gives
        something else than a number.
    """
    with _expected(f"schedule_options={show(options)}", name):
        made = _schedule(name, peak, steps, dict(options))
        with jax.numpy_dtype_promotion("standard"):
            number = lambda step: jnp.asarray(made(step))
            rate = jax.eval_shape(number, jax.ShapeDtypeStruct((), jnp.float32))
        kinds = (jnp.floating, jnp.integer)
        if rate.shape or not any(jnp.issubdtype(rate.dtype, kind) for kind in kinds):
            raise TypeError("the learning rate would be no number")
    return made


def _schedule(name: str, peak: float, steps: int, options: dict) -> optax.Schedule:
    make = getattr(optax, name)
    known = inspect.signature(make).parameters
    first = next((k for k in ("peak_value", "init_value", "value") if k in known), "")
    given = {first: peak} | options if first else options
    pairs = options.get("boundaries_and_scales")
    if "boundaries_and_scales" in known and not isinstance(pairs, Mapping | None):
        return cast(Any, from_spec({"schedule": f"{OPTAX}{name}", **given}, steps))
    if "decay_steps" in known:
        given = {"decay_steps": 1.0} | given
    of_steps = ("steps", "begin")
    given = {
        k: round(v * steps) if k.endswith(of_steps) and isinstance(v, float) else v
        for k, v in given.items()
    }
    return make(**given)


def transformation(
    name: str, given: dict[str, Any], options: tuple
) -> optax.GradientTransformation:
    """A transformation of optax.

    Args:
      name: of it.
      given: arguments that follow from other settings.
      options: (name, value) arguments.

    Raises:
      ValueError: begins with 'options=': it does not take them.
    """
    with _expected(f"options={show(options)}", name):
        made = getattr(optax, name)(**given, **dict(options))
        params = {"kernel": (256, 256), "bias": (2,)}
        params = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in params.items()}
        with jax.numpy_dtype_promotion("standard"):
            state = jax.eval_shape(made.init, params)
            updates, new = jax.eval_shape(made.update, params, state, params)
        form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        if form((updates, new)) != form((params, state)):
            raise TypeError("the updates would be of another type")
    return made


@contextlib.contextmanager
def _expected(found: str, name: str):
    """Whatever a function of optax raises for its arguments becomes one line."""
    try:
        yield
    except Exception as e:
        expected = f"expected arguments of optax.{name}"
        raise ValueError(f"{found}, {expected}: {reason(e)}") from None
