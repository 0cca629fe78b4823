"""What is wrong with a configuration for its data, its devices or its network.

Called while an experiment is built, before anything is compiled or written. Errors name
the keys of the configuration, whatever the arguments are called further down.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from quantnet_jax import config as config_lib
from quantnet_jax import models
from quantnet_jax.common.limits import defaults_of
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.tasks import term_paths
from quantnet_jax.tasks.terms import TERMS
from quantnet_jax.trees import tree

PyTree = Any
LARGEST_NETWORK = 2**30
"""Parameters; larger values are surely typos."""
LARGEST_BATCH = 4096
"""Of an evaluation with fewer examples than that; what is beyond is padding only."""
LARGEST_RUN = 10**8
"""Steps."""


@contextlib.contextmanager
def named(key: str, **arguments: str):
    """Errors of what is inside begin with a key of the configuration.

    Args:
      key: put in front, as in 'data.folder: the file is damaged'.
      **arguments: argument -> key: messages that begin with one of these arguments, as
        'size=100' or '`size` is 100', get its key in place of it.

    Raises:
      ValueError, FileNotFoundError, ImportError: what was raised inside, on one line.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as e:
        kinds = {OSError: FileNotFoundError, ImportError: ImportError}
        kind = next((kinds[k] for k in kinds if isinstance(e, k)), ValueError)
        text = " ".join(str(e).split())
        found = re.match(r"(`?)(\w+)\1(?==| is |:)", text)
        if found and found[2] in arguments:
            text = arguments[found[2]] + text[found.end() :]
        else:
            text = f"{key}: {text}"
        raise kind(text) from None


def check_devices(config, devices: int) -> None:
    """Refuses what cannot be divided by the devices."""
    if devices % config.fsdp:
        raise ValueError(
            f"fsdp={config.fsdp} does not divide the {devices} devices; choose a "
            "divisor of their number"
        )
    own = config.batch_size // devices
    if own % config.accumulation_steps:
        raise ValueError(
            f"accumulation_steps={config.accumulation_steps} does not divide the "
            f"{own} examples of a device (batch_size={config.batch_size} on {devices})"
        )


def check_data(config, feed) -> tuple[float, int]:
    """Refuses batches beyond the data, images beyond the network, endless runs.

    Args:
      config: the configuration.
      feed: its `Feed`.

    Returns:
      (steps of an epoch, steps of the run).
    """
    train_size, test_size = feed.train_size, feed.test_size
    options = config_lib.model_options(config)
    name = options.pop("name")
    for images in (x["image"] for x in (feed.train_data, feed.test_data) if x):
        try:
            models.check_images(name, options, images, feed.mean)
        except ValueError as e:
            raise ValueError(f"model.{e}") from None
    epoch_steps = train_size / config.batch_size
    if config.batch_size > train_size:
        raise ValueError(
            f"batch_size={config.batch_size}, expected at most the {train_size} "
            "training images"
        )
    if config.eval_batch_size > max(test_size, LARGEST_BATCH):
        raise ValueError(
            f"eval_batch_size={config.eval_batch_size}, expected at most the "
            f"{test_size} test images"
        )
    total = round(config.epochs * epoch_steps)
    if not 1 <= total <= LARGEST_RUN:
        raise ValueError(
            f"epochs={config.epochs} makes {total} steps of batch_size="
            f"{config.batch_size} with {train_size} images, expected 1 to 10**8"
        )
    if round(config.eval_every * epoch_steps) < 1:
        raise ValueError(
            f"eval_every={config.eval_every} is less than a step, expected at least "
            f"{1 / epoch_steps:.3g} epochs of {train_size} images in batches of "
            f"{config.batch_size}"
        )
    return epoch_steps, total


def check_adaptation(config, adapts: bool, delayed: bool) -> None:
    """Refuses what a network that adapts to each example cannot be combined with.

    Args:
      config: the configuration.
      adapts: whether its task needs that.
      delayed: whether the quantizer learns through the weights' update (`gradient`).
    """
    task, mode = f"task.name={config.task.name!r}", config.meta.mode
    if adapts != (mode == "reptile"):
        expected = "'reptile'" if adapts else "'joint' or 'bilevel'"
        raise ValueError(f"meta.mode={mode!r}, expected {expected} for {task}")
    if not adapts:
        return
    if delayed:
        raise ValueError(
            f"quantizer.name={config.quantizer.name!r} learns through the update of "
            f"the weights, which {task} makes in another way; expected another one"
        )
    others = {"export": False, "teacher": "", "fsdp": 1}
    for key, value in others.items():
        if config[key] != value:
            raise ValueError(
                f"{key}={config[key]!r}, expected {value!r} for {task}, whose network "
                "adapts to each example"
            )


