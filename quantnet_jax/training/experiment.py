"""From a configuration to everything that training and evaluation need."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from quantnet_jax import config as config_lib
from quantnet_jax import models, quantizers
from quantnet_jax.config import Config
from quantnet_jax.core import tree
from quantnet_jax.core.quantizer import prepared
from quantnet_jax.data import prepare
from quantnet_jax.distributed import hosts, runners
from quantnet_jax.evaluation import gap
from quantnet_jax.evaluation.scoring import make_apply, make_scoring
from quantnet_jax.tasks import classification as losses
from quantnet_jax.training import (
    accumulation,
    build_check,
    dispatch,
    distillation,
    optim,
    steps,
)
from quantnet_jax.training.feed import Feed, make_feed
from quantnet_jax.training.networks import make_model
from quantnet_jax.training.state import TrainState, create_state, scored

PyTree = Any


class Experiment(NamedTuple):
    """A built configuration.

    Attributes:
      config: as given, checked.
      runner: that compiled the functions.
      feed: the data.
      buckets: which tensors are quantized, by what.
      steps: of the whole run.
      epoch_steps: steps of one epoch, a fraction in general.
      learning_rate: of the weights, a schedule of the step.
      state: before the first step, on the devices.
      fit: `the model's parameters -> qparams` that begin from these weights, as a warm
        start needs them; on the host.
      train_data: what `train_step` needs of data, on the devices, or None.
      train_step: `(state, train_data, batch) -> (state, metrics)`; gives up `state`.
      train_chunk: the same for the stacked batches of several steps in one dispatch;
        the metrics are those of each step.
      chunk: most steps of such a dispatch, 1 for none.
      train_batches: `(first step, counts=repeat(1)) -> iterator` of sharded batches,
        one for each count; those of counts above 1 are stacked.
      is_finite: `state -> bool`.
      evaluate: `(state, previous codes) -> (scores, layers, codes)`.
      codes: `state -> {path: uint8 codes}`, on the host.
      deployed: `(state, bn=False) -> parameters` of the folded network, with QTensor
        leaves; with `bn` its BatchNorm statistics are re-estimated for hard weights.
        This, `evaluate` and `codes` are of averaged parameters where there are some.
      predict: `folded float parameters -> float32[N, classes]` logits of all test
        images, on the host; the compiled function that `evaluate` scores with.
    """

    config: Config
    runner: runners.Runner
    feed: Feed
    buckets: tuple[tree.Bucket, ...]
    steps: int
    epoch_steps: float
    learning_rate: Callable
    state: TrainState
    fit: Callable[[PyTree], PyTree]
    train_data: PyTree
    train_step: Callable
    train_chunk: Callable
    chunk: int
    train_batches: Callable[..., Iterator[PyTree]]
    is_finite: Callable[[TrainState], bool]
    evaluate: Callable
    codes: Callable[[TrainState], dict]
    deployed: Callable[[TrainState], PyTree]
    predict: Callable[[PyTree], np.ndarray]


def build(config: Config, devices: list | None = None) -> Experiment:
    """Builds an experiment; nothing is written.

    Args:
      config: see `quantnet_jax.training.config`.
      devices: to run on; default all.

    Raises:
      ValueError, FileNotFoundError: one line that names the key or the file.
    """
    config_lib.check(config)
    runner = runners.make_runner(config.runner, devices, config.fsdp)
    runners.check_batch("batch_size", config.batch_size, runner)
    runners.check_batch("eval_batch_size", config.eval_batch_size, runner)
    build_check.check_devices(config, runner.devices)
    feed = make_feed(config, runner)
    epoch_steps, total = build_check.check_data(config, feed)
    chunk = dispatch.chunk_size(
        config.steps_per_call,
        config.log_every,
        in_memory=feed.train_data is not None,
        backend=hosts.backend(),
    )

    model = make_model(config, len(feed.classes), runner.axis_name)
    image = jax.ShapeDtypeStruct((1, *feed.shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    buckets = build_check.plan(config, make_rules(config, total), shapes["params"])
    quantizer = prepared(tree.tree_quantizer(buckets), runner.gather)

    rate = make_rate("weights", config.weights, total)
    tx = optim.partition(
        make_optimizer("weights", config.weights, rate),
        make_optimizer("meta", config.meta, make_rate("meta", config.meta, total)),
    )
    if quantizer.project is not None:
        tx = optim.projected(tx, quantizer.project)
    if quantizer.gradient is not None:
        tx = optim.lagged(tx)
    meta = make_meta(config, rate, runner, quantizer)
    lagged = quantizer.gradient is not None
    accumulation.check(config.accumulation_steps, config.meta.mode, lagged)

    data = {
        name: None if arrays is None else runner.replicate(arrays)
        for name, arrays in (("train", feed.train_data), ("test", feed.test_data))
    }
    constants = {"mean": feed.mean, "std": feed.std, "dtype": jnp.dtype(config.dtype)}
    augmented = functools.partial(
        prepare,
        seed=config.seed,
        train=True,
        pad=0 if feed.train_data is None else config.data.pad,
        flip=config.data.flip,
        **constants,
    )
    plain = functools.partial(
        prepare, seed=0, train=False, pad=0, flip=False, **constants
    )
    train_prepare, train_data = augmented, data["train"]
    if config.distillation.workdir:
        logits, teacher = distillation.load_teacher(config, feed, runner)
        train_prepare = distillation.with_teacher(augmented, logits)
        train_data = {"set": data["train"], "teacher": runner.replicate(teacher)}
    train_step = steps.make_train_step(
        make_apply(model, runner),
        quantizer,
        tx,
        train_prepare,
        seed=config.seed,
        criterion=functools.partial(
            losses.criterion,
            label_smoothing=config.label_smoothing,
            weight=config.distillation.weight,
            temperature=config.distillation.temperature,
        ),
        meta=meta,
        accumulate=functools.partial(
            accumulation.accumulate,
            parts=config.accumulation_steps,
            loop=hosts.backend() != "cpu",
        ),
        decay=config.ema_decay,
    )

    def init(images):
        # Not inside jit with the training: two small programs compile faster than one.
        key = jax.random.key(config.seed)
        real = bool(config.activation.name)  # then BatchNorm takes their statistics
        variables = model.init(jax.random.fold_in(key, 0), images, train=real)
        key = jax.random.fold_in(key, 1)
        return create_state(
            variables, quantizer, tx, key, averaged=config.ema_decay > 0
        )

    def fit(weights):
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        return jax.device_get(jax.jit(quantizer.init)(key, weights))

    images = jnp.zeros(image.shape)
    if config.activation.name:
        images = plain(None, feed.sample())["image"]

    def train_batches(first, counts=itertools.repeat(1)):  # noqa: B008 (no state)
        stream = feed.train(first)
        for count in counts:
            if count == 1:
                yield runner.shard(next(stream))
            else:
                batches = [next(stream) for _ in range(count)]
                stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
                yield runner.shard(stacked, axis=1)

    stepped = (runners.STATE, runners.SAME)
    finite = runner.compile(steps.all_finite, replicated=1)
    realize = runner.compile(
        gap.make_realize(quantizer), replicated=1, out=gap.REALIZED
    )
    scoring = make_scoring(model, realize, config, runner, feed, data, augmented, plain)

    def deployed(params, stats, axis_name):
        return models.fold(quantizer.hard(params["quant"], params["model"]), stats)

    ship = runner.compile(deployed, replicated=2)

    def shipped(state, bn=False):
        state = scored(state)
        stats = scoring.statistics(state) if bn else state.batch_stats
        return ship(state.params, stats)

    return Experiment(
        config=config,
        runner=runner,
        feed=feed,
        buckets=buckets,
        steps=total,
        epoch_steps=epoch_steps,
        learning_rate=rate,
        state=runner.place(jax.device_get(jax.jit(init)(images))),
        fit=fit,
        train_data=train_data,
        train_step=runner.compile(train_step, 2, out=stepped, donate=True),
        train_chunk=runner.compile(
            steps.make_chunk(train_step), 2, out=stepped, donate=True, axis=1
        ),
        chunk=chunk,
        train_batches=train_batches,
        is_finite=lambda state: bool(finite(state)),
        # The one place that decides which parameters are scored and shipped.
        evaluate=lambda state, codes=None: scoring.evaluate(scored(state), codes),
        codes=lambda state: jax.device_get(realize(scored(state)).codes),
        deployed=shipped,
        predict=scoring.predict,
    )


def make_rules(config: Config, total_steps: int) -> list[tree.Rule]:
    """The rules of `config.layers`, `config.quantizer` and `config.rules`."""

    def quantizer(name):
        options = config.quantizer.get(name, ConfigDict()).to_dict()
        with build_check.named(f"quantizer.{name}"):
            return quantizers.create(name, total_steps=total_steps, **options)

    rows = [(config.layers, config.quantizer.name, config.share), *config.rules]
    return [
        tree.Rule(str(models.KERNELS.get(pattern, pattern)), quantizer(name), share)
        for pattern, name, share in rows
    ]


def make_rate(section: str, c: Config, total_steps: int) -> Callable:
    """The learning-rate schedule of one section."""
    with build_check.named(section):
        return optim.learning_rate(
            c.learning_rate,
            total_steps,
            schedule=c.schedule,
            warmup=c.warmup,
            milestones=tuple(c.milestones),
        )


def make_optimizer(section: str, c: Config, rate: Callable):
    """The optimizer of one section."""
    with build_check.named(section):
        return optim.optimizer(
            c.optimizer,
            rate,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
            clip=c.clip,
        )


def make_meta(config: Config, rate: Callable, runner, quantizer) -> steps.Meta:
    """How the sub-network is optimized."""
    if config.meta.mode == "joint":
        return steps.Meta(rate=rate)
    if quantizer.gradient is not None:
        raise ValueError(
            f"meta.mode={config.meta.mode!r}, expected 'joint': a gradient network "
            "learns through the weights' update as it is"
        )
    every = round(1 / config.meta.holdout)
    if (config.batch_size // runner.devices) % every:
        raise ValueError(
            f"meta.holdout={config.meta.holdout} does not divide the "
            f"{config.batch_size // runner.devices} examples of a device"
        )
    return steps.Meta("bilevel", every, config.meta.exact, rate)
