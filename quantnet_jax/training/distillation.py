"""The teacher of a run: a trained float network of the package."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax import config as config_lib
from quantnet_jax import models
from quantnet_jax.checkpoint.layout import describe
from quantnet_jax.checkpoint.manager import Checkpoints
from quantnet_jax.config import Config
from quantnet_jax.distributed.runners import Runner
from quantnet_jax.tasks import Task
from quantnet_jax.training.feed import Feed, make_feed
from quantnet_jax.training.parts import make_model
from quantnet_jax.trees.paths import flatten

PyTree = Any


class Teacher(NamedTuple):
    """A trained network, on the host.

    Attributes:
      outputs: `(folded, input) -> outputs`.
      folded: its parameters, normalizations folded in.
      params: its parameters as they were trained.
    """

    outputs: Callable
    folded: PyTree
    params: PyTree


def load_teacher(config: Config, feed: Feed, task: Task, runner: Runner) -> Teacher:
    """The network of `config.teacher` at its last checkpoint.

    It need not have the architecture of the student. Its optimizer is not read; where
    its run averaged weights, it is those.

    Args:
      config: of the student.
      feed: of the student: the teacher must have the same task and images.
      task: of the student.
      runner: that will run it; several datasets need its processes.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: it is no float run, or of other data.
    """
    key = f"teacher={config.teacher!r}"
    try:
        teacher = config_lib.load(config.teacher)
        _check(teacher, config, feed, runner)
        model = make_model(teacher, task.model_options, None)
        image = jax.ShapeDtypeStruct((1, *feed.shape), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)
        stats = shapes.get("batch_stats", {})
        like = {"params": {"model": shapes["params"]}, "batch_stats": stats}
        with Checkpoints(config.teacher, read_only=True) as source:
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
    params = full["params"]["model"]
    folded = jax.device_get(jax.jit(models.fold)(params, full["batch_stats"]))
    network = model.clone(folded=True)

    def outputs(weights, inputs):
        return network.apply({"params": weights}, inputs, train=False)

    return Teacher(outputs, folded, params)


def with_teacher(prepare: Callable, outputs: Callable) -> Callable:
    """`prepare`, whose examples also have 'teacher', its outputs for the same input.

    The result takes {'set': data of `prepare`, 'teacher': weights} as its data: arrays
    that a program gets, not constants in it. No loss is differentiated through it.
    """

    def prepare_both(data, batch):
        made = prepare(data["set"], batch)
        return made | {"teacher": outputs(data["teacher"], made["input"])}

    return prepare_both


def beside(data: PyTree, teacher: Teacher, runner: Runner) -> dict[str, PyTree]:
    """The data of a step with the teacher's parameters, on the devices."""
    folded, params = runner.replicate((teacher.folded, teacher.params))
    return {"set": data, "teacher": folded, "teacher_params": params}


def _check(teacher: Config, config: Config, feed: Feed, runner: Runner):
    """Refuses a teacher that is not float, or has another task or other images."""
    if found := config_lib.quantizing(teacher):
        raise ValueError(f"a run with {found}: only a float network teaches")
    if teacher.task.name != config.task.name:
        raise ValueError(
            f"a run with task.name={teacher.task.name!r}, expected {config.task.name!r}"
        )
    if teacher.data.to_dict() == config.data.to_dict():
        return
    own = teacher.copy_and_resolve_references()
    own.model = config.model  # of which margins around test images follow
    other = make_feed(own, runner)
    pairs: list[tuple[str, Any, Any]] = [("images of shape", other.shape, feed.shape)]
    listed = lambda x: list(x) if isinstance(x, list | tuple) else [x]
    for name in sorted({*other.info, *feed.info}):
        was, now = (listed(x.info.get(name, ())) for x in (other, feed))
        pairs.append((f"{name} in number", len(was), len(now)))
        pairs += [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(was, now))]  # noqa: B905
    for name, was, now in pairs:
        if was != now:
            raise ValueError(
                f"a run on {teacher.data.name!r} with {name} {was!r}, expected {now!r} "
                f"as in {config.data.name!r}"
            )
