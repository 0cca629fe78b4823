"""Masked losses and counts over batches of logits."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, label: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy of every example.

    Args:
      logits: float32 (N, classes).
      label: int32 (N,).
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Returns:
      float32 (N,).
    """
    if not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)
    target = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(
        logits, optax.losses.smooth_labels(target, label_smoothing)
    )


def criterion(
    logits: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    label_smoothing: float = 0.0,
    weight: float = 0.0,
    temperature: float = 1.0,
) -> jax.Array:
    """The loss of every example of a batch, with or without a teacher.

    (1 - weight) * cross-entropy + weight * T^2 * KL(softmax(teacher / T) ||
    softmax(logits / T)): Hinton et al., Distilling the Knowledge in a Neural Network,
    arXiv 1503.02531, section 2. T^2 keeps the gradient's size whatever the temperature.

    Args:
      logits: float32 (N, classes).
      batch: 'label' int32 (N,); 'teacher', if there is one: its logits, like `logits`.
      label_smoothing: of the labels, see `cross_entropy`.
      weight: of the imitation, in [0, 1]; counts for nothing without a teacher.
      temperature: T, positive.

    Returns:
      float32 (N,).
    """
    loss = cross_entropy(logits, batch["label"], label_smoothing)
    if "teacher" not in batch:
        return loss
    hot = kl_divergence(batch["teacher"] / temperature, logits / temperature)
    return (1 - weight) * loss + weight * temperature**2 * hot


def weights(mask: jax.Array, axis_name: str | None) -> jax.Array:
    """Weights of examples whose mean, over all devices, is 1, and 0 for padding.

    The mean of `x * weights` over all rows is that of `x` over the real ones; and so is
    the mean of its means over equal parts of the rows.

    Args:
      mask: float32 (N,) of this device, 1 for real examples.
      axis_name: mapped axis of the devices, or None.
    """
    share = jnp.mean(mask)
    if axis_name is not None:
        share = jax.lax.pmean(share, axis_name)
    return mask / share


def correct(logits: jax.Array, label: jax.Array) -> jax.Array:
    """float32 (N,): 1 where the largest logit is that of the label."""
    return (jnp.argmax(logits, -1) == label).astype(jnp.float32)


def kl_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """KL(p || q) of every example, from logits (N, classes); float32 (N,), nats."""
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