def held_out(config, devices: int, delayed: bool) -> int:
    """Of which so many examples 'bilevel' holds out one; refuses what cannot be.

    Args:
      config: the configuration.
      devices: of the run.
      delayed: whether the quantizer learns through the weights' update (`gradient`).
    """
    if config.meta.mode != "bilevel":
        return 0
    if delayed:
        raise ValueError(
            f"meta.mode={config.meta.mode!r}, expected 'joint': a gradient network "
            "learns through the weights' update as it is"
        )
    every = round(1 / config.meta.holdout)
    if (config.batch_size // devices) % every:
        raise ValueError(
            f"meta.holdout={config.meta.holdout} does not divide the "
            f"{config.batch_size // devices} examples of a device"
        )
    return every


def _check_network(config, params: PyTree) -> None:
    """Refuses a network that no memory holds, before it is made."""
    if (count := _count(params)) > LARGEST_NETWORK:
        raise ValueError(
            f"model.width={config.model.get('width')}: {config.model.name!r} would "
            f"have {count:.3g} parameters, expected at most 2**30"
        )


def _count(shapes: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def plan(config, rules: Sequence[tree.Rule], params: PyTree) -> tuple[tree.Bucket, ...]:
    """`tree.plan`, whose errors name the key of the rule; for the shipped networks.

    Args:
      config: the configuration, of whose `layers` and `rules` the rules are made.
      rules: the first is that of `layers`, then those of `rules`.
      params: shapes.

    Raises:
      ValueError: also where the network is too large, or a rule claims something else
        than a kernel, or a tensor that its quantizer cannot take.
    """
    _check_network(config, params)
    _check_left(config, rules[0], params)
    for number, row in enumerate(config.terms):
        key = f"terms[{number}]"
        with named(key, pattern=f"{key}.pattern"):
            _check_paths(row, params)
    keys = [f"layers={config.layers!r}"]
    keys += [f"rules[{i}]={row['pattern']!r}" for i, row in enumerate(config.rules)]
    names = [config.quantizer.name, *(row["quantizer"] for row in config.rules)]
    for key, name, rule in zip(keys, names, rules, strict=True):
        with named(key):
            buckets = tree.plan([rule], params)
            _check_kernels(path for bucket in buckets for path in bucket.paths)
            quantizer = tree.bucket_quantizer(buckets)
            made = jax.eval_shape(quantizer.init, jax.random.key(0), params)
        if (count := _count(made)) > LARGEST_NETWORK:
            raise ValueError(
                f"quantizer.{name} would learn {count:.3g} parameters, expected at "
                "most 2**30"
            )
    with named(", ".join(keys)):
        return tree.plan(rules, params)


def _check_paths(row: Mapping[str, Any], params: PyTree) -> None:
    """Refuses a term whose pattern matches none of the parameters that it is for."""
    options = defaults_of((kind := TERMS[row["name"]]).factory) | dict(row)
    if "pattern" not in options:
        return
    found = term_paths.matching(params, pattern := options["pattern"])
    of_sparse = [p for p, w in found.items() if p.endswith("kernel") and w.ndim == 3]
    if kind.sparse and not of_sparse:
        raise term_paths.no_sparse(pattern)


def trained(model: PyTree, quantizer: Quantizer, tx) -> dict[str, PyTree]:
    """{'model', 'quant'}: shapes of all that is trained.

    Args:
      model: shapes of the network's parameters.
      quantizer: over their tree.
      tx: optimizer over both.

    Raises:
      ValueError: a row of `optimizers` matches nothing.
    """
    quant = jax.eval_shape(quantizer.init, jax.random.key(0), model)
    jax.eval_shape(tx.init, shapes := {"model": model, "quant": quant})
    return shapes


def _check_left(config, rule: tree.Rule, params: PyTree) -> None:
    """Refuses `layers` that match nothing, or nothing that `rules` leave to them."""
    with named(key := f"layers={config.layers!r}"):
        pattern = models.kernel_pattern(config.layers)
        tree.plan([rule._replace(pattern=pattern)], params)
        left = re.compile(rule.pattern)
    if not any(left.fullmatch(path) for path in tree.flatten(params)):
        raise ValueError(
            f"{key}: `rules` claim all tensors that it matches; expected a pattern of "
            "`rules` that leaves some, or none of `rules` and another quantizer.name"
        )


def _check_kernels(paths: Iterable[str]) -> None:
    others = [p for p in paths if not re.fullmatch(models.KERNELS["all"], p)]
    if others:
        raise ValueError(
            f"only kernels are quantized, but the pattern matches {others[0]!r}"
        )
