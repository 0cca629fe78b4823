"""The compiled functions that evaluate a state: one forward pass for all weights."""

from collections.abc import Callable

import jax
import numpy as np

from quantnet_jax import models
from quantnet_jax.training import evaluation, parallel, steps


def make_evaluate(
    model, realize, config, runner, feed, data, augmented, plain
) -> tuple[Callable, Callable]:
    """Makes `evaluate(state, previous codes) -> (scores, layers, codes)` and `predict`.

    `scores` is that of `evaluation.score`, `layers` that of `evaluation.layer_report`;
    `codes` are for the next call. `predict(folded parameters)` gives the logits of all
    test images of this process, on the host.
    """
    # What is scored is what ships: normalizations folded, weights hard or soft.
    forward = runner.compile(
        steps.make_forward(make_apply(model.clone(folded=True), runner), plain),
        replicated=2,
        out=parallel.ROWS,
    )
    fold = runner.compile(
        lambda w, stats, axis_name: models.fold(w, stats), 2, out=parallel.STATE
    )
    tally = runner.compile(steps.tally, replicated=1)
    # With momentum 0 the running statistics are those of the last batch.
    statistics = runner.compile(
        steps.make_statistics(make_apply(model.clone(momentum=0.0), runner), augmented),
        replicated=3,
        out=parallel.STATE,
    )

    def evaluate(state, previous=None):
        realized, stats = realize(state), state.batch_stats
        # Under way while the images are scored: the host waits once for all of it.
        for x in jax.tree.leaves((realized.layers, realized.codes)):
            x.copy_to_host_async()
        trees = {"soft": fold(realized.soft, stats), "hard": fold(realized.hard, stats)}
        if config.bn_batches and jax.tree.leaves(stats):
            stream = feed.train(0)
            batches = (runner.shard(next(stream)) for _ in range(config.bn_batches))
            hard_stats = evaluation.average_statistics(
                statistics, realized.hard, stats, data["train"], batches
            )
            trees["hard_bn"] = fold(realized.hard, hard_stats)
        batches = (runner.shard(batch) for batch in feed.test())
        scores = evaluation.score(tally, forward, trees, data["test"], batches)
        layers = evaluation.layer_report(realized, previous)
        return scores, layers, jax.device_get(realized.codes)

    def predict(params):
        rows = []
        for batch in feed.test():
            logits = jax.device_get(forward(params, data["test"], runner.shard(batch)))
            flat = np.asarray(logits).reshape(-1, logits.shape[-1])
            rows.append(flat[np.asarray(batch["mask"]) > 0])
        return np.concatenate(rows)

    return evaluate, predict


def make_apply(model, runner: parallel.Runner) -> Callable:
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
