"""Few-shot classification: new classes from a few images of each, by adaptation."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.common.limits import Choice, Number
from quantnet_jax.tasks.base import Metric, Source, Task
from quantnet_jax.tasks.classification import (
    correct,
    cross_entropy,
    kl_divergence,
)

COUNT = Number(1, 2**10, whole=True)
_PURPOSE = 0xFE35  # domain-separation constant for fold_in


def few_shot(
    source: Source,
    *,
    ways: Annotated[int, Number(2, 2**10, whole=True)] = 5,
    shots: Annotated[int, COUNT] = 5,
    queries: Annotated[int, COUNT] = 5,
    episodes: Annotated[int, Number(1, 2**20, whole=True)] = 200,
    inner_rate: Annotated[float, Number(0, 10, above=True)] = 1e-3,
    inner_optimizer: Annotated[str, Choice(("adam", "sgd"))] = "adam",
    train_shots: Annotated[int, COUNT] = 10,
    steps: Annotated[int, COUNT] = 5,
    batch_size: Annotated[int, COUNT] = 10,
    test_steps: Annotated[int, COUNT] = 50,
    test_batch_size: Annotated[int, COUNT] = 5,
    rotations: bool = True,
) -> Task:
    """Episodes of a few new classes; the network adapts to one, then it is scored.

    An example is an episode: `ways` classes drawn at random, of each some images as the
    support, which the network is adapted to, and `queries` others, which it is scored
    on. The model returns logits (N, ways). Training episodes are of the classes of the
    training images, test episodes of those of the test images.

    Loss: mean cross-entropy of the images of an episode.
    Metric: accuracy, the fraction of its queries whose largest logit is right.
    Comparison: 'kl', the mean of KL(softmax(soft) || softmax(hard)) in nats.

    Reference: the protocol of Reptile, arXiv 1803.02999. Deviation: the moments of the
    inner optimizer begin at zero in each episode; there they go on from the last.

    Args:
      source: a dataset held in memory, whose `info` has 'classes'.
      ways: classes of an episode.
      shots: support images of each class in a test episode.
      queries: scored images of each class.
      episodes: of an evaluation, always the same ones.
      inner_rate: learning rate of the adaptation.
      inner_optimizer: 'adam' with beta1 = 0, of Reptile; or plain 'sgd', of MAML
        (arXiv 1703.03400).
      train_shots: support images of each class in a training episode.
      steps, batch_size: of the adaptation in training: steps, and images of each.
      test_steps, test_batch_size: of the adaptation in an evaluation.
      rotations: in training, the images of a class turned by 90, 180 and 270 degrees
        are classes of their own.

    Raises:
      ValueError: the dataset has too few classes or images, or is not held in memory;
        `rotations` of images that are not square.
    """
    classes = len(source.info["classes"])
    _check(source, ways, train_shots + queries, shots + queries, rotations)
    counts = {True: train_shots, False: shots}
    lengths = {True: (steps, batch_size), False: (test_steps, test_batch_size)}

    def prepare(data, batch, *, seed, train):
        if data is None and train:
            raise ValueError("episodes need a dataset that is held in memory")
        if data is None:  # images alone, for the shapes of a network
            made = source.prepare(data, batch, seed=seed, train=train)
            return {"input": made["image"], "mask": made["mask"]}
        label, position = jnp.asarray(data["label"]), jnp.asarray(batch["position"])
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _PURPOSE)
        keys = jax.vmap(lambda p: jax.random.split(jax.random.fold_in(key, p)))(
            position
        )
        support, turns = counts[train], 4 if train and rotations else 1
        each = support + queries

        def drawn(key):
            return draw(key, label, classes, ways=ways, images=each, turns=turns)

        rows, turn = jax.vmap(drawn)(keys[:, 0])
        number = jnp.arange(ways * each, dtype=jnp.uint32)[None]
        images = source.prepare(
            data,
            {
                "index": rows.reshape(-1),
                "position": (position[:, None] * ways * each + number).reshape(-1),
                "mask": jnp.ones(rows.size, jnp.float32),
            },
            seed=seed,
            train=train,
        )["image"]
        images = images.reshape(*rows.shape, *images.shape[1:])
        images = turned(images, turn) if turns > 1 else images
        flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
        names = jnp.broadcast_to(jnp.arange(ways)[None, :, None], rows.shape)
        plan = lambda key: order(key, ways * support, *lengths[train])
        return {
            "support": {
                "input": flat(images[:, :, :support]),
                "label": flat(names[:, :, :support]),
            },
            "order": jax.vmap(plan)(keys[:, 1]),
            "input": flat(images[:, :, support:]),
            "label": flat(names[:, :, support:]),
            "mask": batch["mask"],
        }

    of_example = lambda x: jnp.mean(x.reshape(x.shape[0], -1), axis=-1)
    return Task(
        primary=Metric("accuracy", "%"),
        prepare=prepare,
        loss=lambda logits, examples, *, train: of_example(
            cross_entropy(logits, examples["label"])
        ),
        metrics=lambda logits, examples: {
            "accuracy": of_example(correct(logits, examples["label"]))
        },
        compare=lambda soft, hard: {"kl": of_example(kl_divergence(soft, hard))},
        same=lambda one, other: one.argmax(-1) == other.argmax(-1),
        model_options={"outputs": ways},
        inner=_inner(inner_optimizer, inner_rate),
        test_size=episodes,
    )


def _inner(name: str, rate: float) -> Any:
    """The optimizer of an adaptation."""
    import optax  # here: a network that predicts needs no optimizer

    return optax.sgd(rate) if name == "sgd" else optax.adam(rate, b1=0.0)


def draw(
    key: jax.Array,
    label: jax.Array,
    classes: int,
    *,
    ways: int,
    images: int,
    turns: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Draws the images of an episode, without replacement.

    Args:
      key: of the episode.
      label: int (N,), below `classes`; classes with fewer images than needed are left
        out.
      classes: number of labels.
      ways: classes to draw.
      images: of each.
      turns: of a class, that are classes of their own.

    Returns:
      (rows (ways, images) of `label`, turn (ways,) below `turns`), int32.
    """
    of_class, of_image = jax.random.split(key)
    enough = jnp.bincount(label, length=classes) >= images
    chance = jax.random.uniform(of_class, (turns, classes))
    chance = jnp.where(enough[None], chance, -1.0).reshape(-1)
    chosen = jax.lax.top_k(chance, ways)[1]
    chance = jax.random.uniform(of_image, (ways, label.size))
    own = label[None] == (chosen % classes)[:, None].astype(label.dtype)
    rows = jax.lax.top_k(jnp.where(own, chance, -1.0), images)[1]
    return rows, chosen // classes


