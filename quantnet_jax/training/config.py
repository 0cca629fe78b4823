"""The configuration: every key with its default, and the check of a user's version."""

import difflib
import json
import math
import pathlib
from typing import Any

from ml_collections import ConfigDict

from quantnet_jax import models, quantizers

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
    c.data.hold_out = 0  # evaluate on so many training images, not on the test set
    c.data.pad = 2  # random crop out of so many zero pixels around the image
    c.data.flip = True  # random mirror image
    c.data.image_size = 0  # that the set must have, 0 for any; crop size of ImageNet
    c.data.workers = 0  # Grain processes of a streamed set
    c.data.max_unreadable = 0  # pictures of a streamed set that may be damaged

    # Model: `name` and the network's own options ----------------------------------
    c.model = ConfigDict()
    c.model.name = "resnet8"
    c.dtype = "float32"  # of the network's arithmetic; weights are always float32

    # Quantizer: `name`, and the options of each quantizer under its name ------------
    c.quantizer = ConfigDict()
    c.quantizer.name = "quantnet"
    for name in quantizers.names():
        c.quantizer[name] = ConfigDict(quantizers.recipe(name))
    # Of the inputs of the inner convolutions: `name`, '' for float activations, and the
    # options of each quantizer of activations under its name.
    c.activation = ConfigDict()
    c.activation.name = ""
    for name, member in sorted(quantizers.ACTIVATIONS.items()):
        c.activation[name] = ConfigDict(dict(member.recipe))
    c.layers = "inner"  # 'all', 'inner', 'no_shortcut', or a regular expression
    c.share = "kernel"  # of the sub-network: 'layer', 'shape', 'kernel', 'model'
    # More rules: ((pattern, quantizer name, share), ...), for mixed precision.
    c.rules = ()

    # Optimizers: of the weights, and of what the quantizer learns -------------------
    c.weights = _optimizer("sgd", 0.1, weight_decay=5e-4)
    c.meta = _optimizer("adam", 1e-2, weight_decay=0.0)
    c.meta.mode = "joint"  # or 'bilevel'
    c.meta.holdout = 0.25  # bilevel: part of each batch, one of 1/2, 1/3, 1/4, ...
    c.meta.exact = False  # bilevel: differentiate through the look-ahead step
    c.smoothing = 0.0  # of the labels
    c.accumulate = 1  # parts of a batch, computed one after another
    c.ema = 0.0  # decay of the moving average of the weights that is scored, 0 for none
    # A trained float network whose logits are imitated.
    c.distill = ConfigDict()
    c.distill.workdir = ""  # of its run, '' for no distillation
    c.distill.weight = 0.5  # of the imitation; the labels have the rest
    c.distill.temperature = 4.0

    # The run -----------------------------------------------------------------------
    c.init_from = ""  # workdir of another run whose parameters to start from
    c.float_baseline = False  # train the float network first, in WORKDIR/float
    c.runner = "pmap"  # or 'jit'
    c.fsdp = 1  # 'jit': devices that share the output channels of each weight
    c.chunk = 0  # steps in one dispatch; 0 for 1 on CPUs, else up to `log_every`
    c.eval_every = 1.0  # epochs; a checkpoint is written at each evaluation
    c.checkpoint_every = 0  # steps between further checkpoints, 0 for none
    c.log_every = 50  # steps
    c.bn_batches = 50  # training batches of the BatchNorm re-estimation, 0 for none
    c.keep_latest = 2  # checkpoints, beside the best
    c.tensorboard = True
    c.report = True  # write report.html at the end
    c.export = True  # write WORKDIR/export at the end, and verify it; one process only
    return c


def _optimizer(name: str, learning_rate: float, weight_decay: float) -> Config:
    c = ConfigDict()
    c.optimizer = name  # 'sgd' or 'adam'
    c.learning_rate = learning_rate
    c.schedule = "cosine"  # 'constant', 'cosine', 'linear', 'steps'
    c.warmup = 0.0  # fraction of training
    c.milestones = (0.5, 0.75)  # of 'steps'
    c.momentum = 0.9
    c.weight_decay = weight_decay
    c.clip = 0.0  # largest gradient norm, 0 for no clipping
    return c


OPEN = ("model", "quantizer", "activation")
"""Sections whose keys are checked by the factories that they go to."""

PLACE = ("runner", "fsdp")
"""Keys that say where a run is computed: it may go on elsewhere."""

POSITIVE = (
    "epochs",
    "batch_size",
    "eval_batch_size",
    "eval_every",
    "log_every",
    "accumulate",
    "fsdp",
    "distill.temperature",
)
NOT_NEGATIVE = (
    "seed",
    "data.train_size",
    "data.test_size",
    "data.classes",
    "data.hold_out",
    "data.pad",
    "data.image_size",
    "data.workers",
    "data.max_unreadable",
    "bn_batches",
    "chunk",
    "checkpoint_every",
)


