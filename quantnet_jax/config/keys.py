"""The configuration: every key with its default, and the configuration of a run."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, config_dict

from quantnet_jax import activations, models, quantizers
from quantnet_jax.activations.sites import DEFAULT
from quantnet_jax.common.files import as_path
from quantnet_jax.common.limits import Flag, Number, Scheduled, defaults_of, limits_of
from quantnet_jax.common.names import dotted, show
from quantnet_jax.config import checks as config_check
from quantnet_jax.tasks import TASKS

Config = Any
"""An `ml_collections.ConfigDict`, whose attributes no type checker can know."""


def base() -> Config:
    """All keys, with the defaults that the files under `configs/` start from.

    Fractions 'until', 'warmup' and 'milestones' are of the whole training.
    """
    c = ConfigDict()
    c.seed = 0
    c.epochs = 20.0
    c.batch_size = 100  # global batch size
    c.eval_batch_size = 500  # over all devices; the last batch is padded and masked

    # Data ------------------------------------------------------------------------
    c.data = ConfigDict()
    # bundled, synthetic, shapes, cifar10, cifar100, fashion_mnist, mnist, omniglot,
    # omniglot_drawers, modelnet40, superres_x2, superres_x4, bsd100_x2, bsd100_x4,
    # imagenet2012, folder (images of your own by class), or tfds:NAME for another
    # dataset of JPEGs in TFDS
    c.data.name = "bundled"
    c.data.folder = (
        ""  # with the files, or gs://...; '' takes a named dataset from TFDS
    )
    c.data.train_size = 0  # a stratified part, 0 for all
    c.data.test_size = 0
    c.data.classes = 0  # use only N classes, 0 for all
    c.data.first_class = 0  # label of the first of them
    # Size of a validation split of the training images, evaluated on in place of test.
    c.data.validation_size = 0
    c.data.pad = 2  # padding of the random crop, of a dataset in memory
    c.data.crop = 0  # side of random crops in training, 0 for whole images
    c.data.flip = True  # random horizontal flip; of crops any symmetry of the square
    c.data.image_size = 0  # expected size, 0 for any; crop size of ImageNet
    c.data.workers = 0  # Grain processes of a streamed dataset
    c.data.max_unreadable = 0  # images of a streamed dataset that may be damaged

    # Task: `name`, and the options of each task under its name -----------------------
    c.task = ConfigDict()
    c.task.name = "classification"
    for name, factory in TASKS.items():
        c.task[name] = _options(factory, defaults_of(factory))
    # Further terms of the loss: ({"name": ..., "weight": 1.0, options ...}, ...)
    c.terms = ()
    c.teacher = ""  # workdir of a trained float network, for terms that need one

    # Model: `name`, and options of the network, None for its own default -------------
    c.model = ConfigDict()
    c.model.name = "resnet8"
    for name, limit in models.OPTIONS.items():
        c.model[name] = config_dict.placeholder(_type(limit))
    c.dtype = "float32"  # of the network's arithmetic; weights are always float32

    # Quantizer: `name`, and the options of each quantizer under its name ------------
    c.quantizer = ConfigDict()
    c.quantizer.name = "quantnet"
    for name, member in quantizers.MEMBERS.items():
        c.quantizer[name] = _options(member.factory, quantizers.options(name))
    # Of activations: `name`, '' for float ones; the options of each under its name; and
    # `sites`: 'input' (of inner convolutions), 'rectified' (those behind a ReLU apart),
    # 'residual' (sums), 'output' (of it all)
    c.activation = ConfigDict()
    c.activation.name = ""
    c.activation.sites = DEFAULT
    # What differs at a site: ({"site": "residual", options of the quantizer}, ...)
    c.activation.rules = ()
    for name, member in activations.MEMBERS.items():
        c.activation[name] = _options(member.factory, activations.options(name))
    c.layers = "inner"  # 'all', 'inner', 'no_shortcut', or a regular expression
    # Part of each quantized tensor that is pruned by magnitude, a number or a schedule,
    # see docs/few_shot.md; a float one with quantizer.name = "identity".
    c.sparsity = config_dict.FieldReference(0.0, field_type=object)
    c.share = "kernel"  # of the sub-network: 'layer', 'shape', 'kernel', 'model'
    # More rules, for mixed precision: ({"pattern": ..., "quantizer": name, perhaps
    # "share", "out", "stack", and options of the quantizer}, ...)
    c.rules = ()

    # Optimizers: of the weights, and of what the quantizer learns -------------------
    c.weights = _optimizer("sgd", 0.1, weight_decay=5e-4)
    c.meta = _optimizer("adam", 1e-2, weight_decay=0.0)
    # More of them, by rules: ({"pattern": over 'model/...' and 'quant/...', keys of
    # `weights` that differ}, ...); the first that matches a whole path counts.
    c.optimizers = ()
    c.meta.mode = "joint"  # or 'bilevel', or 'reptile' for tasks that adapt
    c.meta.holdout = 0.25  # bilevel: part of each batch, one of 1/2, 1/3, 1/4, ...
    c.meta.exact = False  # bilevel: differentiate through the look-ahead step
    c.accumulation_steps = 1  # gradient accumulation steps (microbatches)
    c.ema_decay = 0.0  # 0 for none; the EMA weights are evaluated

    # The run -----------------------------------------------------------------------
    c.init_from = ""  # workdir of another run whose parameters to start from
    c.init_pattern = ".*"  # which: over 'params/model/...' and 'batch_stats/...'
    c.float_baseline = False  # train the float network first, in WORKDIR/float
    c.runner = "pmap"  # or 'jit'
    c.fsdp = 1  # 'jit': devices that share the output channels of each weight
    c.steps_per_call = 0  # of a lax.scan; 0 for 1 on CPUs, else up to `log_every`
    c.eval_every = 1.0  # epochs; a checkpoint is written at each evaluation
    c.checkpoint_every = 0  # steps between further checkpoints, 0 for none
    c.log_every = 50  # steps
    c.recalibration_batches = 50  # of BatchNorm recalibration, 0 for none
    c.keep_latest = 2  # checkpoints, besides the best
    c.tensorboard = True
    c.report = True  # write report.html at the end
    c.export = True  # write WORKDIR/export at the end, and verify it; one process only
    return c


def _optimizer(name: str, learning_rate: float, weight_decay: float) -> Config:
    c = ConfigDict()
    c.optimizer = name  # 'sgd', 'adam' (decoupled weight decay), or one of optax
    c.options = ()  # of one of optax: (("b2", 0.95), ...)
    c.learning_rate = learning_rate
    c.schedule = "cosine"  # 'constant', 'cosine', 'linear', 'steps', or one of optax
    c.schedule_options = ()  # of one of optax: (("decay_rate", 0.5), ...)
    c.warmup = 0.0  # fraction of training
    c.milestones = (0.5, 0.75)  # of 'steps'
    c.momentum = 0.9  # of sgd and adam; others have theirs in `options`
    c.weight_decay = weight_decay
    c.clip = 0.0  # largest gradient norm, 0 for no clipping
    return c


def _options(factory: Callable, values: dict[str, Any]) -> Config:
    """A section with the options of a factory.

    One that may be scheduled takes a number and a mapping alike.
    """
    limits, c = limits_of(factory), ConfigDict()
    for name, value in values.items():
        if isinstance(limits[name], Scheduled):
            value = ConfigDict(value) if isinstance(value, dict) else value
            value = config_dict.FieldReference(value, field_type=object)
        c[name] = value
    return c


def _type(limit: Any) -> type:
    if isinstance(limit, Number):
        return int if limit.whole else float
    return bool if isinstance(limit, Flag) else str


def model_options(config: Config) -> dict[str, Any]:
    """The options of the network that are set, with its name, as plain data."""
    return {k: v for k, v in config.model.to_dict().items() if v is not None}


PLACEMENT_KEYS = ("runner", "fsdp")
"""Placement keys, which may change on resume."""


def check(config: Config) -> None:
    """Refuses a configuration with an unknown key, a wrong type or an impossible value.

    What needs the data, the devices or the network (rules that match nothing, class
    counts, divisibility) is checked when the experiment is built, before anything is
    trained or written.

    Raises:
      ValueError: one line with the key, its value and what was expected.
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"the configuration is a {type(config).__name__}, expected a ConfigDict "
            "made from quantnet_jax.config.base()"
        )
    try:
        given = config.to_dict()
    except config_dict.RequiredValueError:
        raise ValueError(missing_value(config)) from None
    config_check.check_config(given, base().to_dict())


