"""Schedules of the optimizer's step for sharpness, penalty and mixing weights.

Any `optax.Schedule` serves as well; these two exist so that the core needs jax alone
and so that a configuration can name a schedule as plain data.
"""

import jax
import jax.numpy as jnp

from quantnet_jax.core.quantizer import ScalarOrSchedule, Schedule


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


KINDS = {"linear": linear, "exponential": exponential}


def from_spec(spec: dict, total_steps: int) -> ScalarOrSchedule:
    """Makes the schedule that plain data describes.

    Args:
      spec: `{"schedule": "linear" | "exponential", "start": a, "end": b,
        "until": f}`; `f` in (0, 1] is the fraction of training at which `end` is
        reached.
      total_steps: optimizer steps of the whole run.

    Returns:
      A schedule; or the number itself where start and end are equal, so that a penalty
      of weight 0 is not computed at all.

    Raises:
      ValueError: for an unknown kind, a missing or unknown key, or `until` outside
        (0, 1].
    """
    kind = spec.get("schedule")
    if kind not in KINDS:
        raise ValueError(f"schedule is {kind!r}, expected one of {sorted(KINDS)}")
    expected = {"schedule", "start", "end", "until"}
    if set(spec) != expected:
        raise ValueError(
            f"a schedule has the keys {sorted(expected)}, got {sorted(spec)}"
        )
    if not 0 < spec["until"] <= 1:
        raise ValueError(f"schedule until={spec['until']}, expected a value in (0, 1]")
    if spec["start"] == spec["end"]:
        return float(spec["end"])
    return KINDS[kind](spec["start"], spec["end"], spec["until"] * total_steps)


def _progress(step: jax.Array, steps: float) -> jax.Array:
    return jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
