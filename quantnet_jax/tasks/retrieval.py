"""Retrieval: embeddings of unseen classes, by rank-1 and mean average precision."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.common.limits import Number
from quantnet_jax.tasks.base import Metric, Source, Task, inputs_of
from quantnet_jax.tasks.embeddings import distances, normalized


def retrieval(
    source: Source,
    *,
    dimensions: Annotated[int, Number(2, 2**12, whole=True)] = 64,
    margin: Annotated[float, Number(0, 2)] = 0.2,
) -> Task:
    """Images to embeddings, near each other if of one class; classes may be unseen.

    Loss: batch-all triplet loss of each example as anchor a,
      mean over p, n with max(0, margin + d(a, p) - d(a, n)) > 0 of that number,
      p of its class and n of another one; 0 without such pairs.
    Metric: 'rank1', 1 where the nearest other example is of the same class; and 'map',
      the average precision of the others in order of distance. Examples without
      another of their class count 0.
    Comparison: 'moved', the distance of soft and hard embedding.

    Distances d are Euclidean, of embeddings of length 1. Anchors and galleries are the
    examples that a device holds of a batch: for whole galleries `eval_batch_size` is
    the number of test images, on one device.

    Reference: Hermans et al., In Defense of the Triplet Loss, arXiv 1703.07737 (batch
    all, without zeros).

    Args:
      source: a dataset with labels, whose test classes may be others.
      dimensions: of an embedding.
      margin: of the loss.
    """

    return Task(
        primary=Metric("rank1", "%"),
        prepare=inputs_of(source),
        loss=lambda outputs, examples, *, train: triplet_loss(
            outputs, examples["label"], examples["mask"], margin
        ),
        metrics=lambda outputs, examples: ranking(
            outputs, examples["label"], examples["mask"]
        ),
        compare=lambda soft, hard: {
            "moved": jnp.linalg.norm(normalized(soft) - normalized(hard), axis=-1)
        },
        same=lambda one, other: abs(_unit(one) - _unit(other)).max(-1) < 1e-3,
        model_options={"outputs": dimensions},
    )


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-6)


def _pairs(label: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which pairs of real examples are of one class, themselves apart; of two."""
    real = (mask > 0)[:, None] & (mask > 0)[None]
    same = (label[:, None] == label[None]) & real
    return same & ~jnp.eye(label.size, dtype=bool), real & ~same


def triplet_loss(
    outputs: jax.Array, label: jax.Array, mask: jax.Array, margin: float
) -> jax.Array:
    """Batch-all triplet loss of every anchor, float32 (N,); see `retrieval`."""
    d = distances(normalized(outputs))
    same, other = _pairs(label, mask)
    # With negatives sorted, those of a pair are the first ones: N^2 numbers, not N^3.
    negatives = jnp.sort(jnp.where(other, d, jnp.inf), axis=-1)
    summed = jnp.cumsum(jnp.where(jnp.isfinite(negatives), negatives, 0.0), axis=-1)
    summed = jnp.pad(summed, ((0, 0), (1, 0)))
    edge = margin + d
    count_below = jax.vmap(lambda row, values: jnp.searchsorted(row, values))
    active = count_below(*map(jax.lax.stop_gradient, (negatives, edge)))
    count = jnp.where(same, active, 0).astype(jnp.float32)
    loss = count * edge - jnp.take_along_axis(summed, active, axis=-1)
    total = jnp.sum(jnp.where(same, loss, 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(count, axis=-1), 1.0)


def ranking(
    outputs: jax.Array, label: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """{'rank1', 'map'} of every example, float32 (N,); see `retrieval`."""
    same, other = _pairs(label, mask)
    d = jnp.where(same | other, distances(normalized(outputs)), jnp.inf)
    order = jnp.argsort(d, axis=-1)
    hit = jnp.take_along_axis(same, order, axis=-1).astype(jnp.float32)
    place = jnp.arange(1, label.size + 1, dtype=jnp.float32)
    precision = jnp.cumsum(hit, axis=-1) / place[None]
    total = jnp.sum(hit, axis=-1)
    average = jnp.sum(precision * hit, axis=-1) / jnp.maximum(total, 1.0)
    return {"rank1": hit[:, 0], "map": average}
