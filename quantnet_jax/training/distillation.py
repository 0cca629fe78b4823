"""Distillation: a trained float network of ours as the teacher of another one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax import config as config_lib
from quantnet_jax import models
from quantnet_jax.checkpoint.manager import Checkpoints
from quantnet_jax.checkpoint.warm_start import describe, flatten
from quantnet_jax.config import Config
from quantnet_jax.distributed import runners
from quantnet_jax.training.feed import Feed, make_feed
from quantnet_jax.training.networks import make_model

PyTree = Any


def load_teacher(
    config: Config, feed: Feed, runner: runners.Runner
) -> tuple[Callable, PyTree]:
    """The network of `config.distillation.workdir` at its last checkpoint.

    It need not have the architecture of the student. Its optimizer is not read; where
    its run kept averaged weights, it is those.

    Args:
      config: of the student.
      feed: of the student: the teacher must be of the same classes and images.
      runner: that will run it; several data sets need its processes.

    Returns:
      (`(weights, image) -> float32 logits`, weights on the host with their
      normalizations folded in).

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: it is no float run, or of other data.
    """
    key = f"distillation.workdir={config.distillation.workdir!r}"
    try:
        teacher = config_lib.load(config.distillation.workdir)
        _check(teacher, config, feed, runner)
        model = make_model(teacher, len(feed.classes), None)
        image = jax.ShapeDtypeStruct((1, *feed.shape), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)
        stats = shapes.get("batch_stats", {})
        like = {"params": {"model": shapes["params"]}, "batch_stats": stats}
        with Checkpoints(config.distillation.workdir, read_only=True) as source:
            saved = source.load_arrays().state
        wanted = flatten(like)
        for name, leaf in wanted.items():
            if name not in saved or saved[name].shape != leaf.shape:
                found = describe(saved[name]) if name in saved else "nothing"
                raise ValueError(
                    f"{name!r} was saved as {found}, its config builds {describe(leaf)}"
                )
    except (ValueError, FileNotFoundError) as e:
        raise type(e)(f"{key}: {e}") from None
    leaves = [saved[name] for name in wanted]
    full = jax.tree.unflatten(jax.tree.structure(like), leaves)
    weights = jax.jit(models.fold)(full["params"]["model"], full["batch_stats"])
    folded = model.clone(folded=True)

    def logits(weights, image):
        return folded.apply({"params": weights}, image, train=False)

    return logits, jax.device_get(weights)


def with_teacher(prepare: Callable, logits: Callable) -> Callable:
    """`prepare`, whose batches also hold the teacher's logits of the same images.

    The result takes {'set': data of `prepare`, 'teacher': weights} as its data: arrays
    that a program gets, not constants in it. No loss is differentiated through it.
    """

    def prepare_both(data, batch):
        made = prepare(data["set"], batch)
        return made | {"teacher": logits(data["teacher"], made["image"])}

    return prepare_both


def _check(teacher: Config, config: Config, feed: Feed, runner: runners.Runner):
    """Refuses a teacher that is not float, or that knows other classes or images."""
    for name, value, wanted in (
        ("quantizer.name", teacher.quantizer.name, "identity"),
        ("rules", tuple(teacher.rules), ()),
        ("activation.name", teacher.activation.name, ""),
    ):
        if value != wanted:
            raise ValueError(
                f"a run with {name}={value!r}, expected a float one, with {wanted!r}"
            )
    same = ("name", "image_size", "classes")
    if all(teacher.data[k] == config.data[k] for k in same):
        return
    other = make_feed(teacher, runner)
    for name, was, now in (
        ("images of shape", other.shape, feed.shape),
        ("classes in number", len(other.classes), len(feed.classes)),
        *(
            ("a class", *pair)
            for pair in zip(other.classes, feed.classes, strict=False)
        ),
    ):
        if was != now:
            raise ValueError(
                f"a run on {teacher.data.name!r} with {name} {was!r}, expected {now!r} "
                f"as in {config.data.name!r}"
            )
