"""The compiled functions that evaluate a state: one forward pass for all weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from quantnet_jax import models
from quantnet_jax.distributed import runners
from quantnet_jax.evaluation import forward as fns
from quantnet_jax.evaluation import gap, recalibration
from quantnet_jax.logging.scores import unit_of
from quantnet_jax.ops import cpu_conv
from quantnet_jax.tasks import Task

PyTree = Any


class Scoring(NamedTuple):
    """Compiled functions that score a state.

    Attributes:
      evaluate: `(state, previous codes=None) -> (scores, layers, codes)`: those of
        `gap.score` and `gap.layer_report`, and the codes for the next call.
      statistics: `state -> BatchNorm statistics` of the hard weights, the mean over
        some training batches; ValueError without batches or BatchNorm.
      predict: `folded parameters -> outputs` for all test images of this process, on
        the host.
      measure: `outputs of all test images -> mean of the primary metric`.
    """

    evaluate: Callable
    statistics: Callable
    predict: Callable
    measure: Callable


def make_scoring(
    model,
    realize: Callable,
    runner: runners.Runner,
    task: Task,
    data: dict[str, PyTree],
    prepare: dict[str, Callable],
    batches: dict[str, Callable],
    recalibration_batches: int,
    adapted: Callable | None = None,
) -> Scoring:
    """Compiles them; nothing runs yet.

    Args:
      model: a linen network of `quantnet_jax.models`.
      realize: compiled function of `gap.make_realize`.
      runner: that compiles.
      task: what outputs are judged by.
      data: 'train' and 'test', what the devices hold of the dataset, or None.
      prepare: 'train' and 'test', `(data, batch) -> examples`.
      batches: 'train' and 'test', `() -> iterator` over batches of this process.
      recalibration_batches: of the BatchNorm recalibration, 0 for none.
      adapted: `(state, data, batch, axis_name) -> {'soft', 'hard'}`: outputs of a
        network that adapts to each example. The scores then hold those of training
        data too, 'soft_train', 'hard_train' and 'generalization_gap', by how much
        'hard' is worse than 'hard_train'.
    """
    # What is scored is what ships: normalizations folded, weights hard or soft.
    forward = runner.compile(
        fns.make_forward(make_apply(model.clone(folded=True), runner), prepare["test"]),
        replicated=2,
        out=runners.SHARDED,
    )
    fold = runner.compile(
        lambda w, stats, axis_name: models.fold(w, stats), 2, out=runners.STATE
    )
    tally = runner.compile(fns.make_tally(task, prepare["test"]), replicated=1)
    # With momentum 0 the running statistics are those of the last batch.
    of_batch = runner.compile(
        fns.make_statistics(
            make_apply(model.clone(momentum=0.0), runner), prepare["train"]
        ),
        replicated=3,
        out=runners.STATE,
    )

    def recalibrated(hard, stats):
        stream = batches["train"]()
        some = (runner.shard(next(stream)) for _ in range(recalibration_batches))
        return recalibration.average_statistics(
            of_batch, hard, stats, data["train"], some
        )

    of_adapted = None
    if adapted is not None:
        of_adapted = runner.compile(adapted, replicated=2, out=runners.SHARDED)

    def score(part, outputs_of):
        sharded = map(runner.shard, batches["test"]())
        return gap.score(tally, outputs_of, data[part], sharded, task.primary)

    def scores_of(state, realized):
        if (of := of_adapted) is not None:
            at = lambda part: lambda batch: of(state, data[part], batch)
            found, seen = (score(part, at(part)) for part in ("test", "train"))
            found |= {f"{name}_train": seen[name] for name in ("soft", "hard")}
            unit = unit_of(task.primary._asdict())
            over = unit.gap(found["hard_train"], found["hard"])
            return found | {"generalization_gap": over}
        stats = state.batch_stats
        trees = {"soft": fold(realized.soft, stats), "hard": fold(realized.hard, stats)}
        if recalibration_batches and jax.tree.leaves(stats):
            trees["hard_bn"] = fold(realized.hard, recalibrated(realized.hard, stats))
        of_batch = lambda batch: {
            name: forward(tree, data["test"], batch) for name, tree in trees.items()
        }
        return score("test", of_batch)

    def evaluate(state, previous=None):
        realized = realize(state)
        # Under way while the images are scored: the host waits once for all of it.
        for x in jax.tree.leaves((realized.layers, realized.codes)):
            x.copy_to_host_async()
        scores = scores_of(state, realized)
        layers = gap.layer_report(realized, previous)
        return scores, layers, jax.device_get(realized.codes)

    def predict(params):
        rows = []
        for batch in batches["test"]():
            outputs = forward(params, data["test"], runner.shard(batch))
            real = np.asarray(batch["mask"]) > 0
            rows.append(jax.tree.map(lambda x, real=real: _flat(x, real), outputs))
        return jax.tree.map(lambda *x: np.concatenate(x), *rows)

    def _flat(x, real):
        """The real rows of one output, whether a device axis is in front or not."""
        x = np.asarray(jax.device_get(x))
        whole = x.shape[0] == len(real) and runner.axis_name is None
        return (x if whole else x.reshape(-1, *x.shape[2:]))[real]

    def measure(outputs):
        total, done = 0.0, 0
        for batch in batches["test"]():
            rows = np.flatnonzero(np.asarray(batch["mask"]) > 0)
            examples = jax.tree.map(
                lambda x, rows=rows: np.asarray(x)[rows],
                prepare["test"](data["test"], batch),
            )
            part = slice(done, done + len(rows))
            values = task.metrics(jax.tree.map(lambda x: x[part], outputs), examples)  # noqa: B023
            total += float(np.sum(np.asarray(values[task.primary.name], np.float64)))
            done += len(rows)
        return total / done

    def statistics(state):
        if not recalibration_batches or not jax.tree.leaves(state.batch_stats):
            raise ValueError(
                f"recalibration_batches={recalibration_batches}: expected some, and a "
                "network with BatchNorm whose statistics they recalibrate"
            )
        return recalibrated(realize(state).hard, state.batch_stats)

    return Scoring(evaluate, statistics, predict, measure)


def make_apply(model, runner: runners.Runner) -> Callable:
    """`(variables, input, train) -> outputs`, or `(outputs, updated)` when training.

    However a state is divided, the network itself is computed on whole variables and
    each device's own examples.
    """

    whole = runner.axis_name is None and runner.devices > 1

    def apply(variables, inputs, train):
        variables, inputs = runner.all_gather(variables), runner.shard_batch(inputs)
        if not train:
            return runner.shard_batch(model.apply(variables, inputs, train=False))
        with cpu_conv.divided(whole):
            outputs, updated = model.apply(
                variables, inputs, train=True, mutable=["batch_stats", "penalty"]
            )
        return runner.shard_batch(outputs), runner.all_gather(updated)

    return apply
