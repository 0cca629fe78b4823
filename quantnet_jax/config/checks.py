"""Checks of a configuration that need nothing but the configuration.

Nothing here touches a device or a file: `train.py` checks before it waits for other
processes. What needs the data, the devices or the network is in `build_check`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from quantnet_jax import activations, data, models, quantizers, tasks
from quantnet_jax.activations.sites import DEFAULT, SITES, check_sites
from quantnet_jax.common.limits import (
    Choice,
    Flag,
    Limit,
    Number,
    Scheduled,
    Sequence,
    Text,
    check,
    check_options,
)
from quantnet_jax.common.names import nearest, show, unknown
from quantnet_jax.common.patterns import check_pattern
from quantnet_jax.config import optimizer_checks
from quantnet_jax.config.ranges import (
    COUNT_OR_0,
    LIMITS,
    OPEN,
    QUANTIZER,
    STREAMED,
    TFDS,
)

FACTORIES: dict[str, Callable[[str], Callable]] = {
    "quantizer": lambda name: quantizers.find(name)[0].factory,
    "activation": lambda name: activations.find(name).factory,
    "task": tasks.find,
}
"""Sections whose options stand under the name of a factory -> what finds it."""
KNOWN = {
    "quantizer": quantizers.MEMBERS,
    "activation": activations.MEMBERS,
    "task": tasks.TASKS,
}
"""The names that ship."""
PLAIN = {"activation": ("sites", "rules")}
"""Keys of these sections that are no names of a factory."""


def check_config(config: dict, base: dict) -> None:
    """Refuses a configuration with an unknown key, a wrong type or an impossible value.

    Args:
      config: as nested dictionaries.
      base: all keys with their defaults.

    Raises:
      ValueError: one line with the key, its value and what was expected.
    """
    _check_keys(config, base, "")
    for key in ("quantizer.name", "activation.name", "model.name", "task.name"):
        section, name = key.split(".")
        if name not in config[section]:
            raise ValueError(f"config key {key!r} is missing")
        check(key, config[section][name], LIMITS[key])
    _check_data(config["data"])
    model = {k: v for k, v in config["model"].items() if v is not None}
    models.check_options("model", model.pop("name"), model)
    for section, find in FACTORIES.items():
        _check_open(section, config[section], find)
    quantized = bool(config["activation"]["name"])
    known = models.sites(config["model"]["name"]) if quantized else SITES
    sites = config["activation"].get("sites", DEFAULT)
    check_sites(sites, known, "activation.sites")
    _check_sites_rules(config["activation"], sites)
    tasks.check_terms(config["terms"], config["teacher"])
    _check_rules(config)
    for section in ("weights", "meta"):
        optimizer_checks.check_section(section, config[section])
    for number, row in enumerate(config["optimizers"]):
        optimizer_checks.check_row(f"optimizers[{number}]", row, config["weights"])
    _check_together(config)


def _check_keys(config: dict, base: dict, prefix: str) -> None:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if key not in base:
            raise ValueError(unknown(name, base))
        section, limit = isinstance(base[key], dict), LIMITS.get(name)
        if isinstance(limit, Scheduled):  # a number, or a mapping that is no section
            check(name, value, limit)
            continue
        if section != isinstance(value, dict):
            kind = "a section" if section else "a value"
            raise ValueError(f"config key {name!r}={show(value)}, expected {kind}")
        if section and name not in OPEN:
            _check_keys(value, base[key], f"{name}.")
        elif not section:
            check(name, value, limit or _like(base[key]))
    for key in base:
        if key not in config:
            raise ValueError(f"config key {prefix + key!r} is missing")


def _like(default: Any) -> Limit:
    """What a value of the type of `default` may be."""
    kinds = {bool: Flag(), int: COUNT_OR_0, float: Number(), str: Text()}
    return {**kinds, tuple: Sequence()}[type(default)]


def _check_open(section: str, config: dict, find: Callable[[str], Callable]) -> None:
    """Checks the options of every member of a section, used or not.

    Args:
      section: 'quantizer', 'activation' or 'task'.
      config: {'name': ..., name: options, ...}.
      find: `name -> factory`; ValueError for an unknown name.
    """
    for name, options in config.items():
        if name in ("name", *PLAIN.get(section, ())):
            continue
        key = f"{section}.{name}"
        try:
            factory = find(name)
        except ValueError:
            known = ["name", *PLAIN.get(section, ()), *KNOWN[section]]
            raise ValueError(unknown(key, known)) from None
        if not isinstance(options, dict):
            raise ValueError(f"config key {key!r}={show(options)}, expected a section")
        check_options(f"{key}.", factory, options)


def _check_data(c: dict) -> None:
    streamed = c["name"] in STREAMED or c["name"].startswith(TFDS)
    if not streamed:
        known = (*data.NAMES, data.FOLDER, *STREAMED)
        if c["name"] not in known:
            near = nearest(c["name"], (*known, f"{TFDS}NAME"))
            raise ValueError(f"data.name={show(c['name'])}{near}")
    elif not c["name"].removeprefix(TFDS).strip():
        raise ValueError(f"data.name={c['name']!r}, expected a name after {TFDS!r}")
    for key in ("train_size", "test_size", "classes", "validation_size", "crop"):
        if c[key] and streamed:
            raise ValueError(
                f"data.{key}={c[key]}: {c['name']!r} is streamed whole, use 0"
            )
    if c["first_class"] and (not c["classes"] or c["name"] in data.GENERATED):
        raise ValueError(
            f"data.first_class={c['first_class']}, expected 0 without data.classes, "
            "and for generated images"
        )
    for key in ("workers", "max_unreadable"):
        if c[key] and not streamed and c["name"] != data.FOLDER:
            raise ValueError(
                f"data.{key}={c[key]}: {c['name']!r} is held in memory, use 0"
            )
    if c["name"] == data.FOLDER and not c["folder"]:
        raise ValueError(
            f"data.folder='': data.name={data.FOLDER!r} is read from one, expected it"
        )
    if c["folder"] and c["name"] in data.WITHOUT_FOLDER:
        raise ValueError(
            f"data.folder={show(c['folder'])}: data.name={c['name']!r} is not read "
            "from a folder, use ''"
        )
    if c["name"] in data.GENERATED:
        if c["image_size"] % 4:
            raise ValueError(
                f"data.image_size={c['image_size']}, expected a multiple of 4 for "
                f"data.name={c['name']!r}"
            )
        largest = 2**26 // max(8, c["image_size"]) ** 2
        for key, default in data.SYNTHETIC.items():
            if (c[f"{key}_size"] or default) > largest:
                raise ValueError(
                    f"data.{key}_size={c[f'{key}_size'] or default}, expected at most "
                    f"{largest} synthetic images of data.image_size="
                    f"{c['image_size'] or 8}"
                )


def _check_rules(config: dict) -> None:
    _check_pattern("layers", config["layers"])
    _check_pattern("init_pattern", config["init_pattern"])
    for number, row in enumerate(config["rules"]):
        key = f"rules[{number}]"
        if not isinstance(row, Mapping) or not {"pattern", "quantizer"} <= row.keys():
            raise ValueError(
                f"{key}={show(row)}, expected {{'pattern': ..., 'quantizer': ...}}, "
                "perhaps with 'share', 'out', 'stack' and options of the quantizer"
            )
        options = dict(row)
        check(f"{key}.pattern", pattern := options.pop("pattern"), Text())
        _check_pattern(f"{key}.pattern", pattern)
        check(f"{key}.quantizer", name := options.pop("quantizer"), QUANTIZER)
        if "share" in options:
            check(f"{key}.share", options.pop("share"), LIMITS["share"])
        for axes in ("out", "stack"):
            value = options.pop(axes, ())
            for axis in value if isinstance(value, list | tuple) else (value,):
                check(f"{key}.{axes}", axis, Number(-32, 31, whole=True))
        try:
            factory = quantizers.find(name)[0].factory
        except ValueError as e:  # begins with 'quantizer='
            raise ValueError(f"{key}.{e}") from None
        check_options(f"{key}.", factory, options)


def _check_sites_rules(config: dict, sites: tuple[str, ...]) -> None:
    """Of a section without a name nothing is used."""
    given = config.get("rules", ())
    check("activation.rules", given, Sequence())
    rows: tuple[Any, ...] = given if config["name"] else ()
    for number, row in enumerate(rows):
        key = f"activation.rules[{number}]"
        if not isinstance(row, Mapping) or "site" not in row:
            raise ValueError(
                f"{key}={show(row)}, expected {{'site': ...}} and options of "
                f"activation.{config['name']}"
            )
        check(f"{key}.site", row["site"], Choice(tuple(sites)))
        options = {k: v for k, v in row.items() if k != "site"}
        check_options(f"{key}.", activations.find(config["name"]).factory, options)


def _check_pattern(key: str, pattern: str) -> None:
    check_pattern(key, models.kernel_pattern(pattern))


def _check_together(config: dict) -> None:
    """Refuses values that are fine alone and not together."""
    if config["fsdp"] > 1 and config["runner"] != "jit":
        raise ValueError(f"fsdp={config['fsdp']} needs runner='jit'")
    if config["batch_size"] % config["accumulation_steps"]:
        raise ValueError(
            f"accumulation_steps={config['accumulation_steps']} does not divide "
            f"batch_size={config['batch_size']}"
        )
    holdout = config["meta"]["holdout"]
    if abs(round(1 / holdout) * holdout - 1) > 1e-6:
        raise ValueError(
            f"meta.holdout={holdout}, expected 1/2, 1/3, 1/4 or another 1/n"
        )
    network, task = config["model"]["name"], config["task"]["name"]
    if models.enlarges(network) and task not in tasks.DRAWINGS:
        raise ValueError(
            f"model.name={network!r} makes larger images, expected "
            f"task.name='super_resolution', not {task!r}"
        )
    name, act = config["activation"]["name"], config["model"].get("act")
    if name and activations.MEMBERS[name].signed and act == "relu":
        raise ValueError(
            f"model.act={act!r} is never negative, so activation.name={name!r} would "
            "make +1 of all activations; expected 'hardtanh' (what a network gets "
            "without model.act), 'identity', 'prelu' or 'rprelu'"
        )
