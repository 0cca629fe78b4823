"""Masked losses and counts over batches of logits."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, label: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy of every example.

    Args:
      logits: float32 (N, classes).
      label: int32 (N,).
      smoothing: share of the target spread evenly over all classes, in [0, 1).

    Returns:
      float32 (N,).
    """
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)
    target = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(
        logits, optax.losses.smooth_labels(target, smoothing)
    )


def masked_mean(x: jax.Array, mask: jax.Array, axis_name: str | None) -> jax.Array:
    """Mean of `x` where `mask` is 1, so that its mean over devices is the global mean.

    Args:
      x: float32 (N,) of this device.
      mask: float32 (N,), 1 for real examples.
      axis_name: mapped axis of the devices, or None.
    """
    count = jnp.sum(mask)
    if axis_name is not None:
        count = jax.lax.pmean(count, axis_name)
    return jnp.sum(x * mask) / count


def correct(logits: jax.Array, label: jax.Array) -> jax.Array:
    """float32 (N,): 1 where the largest logit is that of the label."""
    return (jnp.argmax(logits, -1) == label).astype(jnp.float32)


def kl_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """KL(p || q) of every example, from logits (N, classes); float32 (N,), nats."""
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
