"""Tests of the configuration: what is wrong is refused in a line with the key."""

import json

import pytest
from ml_collections import ConfigDict
from tiny import tiny_config

from quantnet_jax import config as config_lib
from quantnet_jax.common.limits import Number, Scheduled
from quantnet_jax.config import checks as config_check
from quantnet_jax.config import flags
from quantnet_jax.training import experiment
from quantnet_jax.trees.paths import flatten


def leaves(config, prefix=""):
    """{'a.b': value} of nested dicts; () and {} count as leaves."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def changed(key, value):
    """The default configuration with one key set, whatever the type."""
    config = config_lib.base().to_dict()
    *sections, last = key.split(".")
    place = config
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    return ConfigDict(config)


def refusal(key, value, check=config_lib.check):
    """The message with which a value is refused; it must be one line."""
    with pytest.raises(ValueError) as error:
        check(changed(key, value))
    message = str(error.value)
    assert "\n" not in message and len(message) < 600, message
    return message


# Every key, with values of every other type -------------------------------------------
VALUES = {
    "str": "three",
    "int": 3,
    "float": 0.125,
    "bool": True,
    "None": None,
    "list": [1, 2],
    "dict": {"a": 1},
    "nan": float("nan"),
}
FITTING = {
    str: {"str"},
    int: {"int"},
    float: {"int", "float"},
    bool: {"bool"},
    tuple: {"list"},
}


def wrong_values():
    cases = []
    for key, default in leaves(config_lib.base().to_dict()).items():
        section = key.split(".")[0]
        if isinstance(default, dict) or section in config_check.OPEN:
            continue  # checked by the factories that they go to, below
        for kind, value in VALUES.items():
            scheduled = key == "sparsity" and kind == "dict"  # see test_pruning
            if kind not in FITTING[type(default)] and not scheduled:
                cases.append(pytest.param(key, value, id=f"{key}-{kind}"))
    return cases


def test_the_sweep_below_sees_all_keys():
    keys = {case.values[0] for case in wrong_values()}
    assert {"seed", "data.pad", "weights.milestones", "meta.exact", "rules"} <= keys
    assert len(keys) > 45


@pytest.mark.parametrize(("key", "value"), wrong_values())
def test_wrong_type_is_refused_with_the_key(key, value):
    message = refusal(key, value)
    assert key in message and repr(value)[:20] in message


@pytest.mark.parametrize("value", [3, "small", None, [1]])
@pytest.mark.parametrize("section", ["data", "model", "quantizer", "weights", "meta"])
def test_a_value_in_the_place_of_a_section(section, value):
    assert section in refusal(section, value)


@pytest.mark.parametrize("key", sorted(leaves(config_lib.base().to_dict())))
def test_a_missing_key_is_named(key):
    config = config_lib.base().to_dict()
    *sections, last = key.split(".")
    place = config
    for section in sections:
        place = place[section]
    del place[last]
    options = sections and sections[0] in config_check.OPEN and last != "name"
    if options and len(sections) < 3:  # below are schedules, which have no defaults
        config_lib.check(ConfigDict(config))  # options have defaults of their own
        return
    with pytest.raises(ValueError) as error:
        config_lib.check(ConfigDict(config))
    assert last in str(error.value) and "\n" not in str(error.value)


# Unknown keys and choices -------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("sed", "seed"),
        ("data.trainsize", "train_size"),
        ("weights.learning_rte", "learning_rate"),
        ("meta.hold_out", "holdout"),
        ("quantizer.quant_net", "quantnet"),
        ("activation.dorfa", "dorefa"),
        ("data.name.x", "data.name"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    if key == "data.name.x":
        message = refusal("data.name", {"x": 1})
    else:
        message = refusal(key, {} if key.startswith(("quantizer", "activation")) else 1)
        assert "unknown config key" in message
    assert nearest in message and key.removesuffix(".x") in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("runner", "pmapp", "pmap"),
        ("meta.mode", "bilvel", "bilevel"),
        ("quantizer.name", "quantnett", "quantnet"),
        ("activation.name", "pakt", "pact"),
        ("dtype", "float64", "float32"),
        ("dtype", "int32", "float32"),
    ],
)
def test_unknown_choice_lists_the_known_ones(key, value, expected):
    message = refusal(key, value)
    assert key in message and repr(value) in message and expected in message


# Ranges -------------------------------------------------------------------------------
def out_of_range():
    """(key, value) just outside and far outside of every range."""
    for key, limit in config_check.LIMITS.items():
        if not isinstance(limit, Number) or key.split(".")[0] in config_check.OPEN:
            continue
        low, high = limit.low, limit.high
        step = 1 if limit.whole else 1e-3 * (high - low)
        yield from ((key, low if limit.above else low - step), (key, -(10**50)))
        yield from ((key, high if limit.below else high + step), (key, 10**400))
        if not limit.whole:
            yield from ((key, x) for x in (float("inf"), float("nan"), 1e300))


@pytest.mark.parametrize(("key", "value"), [*out_of_range()])
def test_out_of_range(key, value):
    message = refusal(key, value)
    assert f"{key}={str(value)[:70]}" in message


def test_every_number_of_the_configuration_has_a_range():
    numbers = {
        key
        for key, value in leaves(config_lib.base().to_dict()).items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and key.split(".")[0] not in config_check.OPEN
    }
    limits = config_check.LIMITS
    kinds = Number | Scheduled
    assert numbers == {k for k in limits if isinstance(limits[k], kinds)}
    assert limits.keys() - numbers <= leaves(config_lib.base().to_dict()).keys()


@pytest.mark.parametrize("holdout", [0.0, -0.25, 0.3, 0.75, 1.0, 2])
def test_hold_out_of_the_bilevel_mode(holdout):
    config = config_lib.base()
    config.meta.holdout = holdout
    with pytest.raises(ValueError, match=f"meta.holdout={float(holdout)}, expected "):
        config_lib.check(config)


@pytest.mark.parametrize("holdout", [1 / 2, 1 / 3, 0.25, 0.2, 1 / 7, 0.1])
def test_hold_outs_that_are_fine(holdout):
    config = tiny_config(meta__mode="bilevel", meta__holdout=holdout)
    config_lib.check(config)


def test_defaults_are_fine():
    config_lib.check(config_lib.base())
    config_lib.check(tiny_config())


def test_check_changes_nothing():
    config = config_lib.base()
    config_lib.check(config)
    assert config.to_dict() == config_lib.base().to_dict()


# A run's own file ---------------------------------------------------------------------
def write(workdir, config):
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(config.to_json())


def test_round_trip_through_a_file(tmp_path):
    config = tiny_config(
        rules=({"pattern": "head/kernel", "quantizer": "lsq", "bits": 4},)
    )
    write(tmp_path, config)
    loaded = config_lib.load(tmp_path)
    assert json.loads(loaded.to_json()) == json.loads(config.to_json())
    config_lib.check_same_run(config, tmp_path)
    config_lib.check_same_run(loaded, tmp_path)


def test_workdir_without_a_run(tmp_path):
    config_lib.check_same_run(tiny_config(), tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="config.json not found"):
        config_lib.load(tmp_path)


def test_a_run_may_go_on_at_another_place(tmp_path):
    write(tmp_path, tiny_config(runner="jit", fsdp=4))
    config_lib.check_same_run(tiny_config(runner="pmap"), tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "first"),
    [
        ("weights.learning_rate", 0.2, "weights.learning_rate"),
        ("seed", 1, "seed"),
        ("model.width", 8, "model.width"),
        ("quantizer.quantnet.width", 8, "quantizer.quantnet.width"),
    ],
)
def test_workdir_of_another_run_names_the_first_key(tmp_path, key, value, first):
    write(tmp_path, tiny_config())
    other = tiny_config()
    *sections, last = key.split(".")
    place = other
    for section in sections:
        place = place[section]
    place[last] = value
    with pytest.raises(ValueError) as error:
        config_lib.check_same_run(other, tmp_path)
    message = str(error.value)
    assert f"created with {first}=" in message and str(tmp_path) in message
    assert repr(value) in message and "\n" not in message


def test_workdir_of_an_older_version_without_a_key(tmp_path):
    old = tiny_config().to_dict()
    del old["accumulation_steps"]
    write(tmp_path, ConfigDict(old))
    with pytest.raises(
        ValueError, match=r"with accumulation_steps='\(absent\)', got 1"
    ):
        config_lib.check_same_run(tiny_config(), tmp_path)
    with pytest.raises(
        ValueError, match="config.json: config key 'accumulation_steps' is m"
    ):
        config_lib.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"seed": ', "[1, 2]", "3", "null", '"x"'])
def test_damaged_file_is_told_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    for call in (
        lambda: config_lib.load(tmp_path),
        lambda: config_lib.check_same_run(tiny_config(), tmp_path),
    ):
        with pytest.raises(ValueError) as error:
            call()
        message = str(error.value)
        assert "config.json" in message and "damaged" in message
        assert "\n" not in message


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="config.json is damaged"):
        config_lib.load(tmp_path)


def test_options_of_the_network_are_those_that_are_set():
    config = tiny_config(model__act="prelu")
    assert config_lib.model_options(config) == {"name": "small", "act": "prelu"}
    assert config_lib.base().model.width is None  # its own default
    old = config.to_dict()
    old["model"] = {"name": "small", "act": "prelu"}  # of a version with fewer options
    config_lib.check(ConfigDict(old))


def test_the_float_twin_is_float():
    """Nothing of it is quantized or pruned; it has the optimizers of what it has."""
    config = tiny_config(
        activation__name="lsq",
        rules=({"pattern": "head/kernel", "quantizer": "lsq", "bits": 2},),
        sparsity={"schedule": "linear", "start": 0.0, "end": 0.5, "until": 1.0},
        optimizers=(
            {"pattern": "model/.*/qparams", "learning_rate": 1e-3},
            {"pattern": "model/head/.*", "learning_rate": 1e-2},
            {"pattern": "quant/.*", "learning_rate": 1e-4},
        ),
    )
    built = experiment.build(config)
    twin = experiment.build(config_lib.float_twin(config, flatten(built.shapes)))
    assert [row["learning_rate"] for row in twin.config.optimizers] == [1e-2]
    assert not flatten(twin.shapes["quant"]) and twin.config.sparsity == 0
    names = flatten(twin.shapes["model"])
    assert names and not any("qparams" in name for name in names)
    assert not config_lib.quantizing(twin.config)
    assert config_lib.quantizing(config).startswith("quantizer.name=")
    config.quantizer.name = "identity"
    assert config_lib.quantizing(config).startswith("rules=")


def test_old_workdir_without_options_of_the_network(tmp_path):
    old = tiny_config().to_dict()
    old["model"] = {"name": "small"}
    write(tmp_path, ConfigDict(old))
    config_lib.check_same_run(tiny_config(), tmp_path)
    with pytest.raises(
        ValueError, match=r"created with model.width='\(absent\)', got 8"
    ):
        config_lib.check_same_run(tiny_config(model__width=8), tmp_path)


# The command line ---------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["name=small"], {"name": "small", "width": 16, "shortcut": None}),
        (["name=small", "width=None"], {"name": "small", "width": None}),
        (["stem_strides=None"], {"name": "resnet8", "stem_strides": None}),
    ],
)
def test_options_of_the_network_of_a_file_are_unset(words, expected):
    config = flags.read("default", [f"--config.model.{word}" for word in words])
    config_lib.check(config)
    assert expected.items() <= config.model.to_dict().items()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_an_option_that_the_network_lacks_is_refused():
    words = ["--config.model.name=small", "--config.model.shortcut=A"]
    with pytest.raises(ValueError, match="unknown config key 'model.shortcut'"):
        config_lib.check(flags.read("default", words))
    with pytest.raises(ValueError, match="unknown config key 'model.bread'"):
        flags.read("default", ["--config.model.bread=None"])
