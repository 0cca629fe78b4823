"""From a configuration to everything that training and evaluation need."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from quantnet_jax import models, quantizers
from quantnet_jax.core import tree
from quantnet_jax.data import prepare
from quantnet_jax.training import config as config_lib
from quantnet_jax.training import dispatch, evaluation, optim, parallel, steps
from quantnet_jax.training.config import Config
from quantnet_jax.training.feed import Feed, make_feed
from quantnet_jax.training.scoring import make_apply, make_evaluate
from quantnet_jax.training.state import TrainState, create_state

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
      state: before the first step, replicated.
      fit: `the model's parameters -> qparams` that begin from these weights, as a warm
        start needs them; on the host.
      train_data: on the devices, or None.
      train_step: `(state, train_data, batch) -> (state, metrics)`; gives up `state`.
      train_chunk: the same for the stacked batches of `chunk` steps in one dispatch;
        the metrics are those of each step.
      chunk: steps of such a dispatch, 1 for none.
      train_batches: `(first step, counts=repeat(1)) -> iterator` of sharded batches,
        one for each count; those of counts above 1 are stacked.
      is_finite: `state -> bool`.
      evaluate: `(state, previous codes) -> (scores, layers, codes)`.
      codes: `state -> {path: uint8 codes}`, on the host.
      deployed: `state -> parameters` of the folded network, with QTensor leaves.
      predict: `folded float parameters -> float32[N, classes]` logits of all test
        images, on the host; the compiled function that `evaluate` scores with.
    """

    config: Config
    runner: parallel.Runner
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
    runner = parallel.make_runner(config.runner, devices)
    parallel.check_batch("batch_size", config.batch_size, runner)
    parallel.check_batch("eval_batch_size", config.eval_batch_size, runner)
    feed = make_feed(config, runner)
    epoch_steps = feed.train_size / config.batch_size
    total = max(1, round(config.epochs * epoch_steps))
    chunk = dispatch.chunk_size(
        config.chunk,
        config.log_every,
        in_memory=feed.train_data is not None,
        backend=parallel.backend(),
    )

    model = make_model(config, len(feed.classes), runner.axis_name)
    image = jax.ShapeDtypeStruct((1, *feed.shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    buckets = tree.plan(make_rules(config, total), shapes["params"])
    quantizer = tree.tree_quantizer(buckets)

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
    train_step = steps.make_train_step(
        make_apply(model),
        quantizer,
        tx,
        augmented,
        seed=config.seed,
        smoothing=config.smoothing,
        meta=meta,
    )

    def init(images):
        # Not inside jit with the training: two small programs compile faster than one.
        key = jax.random.key(config.seed)
        real = bool(config.activation.name)  # then BatchNorm takes their statistics
        variables = model.init(jax.random.fold_in(key, 0), images, train=real)
        return create_state(variables, quantizer, tx, jax.random.fold_in(key, 1))

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

    finite = runner.compile(steps.all_finite, replicated=1)
    realize = runner.compile(evaluation.make_realize(quantizer), replicated=1)
    evaluate, predict = make_evaluate(
        model, realize, config, runner, feed, data, augmented, plain
    )

    def deployed(state, axis_name):
        hard = quantizer.hard(state.params["quant"], state.params["model"])
        return models.fold(hard, state.batch_stats)

    return Experiment(
        config=config,
        runner=runner,
        feed=feed,
        buckets=buckets,
        steps=total,
        epoch_steps=epoch_steps,
        learning_rate=rate,
        state=runner.replicate(jax.device_get(jax.jit(init)(images))),
        fit=fit,
        train_data=data["train"],
        train_step=runner.compile(train_step, replicated=2, donate=True),
        train_chunk=runner.compile(
            steps.make_chunk(train_step), replicated=2, donate=True, axis=1
        ),
        chunk=chunk,
        train_batches=train_batches,
        is_finite=lambda state: bool(finite(state)),
        evaluate=evaluate,
        codes=lambda state: jax.device_get(realize(state).codes),
        deployed=runner.compile(deployed, replicated=1),
        predict=predict,
    )


def make_model(config: Config, classes: int, axis_name: str | None):
    """The network of `config.model`."""
    options = config.model.to_dict() | make_activation(config)
    try:
        return models.create(
            options.pop("name"),
            classes=classes,
            dtype=config.dtype,
            axis_name=axis_name,
            **options,
        )
    except (ValueError, TypeError, KeyError) as e:
        raise ValueError(f"config.model: {e}") from None


def model_options(config: Config) -> dict:
    """Name and options of the network as plain data, without its quantizer."""
    made = config.model.to_dict() | make_activation(config)
    return {name: value for name, value in made.items() if name != "act_quant"}


def make_activation(config: Config) -> dict:
    """Options of the network that follow from `config.activation`."""
    name, act = config.activation.name, config.model.get("act")
    if not name:
        return {}
    options = config.activation.get(name, ConfigDict()).to_dict()
    try:
        found: dict = {"act_quant": quantizers.create_activation(name, **options)}
    except (ValueError, TypeError) as e:
        raise ValueError(f"config.activation: {e}") from None
    if quantizers.ACTIVATIONS[name].signed:
        if act == "relu":
            raise ValueError(
                f"model.act={act!r} is never negative, so activation.name={name!r} "
                "would make +1 of all activations; expected 'hardtanh' (what a network "
                "gets without model.act), 'identity' or 'prelu'"
            )
        found |= {"act": act or "hardtanh"}
    return found


def make_rules(config: Config, total_steps: int) -> list[tree.Rule]:
    """The rules of `config.layers`, `config.quantizer` and `config.rules`."""

    def quantizer(name):
        if name not in quantizers.names():
            raise ValueError(
                f"config.rules: unknown quantizer {name!r}"
                + quantizers.nearest(name, quantizers.names())
            )
        options = config.quantizer.get(name, ConfigDict()).to_dict()
        return quantizers.create(name, total_steps=total_steps, **options)

    rows = [(config.layers, config.quantizer.name, config.share), *config.rules]
    rules = []
    for row in rows:
        if len(row) != 3:
            raise ValueError(
                f"config.rules: {row!r}, expected (pattern, quantizer name, share)"
            )
        pattern, name, share = row
        pattern = str(models.KERNELS.get(pattern, pattern))
        rules.append(tree.Rule(pattern, quantizer(name), share))
    return rules


def make_rate(section: str, c: Config, total_steps: int) -> Callable:
    """The learning-rate schedule of one section."""
    try:
        return optim.learning_rate(
            c.learning_rate,
            total_steps,
            schedule=c.schedule,
            warmup=c.warmup,
            milestones=tuple(c.milestones),
        )
    except ValueError as e:
        raise ValueError(f"config.{section}: {e}") from None


def make_optimizer(section: str, c: Config, rate: Callable):
    """The optimizer of one section."""
    try:
        return optim.optimizer(
            c.optimizer,
            rate,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
            clip=c.clip,
        )
    except ValueError as e:
        raise ValueError(f"config.{section}: {e}") from None


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
