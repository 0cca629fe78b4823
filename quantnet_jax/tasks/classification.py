"""Classification of images: cross-entropy, accuracy, divergence of two predictions."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.common.limits import Number
from quantnet_jax.tasks.base import Metric, Source, Task, inputs_of


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

    return Task(
        primary=Metric("accuracy", "%"),
        prepare=inputs_of(source),
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
        panels=lambda logits, examples: confusion(logits, examples["label"], classes),
    )


SAMPLES = 8
"""Right and wrong predictions that a report shows, of each."""


def confusion(
    logits: np.ndarray, label: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """The confusion matrix, and some predictions, for a report; see `Task.panels`.

    Shown are the most confident wrong predictions, and the first right ones.

    Args:
      logits: (N, classes).
      label: int (N,).
      classes: their names.
    """
    guess, size = logits.argmax(-1), len(classes)
    counts = np.bincount(label * size + guess, minlength=size * size)
    odds = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    sure = odds.max(-1) / odds.sum(-1)
    wrong = np.flatnonzero(guess != label)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")].tolist()
    right = np.flatnonzero(guess == label).tolist()
    samples = [
        {
            "index": int(i),
            "title": classes[label[i]],
            "text": f"{classes[guess[i]]}, {100 * sure[i]:.0f}\u00a0%",
            "good": bool(guess[i] == label[i]),
        }
        for i in (*wrong[:SAMPLES], *right[:SAMPLES])
    ]
    title = "Confusion matrix: class (down) and prediction (across)"
    matrix = {"title": title, "names": list(classes)}
    return {
        "matrix": matrix | {"counts": counts.reshape(size, size).tolist()},
        "samples": samples,
    }


def describe_classes(
    logits: np.ndarray, info: Mapping[str, Any], top: int = 5
) -> tuple[dict[str, Any], list[str]]:
    """The most probable classes of one example, as JSON data and as lines of text.

    Args:
      logits: (classes,).
      info: that the task had, {'classes': names}.
      top: how many classes, at least 1.

    Raises:
      ValueError: `info` has not one name for each logit.
    """
    names = info.get("classes")
    types = [str] * len(logits)
    if not isinstance(names, list | tuple) or [*map(type, names)] != types:
        raise ValueError(
            f"info['classes'] is {names!r:.80}, expected {len(logits)} names"
        )
    odds = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    odds /= odds.sum()
    best = np.argsort(-odds, kind="stable")[:top]
    rows = [{"class": names[i], "probability": float(odds[i])} for i in best]
    # Names come from a file: they must not move the cursor.
    shown = [x if x.isprintable() else ascii(x)[1:-1] for x in (names[i] for i in best)]
    wide = max(map(len, shown))
    lines = [
        f"{name:{wide}s}  {100 * row['probability']:6.2f}%"
        for name, row in zip(shown, rows, strict=True)
    ]
    return {"classes": rows}, lines


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
    import optax  # here: prediction imports this file and needs no optimizer

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