def check(config: Config) -> None:
    """Refuses a configuration with an unknown key, a wrong type or an impossible value.

    What needs the data or the model (rules, class counts, divisibility by devices) is
    checked when the experiment is built, before anything is trained or written.

    Raises:
      ValueError: one line with the key, its value and what was expected.
    """
    _check_keys(config.to_dict(), base().to_dict(), "")
    flat = _flat(config.to_dict())
    for key in POSITIVE:
        if not flat[key] > 0:
            raise ValueError(f"{key}={flat[key]!r}, expected a positive number")
    for key in NOT_NEGATIVE:
        if flat[key] < 0:
            raise ValueError(f"{key}={flat[key]!r}, expected 0 or more")
    if config.seed >= 2**32:
        raise ValueError(f"seed={config.seed}, expected less than 2**32")
    if not 0 <= config.smoothing < 1:
        raise ValueError(f"smoothing={config.smoothing}, expected a value in [0, 1)")
    if not 0 <= config.ema < 1:
        raise ValueError(f"ema={config.ema}, expected a value in [0, 1)")
    if not 0 <= config.distill.weight <= 1:
        raise ValueError(
            f"distill.weight={config.distill.weight}, expected a value in [0, 1]"
        )
    if config.fsdp > 1 and config.runner != "jit":
        raise ValueError(f"fsdp={config.fsdp} needs runner='jit'")
    if config.keep_latest < 1:
        raise ValueError(f"keep_latest={config.keep_latest}, expected at least 1")
    _choice("runner", config.runner, ("pmap", "jit"))
    _choice("meta.mode", config.meta.mode, ("joint", "bilevel"))
    _choice("model.name", config.model.get("name"), models.names())
    _choice("quantizer.name", config.quantizer.get("name"), quantizers.names())
    _choice("dtype", config.dtype, ("float32", "bfloat16", "float16"))
    if config.activation.get("name") != "":
        known = ["", *sorted(quantizers.ACTIVATIONS)]
        _choice("activation.name", config.activation.get("name"), known)
    _check_sections("quantizer", config.quantizer, quantizers.names())
    _check_sections("activation", config.activation, sorted(quantizers.ACTIVATIONS))
    holdout = config.meta.holdout
    if config.meta.mode == "bilevel":
        every = round(1 / holdout) if 0 < holdout <= 0.5 else 0
        if every < 2 or abs(every * holdout - 1) > 1e-6:
            raise ValueError(
                f"meta.holdout={holdout}, expected 1/2, 1/3, 1/4 or another 1/n"
            )


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
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
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


def _check_keys(config: dict, known: dict, prefix: str) -> None:
    for key, value in config.items():
        if key not in known:
            raise ValueError(
                f"unknown config key {prefix + key!r}{_nearest(key, known)}"
            )
        expected = known[key]
        if isinstance(expected, dict) != isinstance(value, dict):
            kind = "a section" if isinstance(expected, dict) else "a value"
            raise ValueError(f"config key {prefix + key!r}={value!r}, expected {kind}")
        if isinstance(expected, dict) and prefix + key not in OPEN:
            _check_keys(value, expected, f"{prefix}{key}.")
        elif not isinstance(expected, dict):
            _check_type(prefix + key, value, expected)
    for key in known:
        if key not in config:
            raise ValueError(f"config key {prefix + key!r} is missing")


def _check_type(key: str, value: Any, default: Any) -> None:
    types = {
        bool: bool,
        int: int,
        float: (int, float),
        str: str,
        tuple: (tuple, list),
    }[type(default)]
    wrong_bool = isinstance(value, bool) and not isinstance(default, bool)
    if wrong_bool or not isinstance(value, types):
        raise ValueError(
            f"{key}={value!r} is a {type(value).__name__}, expected a "
            f"{type(default).__name__}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}={value!r}, expected a finite number")


def _check_sections(key: str, section: Config, names: list[str]) -> None:
    """Refuses options of a quantizer that is not in `names`, and a lone value."""
    for name in section:
        if name == "name":
            continue
        if name not in names:
            raise ValueError(
                f"unknown config key {f'{key}.{name}'!r}"
                + quantizers.nearest(name, ["name", *names])
            )
        if not isinstance(section[name], ConfigDict):
            raise ValueError(
                f"config key {f'{key}.{name}'!r}={section[name]!r}, expected a section"
            )


def _choice(key: str, value: Any, choices) -> None:
    if value not in choices:
        raise ValueError(
            f"{key}={value!r}{quantizers.nearest(str(value), list(choices))}"
        )


def _nearest(key: str, known: dict) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
    return f"; the nearest known one is {close[0]!r}" if close else ""


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
