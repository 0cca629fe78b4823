"""The configuration: every key with its default, and the configuration of a run."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict, config_dict

from quantnet_jax import quantizers
from quantnet_jax.config import checks as config_check
from quantnet_jax.core.limits import defaults_of
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
    c.batch_size = 100  # over all devices
    c.eval_batch_size = 500  # over all devices; the last batch is padded and masked

    # Data ------------------------------------------------------------------------
    c.data = ConfigDict()
    # bundled, synthetic, cifar10, cifar100, fashion_mnist, mnist, imagenet2012, or
    # tfds:NAME for another set of pictures that TFDS holds as JPEGs
    c.data.name = "bundled"
    c.data.folder = ""  # with the original files; '' takes a named set from TFDS
    c.data.train_size = 0  # a stratified part, 0 for all
    c.data.test_size = 0
    c.data.classes = 0  # the first so many, 0 for all
    c.data.validation_size = (
        0  # evaluate on so many training images, not on the test set
    )
    c.data.pad = 2  # random crop out of so many zero pixels around the image
    c.data.flip = True  # random mirror image
    c.data.image_size = 0  # that the set must have, 0 for any; crop size of ImageNet
    c.data.workers = 0  # Grain processes of a streamed set
    c.data.max_unreadable = 0  # pictures of a streamed set that may be damaged

    # Task: `name`, and the options of each task under its name -----------------------
    c.task = ConfigDict()
    c.task.name = "classification"
    for name, factory in TASKS.items():
        c.task[name] = ConfigDict(defaults_of(factory))
    # Further terms of the loss: ({"name": ..., "weight": 1.0, options ...}, ...)
    c.terms = ()
    c.teacher = ""  # workdir of a trained float network, for terms that need one

    # Model: `name` and the network's own options ----------------------------------
    c.model = ConfigDict()
    c.model.name = "resnet8"
    c.dtype = "float32"  # of the network's arithmetic; weights are always float32

    # Quantizer: `name`, and the options of each quantizer under its name ------------
    c.quantizer = ConfigDict()
    c.quantizer.name = "quantnet"
    for name in quantizers.names():
        c.quantizer[name] = ConfigDict(quantizers.options(name))
    # Of the inputs of the inner convolutions: `name`, '' for float activations, and the
    # options of each quantizer of activations under its name.
    c.activation = ConfigDict()
    c.activation.name = ""
    for name in sorted(quantizers.ACTIVATIONS):
        options = quantizers.options(name, quantizers.ACTIVATIONS)
        c.activation[name] = ConfigDict(options)
    c.layers = "inner"  # 'all', 'inner', 'no_shortcut', or a regular expression
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
    c.meta.mode = "joint"  # or 'bilevel'
    c.meta.holdout = 0.25  # bilevel: part of each batch, one of 1/2, 1/3, 1/4, ...
    c.meta.exact = False  # bilevel: differentiate through the look-ahead step
    c.accumulation_steps = 1  # parts of a batch, computed one after another
    c.ema_decay = (
        0.0  # decay of the moving average of the weights that is scored, 0 for none
    )

    # The run -----------------------------------------------------------------------
    c.init_from = ""  # workdir of another run whose parameters to start from
    c.float_baseline = False  # train the float network first, in WORKDIR/float
    c.runner = "pmap"  # or 'jit'
    c.fsdp = 1  # 'jit': devices that share the output channels of each weight
    c.steps_per_call = (
        0  # steps in one dispatch; 0 for 1 on CPUs, else up to `log_every`
    )
    c.eval_every = 1.0  # epochs; a checkpoint is written at each evaluation
    c.checkpoint_every = 0  # steps between further checkpoints, 0 for none
    c.log_every = 50  # steps
    c.recalibration_batches = (
        50  # training batches of the BatchNorm re-estimation, 0 for none
    )
    c.keep_latest = 2  # checkpoints, beside the best
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
    c.momentum = 0.9
    c.weight_decay = weight_decay
    c.clip = 0.0  # largest gradient norm, 0 for no clipping
    return c


PLACE = ("runner", "fsdp")
"""Keys that say where a run is computed: it may go on elsewhere."""


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
            "made from quantnet_jax.training.config.base()"
        )
    try:
        given = config.to_dict()
    except config_dict.RequiredValueError as e:
        raise ValueError(f"a value is missing: {e}") from None
    config_check.check_config(given, base().to_dict())


def untaught(config: Config) -> Config:
    """The configuration without a teacher, which may not be trained yet."""
    # A ConfigDict made of another one would share its sections.
    twin = config.copy_and_resolve_references()
    twin.teacher, twin.terms = "", ()
    return twin


def float_twin(config: Config) -> Config:
    """The configuration of the float baseline: compared with, not exported."""
    twin = untaught(config)
    twin.float_baseline = twin.export = False
    twin.quantizer.name, twin.activation.name = "identity", ""
    return twin


def load(workdir: str | pathlib.Path) -> Config:
    """The configuration of a run, from its `config.json`.

    Raises:
      FileNotFoundError: there is no run in that folder.
      ValueError: the file is no configuration of this version.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {workdir} holds no run")
    config = ConfigDict(_read(path))
    try:
        check(config)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    return config


def check_same_run(config: Config, workdir: str | pathlib.Path) -> None:
    """Refuses a workdir whose run has another configuration, but for `PLACE`.

    Raises:
      ValueError: naming the first key that differs and both values.
      FileNotFoundError: a new run is to start from one that is not there.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        source = pathlib.Path(config.init_from) / "checkpoints"
        if config.init_from and not source.is_dir():
            raise FileNotFoundError(
                f"init_from={config.init_from!r} holds no run: {source} not found"
            )
        return
    old = _flat(_read(path))
    new = _flat(json.loads(config.to_json()))
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if a != b and key not in PLACE:
            raise ValueError(
                f"{workdir} belongs to another run: {key} is {a!r} there and {b!r} "
                "here; choose another --workdir, or the configuration of that run"
            )


def _read(path: pathlib.Path) -> dict:
    try:
        config = json.loads(path.read_text())
    except ValueError as e:
        raise ValueError(f"{path} is damaged: {e}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(config).__name__}")
    return config


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
