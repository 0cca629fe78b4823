"""Schedules of the optimizer's step for sharpness, penalty and mixing weights.

Any `optax.Schedule` serves as well; these exist so that the core needs jax alone.
`from_spec` makes a schedule of plain data, as configurations hold it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax.common import specs
from quantnet_jax.common.limits import Limit, Scheduled, check
from quantnet_jax.core.quantizer import ScalarOrSchedule, Schedule, as_schedule

__all__ = ["Schedule", "exponential", "from_spec", "linear", "piecewise", "resolve"]


def linear(start: float, end: float, steps: float) -> Schedule:
    """From `start` at step 0 to `end` at step `steps`, straight; then constant."""
    return lambda step: start + (end - start) * _progress(step, steps)


def exponential(start: float, end: float, steps: float) -> Schedule:
    """From `start` at step 0 to `end` at step `steps`, by equal factors; then constant.

    Raises:
      ValueError: if `start` or `end` is not positive.
    """
    if not (start > 0 and end > 0):
        raise ValueError(
            f"an exponential schedule needs positive ends, got start={start}, end={end}"
        )
    ratio = end / start
    return lambda step: start * ratio ** _progress(step, steps)


def piecewise(start: float, boundaries: Iterable[tuple[float, float]]) -> Schedule:
    """`start` at first, and from each boundary on the value beside it.

    Args:
      start: the value before the first boundary.
      boundaries: (step, value) pairs, steps in ascending order.

    Example:
      >>> schedule = piecewise(0.0, [(10, 0.5), (20, 1.0)])
      >>> [float(schedule(step)) for step in (9, 10, 25)]
      [0.0, 0.5, 1.0]
    """
    pairs = tuple(boundaries)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        value = jnp.asarray(start, jnp.float32)
        for boundary, new in pairs:
            value = jnp.where(step >= boundary, new, value)
        return value

    return schedule


KINDS = {"linear": linear, "exponential": exponential, "piecewise": piecewise}


def from_spec(spec: Mapping[str, Any], total_steps: int) -> ScalarOrSchedule:
    """Makes the schedule that plain data describes.

    | `schedule` | other keys |
    |---|---|
    | 'linear', 'exponential' | `start`, `end`, `until`: fraction of training |
    | 'piecewise' | `start`, `boundaries`: ((fraction of training, value), ...) |
    | 'optax:NAME' | arguments of `optax.NAME`, such as 'optax:cosine_decay_schedule' |

    Fractions are in (0, 1]. Arguments of optax that count steps (their names end in
    'steps', or `transition_begin`) and the first of each pair of
    `boundaries_and_scales` are fractions of training as well.

    Args:
      spec: the data.
      total_steps: optimizer steps of the whole run.

    Returns:
      A schedule; or the number itself where start and end are equal, so that a penalty
      of weight 0 is not computed at all.

    Raises:
      ValueError: for an unknown kind, a missing or unknown key, or a fraction outside
        (0, 1].

    Example:
      >>> spec = {"schedule": "linear", "start": 0.0, "end": 1.0, "until": 0.5}
      >>> float(from_spec(spec, 100)(25))
      0.5
    """
    for name, (kind, value) in specs.parse("schedule", spec).items():
        if kind == "fraction" and not 0 < value <= 1:
            raise ValueError(f"schedule.{name}={value}, expected a value in (0, 1]")
    kind = spec["schedule"]
    if kind == "piecewise":
        rows = [(f * total_steps, value) for f, value in spec["boundaries"]]
        return piecewise(spec["start"], rows)
    if kind not in KINDS:
        return _of_optax(kind, spec, total_steps)
    if spec["start"] == spec["end"]:
        return float(spec["end"])
    return KINDS[kind](spec["start"], spec["end"], spec["until"] * total_steps)


NOMINAL = 10_000
"""Steps of a run where none is at hand: no schedule matters in a network that ships."""


def resolve(value: Any, total_steps: int, limit: Limit | None = None) -> Any:
    """`from_spec` of a mapping; anything else as it is.

    Args:
      value: of an option that may be a schedule.
      total_steps: optimizer steps of the whole run.
      limit: what its values must be. The numbers of a specification were held to it
        where the option was checked; those of optax may mean anything, so 101 steps
        of the run are tried.

    Raises:
      ValueError: as `from_spec`; a schedule of optax leaves the limit.
    """
    if not isinstance(value, Mapping):
        return value
    made = from_spec(value, total_steps)
    if isinstance(limit, Scheduled) and value["schedule"] not in KINDS:
        steps = jnp.linspace(0.0, total_steps, 101).round()
        numbers = jax.vmap(as_schedule(made))(steps)
        for step, number in zip(steps.tolist(), numbers.tolist(), strict=True):
            check(f"{value['schedule']!r} at step {step:g}", number, limit.number)
    return made


def _of_optax(name: str, spec: Mapping[str, Any], total_steps: int) -> Schedule:
    steps = lambda fraction: max(1, round(fraction * total_steps))
    options = {k: v for k, v in spec.items() if k != "schedule"}
    try:
        for option, value in options.items():
            if specs.is_steps(option):
                options[option] = steps(value) if value else 0
            elif option == "boundaries_and_scales":
                options[option] = {steps(f): scale for f, scale in value}
        schedule = specs.find(name)(**options)
        jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.float32))  # wrong types
    except (TypeError, ValueError) as e:
        text = " ".join(str(e).split())
        raise ValueError(f"schedule={name!r}: {text}") from None
    # Not all of optax's schedules take an integer step under strict promotion.
    as_float = lambda x: jnp.asarray(x, jnp.float32)
    return lambda step: as_float(schedule(as_float(step)))


def _progress(step: jax.Array, steps: float) -> jax.Array:
    return jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