def missing_value(config: Config, prefix: str = "") -> str:
    """The message for the first required placeholder without a value, or ''."""
    for key in config:
        try:
            value = config[key]
        except config_dict.RequiredValueError:
            return f"config key {prefix + key!r} needs a value"
        if isinstance(value, ConfigDict) and (
            text := missing_value(value, f"{prefix}{key}.")
        ):
            return text
    return ""


def load(workdir: str | pathlib.Path) -> Config:
    """The configuration of a run, from its `config.json`.

    Raises:
      FileNotFoundError: there is no run in that folder.
      ValueError: the file is not a valid config for this version.
    """
    path = as_path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {workdir} holds no run")
    config = ConfigDict(_read(path))
    try:
        check(config)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    return config


def check_same_run(config: Config, workdir: str | pathlib.Path) -> None:
    """Refuses a workdir created with another configuration, `PLACEMENT_KEYS` aside.

    Raises:
      ValueError: naming the first key that differs and both values.
      FileNotFoundError: a new run is to start from one that is not there.
    """
    path = as_path(workdir) / "config.json"
    if not path.exists():
        source = as_path(config.init_from) / "checkpoints"
        if config.init_from and not source.is_dir():
            raise FileNotFoundError(
                f"init_from={config.init_from!r} holds no run: {source} not found"
            )
        return
    check_same(config, _read(path), str(workdir))


def check_same(config: Config, saved: dict, whose: str) -> None:
    """Refuses another configuration than the saved one, `PLACEMENT_KEYS` aside.

    Args:
      config: of the run.
      saved: JSON data of the configuration that it was started with.
      whose: what was created with it, for the message.

    Raises:
      ValueError: naming the first key that differs and both values.
    """
    old, new = dotted(saved), dotted(json.loads(config.to_json()))
    value = lambda flat, key: "(absent)" if flat.get(key) is None else flat[key]
    keys = [k for k in sorted(old | new) if value(old, k) != value(new, k)]
    if keys := [k for k in keys if k not in PLACEMENT_KEYS]:
        a, b = show(value(old, keys[0])), show(value(new, keys[0]))
        others = f" (and other {', '.join(keys[1:4])})" if keys[1:] else ""
        raise ValueError(
            f"{whose} was created with {keys[0]}={a}, got {b}{others}; choose another "
            "--workdir, or the configuration of that run"
        )


def _read(path: Any) -> dict:
    if not path.is_file():  # reading a pipe would wait for ever
        raise ValueError(f"{path} is not a file")
    try:
        config = json.loads(path.read_text())
    except ValueError as e:
        raise ValueError(f"{path} is damaged: {e}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(config).__name__}")
    return config
