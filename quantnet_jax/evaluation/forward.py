"""Pure functions of one batch that evaluation compiles: forward, statistics, tally."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax.tasks import Task

PyTree = Any


def make_forward(apply: Callable, prepare: Callable) -> Callable:
    """Makes `forward(weights, data, batch, axis_name) -> outputs`.

    Args:
      apply: `(variables, input, train)`, of a network whose normalizations are folded
        into its weights.
      prepare: `(data, batch) -> examples`, without augmentation.

    One function for soft and hard weights: compiled once, it cannot differ between
    them in anything but the weights.
    """

    def forward(weights, data, batch, axis_name):
        del axis_name
        return apply({"params": weights}, prepare(data, batch)["input"], train=False)

    return forward


def make_statistics(apply: Callable, prepare: Callable) -> Callable:
    """Makes `statistics(weights, batch_stats, data, batch, axis_name)`.

    Args:
      apply: of a model whose BatchNorm has momentum 0, so that its updated running
        statistics are those of the batch.
      prepare: as in training.

    The result has the structure of `batch_stats`.
    """

    def statistics(weights, batch_stats, data, batch, axis_name):
        variables = {"params": weights, "batch_stats": batch_stats}
        _, updated = apply(variables, prepare(data, batch)["input"], train=True)
        del axis_name  # BatchNorm has averaged over it
        return updated.get("batch_stats", {})

    return statistics


def make_tally(task: Task, prepare: Callable) -> Callable:
    """Makes `tally(data, batch, outputs, axis_name)`: sums over devices.

    Args:
      task: its loss, metrics and comparison.
      prepare: `(data, batch) -> examples`, without augmentation.

    `outputs` are those of several weight trees, {'soft', 'hard', ...: outputs}. Sums
    are over real examples, float32 scalars: {'examples': count, 'trees': {name: {'loss'
    and each metric}}, 'compare': of soft with hard, 'squares': of the primary metric of
    'hard'}.
    """

    def tally(data, batch, outputs: Mapping[str, PyTree], axis_name):
        examples = prepare(data, batch)
        mask = examples["mask"]
        values = {
            "examples": jnp.ones_like(mask),
            "trees": {
                name: {
                    "loss": task.loss(out, examples, train=False),
                    **task.metrics(out, examples),
                }
                for name, out in outputs.items()
            },
            "compare": task.compare(outputs["soft"], outputs["hard"]),
        }
        primary = values["trees"]["hard"][task.primary.name]
        values["squares"] = primary * primary
        sums = jax.tree.map(lambda x: jnp.sum(x * mask), values)
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    return tally
