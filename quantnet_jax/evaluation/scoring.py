"""The compiled functions that evaluate a state: one forward pass for all weights."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from quantnet_jax import models
from quantnet_jax.distributed import runners
from quantnet_jax.evaluation import forward as fns
from quantnet_jax.evaluation import gap


class Scoring(NamedTuple):
    """Compiled functions that score a state.

    Attributes:
      evaluate: `(state, previous codes=None) -> (scores, layers, codes)`: those of
        `gap.score` and `gap.layer_report`, and the codes for the next
        call.
      statistics: `state -> BatchNorm statistics` of the hard weights, the mean over
        `config.recalibration_batches` training batches; ValueError without batches or
        BatchNorm.
      predict: `folded parameters -> logits` of all test images of this process, on the
        host.
    """

    evaluate: Callable
    statistics: Callable
    predict: Callable


def make_scoring(
    model, realize, config, runner, feed, data, augmented, plain
) -> Scoring:
    """Compiles them; nothing runs yet."""
    # What is scored is what ships: normalizations folded, weights hard or soft.
    forward = runner.compile(
        fns.make_forward(make_apply(model.clone(folded=True), runner), plain),
        replicated=2,
        out=runners.ROWS,
    )
    fold = runner.compile(
        lambda w, stats, axis_name: models.fold(w, stats), 2, out=runners.STATE
    )
    tally = runner.compile(fns.tally, replicated=1)
    # With momentum 0 the running statistics are those of the last batch.
    of_batch = runner.compile(
        fns.make_statistics(make_apply(model.clone(momentum=0.0), runner), augmented),
        replicated=3,
        out=runners.STATE,
    )

    def reestimated(hard, stats):
        stream = feed.train(0)
        batches = (
            runner.shard(next(stream)) for _ in range(config.recalibration_batches)
        )
        return gap.average_statistics(of_batch, hard, stats, data["train"], batches)

    def evaluate(state, previous=None):
        realized, stats = realize(state), state.batch_stats
        # Under way while the images are scored: the host waits once for all of it.
        for x in jax.tree.leaves((realized.layers, realized.codes)):
            x.copy_to_host_async()
        trees = {"soft": fold(realized.soft, stats), "hard": fold(realized.hard, stats)}
        if config.recalibration_batches and jax.tree.leaves(stats):
            hard_stats = reestimated(realized.hard, stats)
            trees["hard_bn"] = fold(realized.hard, hard_stats)
        batches = (runner.shard(batch) for batch in feed.test())
        scores = gap.score(tally, forward, trees, data["test"], batches)
        layers = gap.layer_report(realized, previous)
        return scores, layers, jax.device_get(realized.codes)

    def predict(params):
        rows = []
        for batch in feed.test():
            logits = jax.device_get(forward(params, data["test"], runner.shard(batch)))
            flat = np.asarray(logits).reshape(-1, logits.shape[-1])
            rows.append(flat[np.asarray(batch["mask"]) > 0])
        return np.concatenate(rows)

    def statistics(state):
        if not config.recalibration_batches or not jax.tree.leaves(state.batch_stats):
            raise ValueError(
                f"recalibration_batches={config.recalibration_batches}, "
                f"model.name={config.model.name!r}: "
                "expected batches, and BatchNorm whose statistics they re-estimate"
            )
        return reestimated(realize(state).hard, state.batch_stats)

    return Scoring(evaluate, statistics, predict)


def make_apply(model, runner: runners.Runner) -> Callable:
    """`(variables, image, train) -> logits`, or `(logits, updated)` when training.

    However a state is divided, the network itself is computed on whole variables and
    each device's own images.
    """

    def apply(variables, image, train):
        variables, image = runner.gather(variables), runner.spread(image)
        if not train:
            return runner.spread(model.apply(variables, image, train=False))
        logits, updated = model.apply(
            variables, image, train=True, mutable=["batch_stats"]
        )
        return runner.spread(logits), runner.gather(updated)

    return apply
