"""Classification of images: cross-entropy, accuracy, divergence of two predictions."""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from quantnet_jax.core.limits import Number
from quantnet_jax.tasks.base import Metric, Source, Task


def classification(
    source: Source,
    *,
    label_smoothing: Annotated[float, Number(0, 1, below=True)] = 0.0,
) -> Task:
    """Images into classes; the model returns logits (N, classes).

    Loss: cross-entropy with the targets (1 - s) onehot(label) + s / classes.
    Metric: accuracy, 1 where the largest logit is that of the label.
    Comparison: 'kl', KL(softmax(soft) || softmax(hard)) in nats.

    Args:
      source: a dataset whose `info` has 'classes', a name for each.
      label_smoothing: s, in [0, 1).
    """
    classes = tuple(source.info["classes"])

    def prepare(data, batch, *, seed, train):
        made = source.prepare(data, batch, seed=seed, train=train)
        return {"input": made.pop("image"), **made}

    return Task(
        primary=Metric("accuracy", "%"),
        prepare=prepare,
        loss=lambda logits, examples, *, train: cross_entropy(
            logits, examples["label"], label_smoothing if train else 0.0
        ),
        metrics=lambda logits, examples: {
            "accuracy": correct(logits, examples["label"])
        },
        compare=lambda soft, hard: {"kl": kl_divergence(soft, hard)},
        same=lambda one, other: one.argmax(-1) == other.argmax(-1),
        model_options={"outputs": len(classes)},
        info={"classes": list(classes)},
    )


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


def correct(logits: jax.Array, label: jax.Array) -> jax.Array:
    """float32 (N,): 1 where the largest logit is that of the label."""
    return (jnp.argmax(logits, -1) == label).astype(jnp.float32)


def kl_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """KL(p || q) of every example, from logits (N, classes); float32 (N,), nats."""
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