def order(key: jax.Array, size: int, steps: int, batch_size: int) -> jax.Array:
    """Which images each step of an adaptation takes: int (steps, batch_size).

    One permutation of all `size` images after another.
    """
    passes = -(-steps * batch_size // size)
    places = jnp.argsort(jax.random.uniform(key, (passes, size)), axis=-1)
    return places.reshape(-1)[: steps * batch_size].reshape(steps, batch_size)


def turned(images: jax.Array, turn: jax.Array) -> jax.Array:
    """Square images (B, ways, n, H, W, C), turned by (B, ways) times 90 degrees."""
    turn, found = turn.reshape(*turn.shape, 1, 1, 1, 1), images
    for k in (1, 2, 3):
        found = jnp.where(turn == k, jnp.rot90(images, k, axes=(3, 4)), found)
    return found


def _check(source: Source, ways: int, train: int, test: int, rotations: bool) -> None:
    """Refuses a dataset that has not enough classes, or not enough images of them."""
    needs = {"train": train, "test": test}
    for part, held in (source.held or {}).items():
        counts = np.bincount(np.asarray(held["label"]))
        if (found := int(np.sum(counts >= needs[part]))) < ways:
            raise ValueError(
                f"ways={ways}, but the {part} images have {found} classes of at least "
                f"{needs[part]} images, shots and queries; expected fewer of them"
            )
    if rotations and source.shape[0] != source.shape[1]:
        raise ValueError(
            f"rotations=True, but images are {source.shape[0]} x {source.shape[1]} "
            "pixels; expected False, or square ones"
        )
