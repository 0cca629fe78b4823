"""Pure functions of one batch that evaluation compiles: forward, statistics, tally."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from quantnet_jax.tasks import classification as losses


def make_forward(apply: Callable, prepare: Callable) -> Callable:
    """Makes `forward(weights, data, batch, axis_name) -> logits`.

    Args:
      apply: of a network whose normalizations are folded into its weights.
      prepare: `(data, batch) -> {'image', ...}`, without augmentation.

    One function for soft and hard weights: compiled once, it cannot differ between
    them in anything but the weights.
    """

    def forward(weights, data, batch, axis_name):
        del axis_name
        return apply({"params": weights}, prepare(data, batch)["image"], train=False)

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
        _, updated = apply(variables, prepare(data, batch)["image"], train=True)
        del axis_name  # BatchNorm has averaged over it
        return updated.get("batch_stats", {})

    return statistics


def tally(data, batch, soft_logits, hard_logits, axis_name) -> dict[str, jax.Array]:
    """Sums over the real examples of a batch and over devices, float32 scalars.

    Returns:
      'examples', 'soft' and 'hard' (correct ones), 'loss_soft', 'loss_hard', 'kl'
      (divergence of the hard from the soft class probabilities).
    """
    streamed = "label" in batch
    label = batch["label"] if streamed else data["label"][batch["index"]]
    sums = {
        "examples": jnp.ones_like(batch["mask"]),
        "soft": losses.correct(soft_logits, label),
        "hard": losses.correct(hard_logits, label),
        "loss_soft": losses.cross_entropy(soft_logits, label),
        "loss_hard": losses.cross_entropy(hard_logits, label),
        "kl": losses.kl_divergence(soft_logits, hard_logits),
    }
    sums = {name: jnp.sum(x * batch["mask"]) for name, x in sums.items()}
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)
