"""From sections of a configuration to what they describe."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from quantnet_jax import activations, models, quantizers
from quantnet_jax import config as config_lib
from quantnet_jax.activations.sites import DEFAULT, replace_quantizers
from quantnet_jax.config import Config
from quantnet_jax.config.optimizer_checks import completed
from quantnet_jax.core import pruning, schedules
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.data import Dataset
from quantnet_jax.data.sets import superres
from quantnet_jax.tasks import TASKS, Source, Task
from quantnet_jax.tasks.terms import TERMS, Term, weighted
from quantnet_jax.training import build_check, optim
from quantnet_jax.trees import tree

PyTree = Any


def make_model(
    config: Config,
    of_task: Mapping[str, Any],
    axis_name: str | None,
    total_steps: int = schedules.NOMINAL,
):
    """The network of `config.model`, with the options that follow from the task."""
    options = config_lib.model_options(config) | make_activation(config, total_steps)
    try:
        return models.create(
            options.pop("name"),
            **of_task,
            dtype=config.dtype,
            axis_name=axis_name,
            **options,
        )
    except (ValueError, TypeError, KeyError) as e:
        raise ValueError(f"config.model: {e}") from None


def trace_network(model, shape: tuple[int, int, int]) -> tuple[PyTree, list[str]]:
    """(shapes of the parameters, where activations are quantized) of a linen network.

    Args:
      model: the network.
      shape: of its images, (H, W, C).
    """
    sites: list[str] = []
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    with replace_quantizers(
        lambda path, x, quantize: sites.append(path) or quantize(x)
    ):
        found = jax.eval_shape(model.init, jax.random.key(0), image)
    return found["params"], sites


def check_activation(config: Config, sites: list[str], total: int) -> None:
    """Refuses a run that would quantize no activation, where it is to.

    Args:
      config: the configuration.
      sites: of `trace_network`.
      total: steps of the run.

    Raises:
      ValueError: the network has none of the sites; or a warm-up outlasts the run.
    """
    if not (name := config.activation.name):
        return
    if not sites:
        raise ValueError(
            f"activation.sites={activation_sites(config)!r}: this "
            f"{config.model.name!r} quantizes no activation there, expected more sites"
        )
    rows = {f"activation.{name}": config.activation.get(name, {})}
    of_sites = enumerate(activation_rules(config))
    rows |= {f"activation.rules[{i}]": row for i, row in of_sites}
    for key, row in rows.items():
        if (steps := row.get("warmup", 0)) >= total:
            raise ValueError(
                f"{key}.warmup={steps}, expected less than the {total} steps of the "
                "run, none of which would quantize activations"
            )


def model_options(config: Config) -> dict:
    """Name and options of the network as plain data, without its quantizer."""
    made = config_lib.model_options(config) | make_activation(config)
    return {k: v for k, v in made.items() if k not in ("act_quant", "sites")}


def activation_sites(config: Config) -> tuple[str, ...]:
    """Where the network quantizes activations."""
    return tuple(config.activation.get("sites", DEFAULT))


def activation_rules(config: Config) -> list[dict[str, Any]]:
    """What differs at a site, as plain data."""
    return [dict(row) for row in config.activation.get("rules", ())]


def make_activation(config: Config, total_steps: int = schedules.NOMINAL) -> dict:
    """Options of the network that follow from `config.activation`.

    Args:
      config: the configuration.
      total_steps: of the run; evaluation and deployment need no schedule.
    """
    name, act = config.activation.name, config.model.get("act")
    if not name:
        return {}
    options = config.activation.get(name, ConfigDict()).to_dict()
    sites, rules = activation_sites(config), activation_rules(config)
    try:
        made = activations.at_sites(name, sites, rules, total_steps, **options)
    except (ValueError, TypeError) as e:
        raise ValueError(f"config.activation: {e}") from None
    found = {"act_quant": made, "sites": sites}
    if activations.find(name).signed:
        found |= {"act": act or "hardtanh"}
    return found


def with_margin(config: Config, dataset: Dataset) -> Dataset:
    """Around test images that are to be enlarged, all that the network sees of them."""
    network = models.create(**config_lib.model_options(config), outputs=1)
    margin = network.reach if isinstance(network, models.SuperResolution) else 0
    with build_check.named("model.depth"):
        return superres.with_margin(dataset, margin)


def make_task(config: Config, source: Source) -> Task:
    """The task of `config.task`."""
    name = config.task.name
    options = config.task.get(name, ConfigDict()).to_dict()
    with build_check.named(f"task.{name}"):
        return TASKS[name](source, **options)


def make_rules(config: Config, total_steps: int) -> list[tree.Rule]:
    """The rules of `config.layers`, `config.quantizer` and `config.rules`.

    A tensor that a row of `config.rules` claims is none of `config.layers`.
    """
    kernels = lambda pattern: models.kernel_pattern(str(pattern))
    default = {
        "pattern": kernels(config.layers),
        "quantizer": config.quantizer.name,
        "share": config.share,
    }
    if claimed := "|".join(kernels(row["pattern"]) for row in config.rules):
        default["pattern"] = f"(?!(?:{claimed})$)(?:{default['pattern']})"
    made, rows = [], config.rules
    sparsity = schedules.resolve(
        config.to_dict()["sparsity"], total_steps, pruning.RATE
    )
    keys = ["quantizer.name", *(f"rules[{i}].quantizer" for i in range(len(rows)))]
    for key, row in zip(keys, (default, *rows), strict=True):
        options = dict(row)
        name, pattern = options.pop("quantizer"), options.pop("pattern")
        of_rule = {k: options.pop(k) for k in ("share", "out", "stack") if k in options}
        section = config.quantizer.get(name, ConfigDict()).to_dict()
        with build_check.named(f"quantizer.{name}", quantizer=key):
            quantizer = quantizers.create(
                name, total_steps=total_steps, **section | options
            )
            if sparsity:
                quantizer = pruning.sparse(quantizer, sparsity)
        made.append(tree.Rule(kernels(pattern), quantizer, **of_rule))
    return made


def sharpness(config: Config, total_steps: int, step: int) -> dict[str, float]:
    """{'sharpness': that of the default quantizer after a step}; {} if it has none."""
    name = config.quantizer.name
    options = config.quantizer.get(name, ConfigDict()).to_dict()
    value = schedules.resolve(options.get("sharpness"), total_steps)
    if value is None:
        return {}
    now: Any = value(jnp.float32(step)) if callable(value) else value
    return {"sharpness": float(now)}


def make_rate(section: str, c: Config, total_steps: int) -> Callable:
    """The learning-rate schedule of one section."""
    options = f"{section}.schedule_options"
    with build_check.named(section, schedule_options=options):
        return optim.learning_rate(
            c.learning_rate,
            total_steps,
            schedule=c.schedule,
            warmup=c.warmup,
            milestones=tuple(c.milestones),
            options=tuple(c.schedule_options),
        )


def make_optimizer(section: str, c: Config, rate: Callable):
    """The optimizer of one section."""
    with build_check.named(section, options=f"{section}.options"):
        return optim.optimizer(
            c.optimizer,
            rate,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
            clip=c.clip,
            options=tuple(c.options),
        )


def make_terms(config: Config) -> Term | None:
    """The weighted sum of `config.terms`, None without any."""
    made = []
    for number, row in enumerate(config.terms):
        options = {k: v for k, v in dict(row).items() if k not in ("name", "weight")}
        with build_check.named(f"terms[{number}]"):
            term = TERMS[row["name"]].factory(**options)
        made.append((row.get("weight", 1.0), term))
    return weighted(made) if made else None


def make_tx(config: Config, steps: int, rate: Callable, quantizer: Quantizer):
    """The optimizer over {'model', 'quant'} that a quantizer needs.

    Args:
      config: the configuration.
      steps: of the whole run.
      rate: learning rate of the weights, a schedule of the step.
      quantizer: over the tree of the model's parameters.
    """
    meta_rate = make_rate("meta", config.meta, steps)
    rows = []
    for number, row in enumerate(config.optimizers):
        key = f"optimizers[{number}]"
        c = ConfigDict(completed(dict(row), config.weights.to_dict()))
        of_row = make_optimizer(key, c, make_rate(key, c, steps))
        rows.append((row["pattern"], of_row))
    tx = optim.partition(
        make_optimizer("weights", config.weights, rate),
        make_optimizer("meta", config.meta, meta_rate),
        rows,
    )
    return optim.with_quantizer(tx, quantizer)
