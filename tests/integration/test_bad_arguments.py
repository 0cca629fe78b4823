"""Arguments that only their taker knows: terms, functions of optax, own quantizers."""

import os
import re

import pytest

from tests.integration.referee import build, config_of, fault


@pytest.fixture(autouse=True)
def nothing_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.listdir(tmp_path)


RULE = {"pattern": "head/kernel", "quantizer": "lsq", "share": "layer"}
LION = {"pattern": ".*", "optimizer": "lion"}
OWN = ("json:loads", "builtins:print", "builtins:dict", "sys:exit", "mine:f", "json:f")


def of_optax(key, name, *options, section="weights"):
    used = {"optimizer": "options", "schedule": "schedule_options"}[key]
    return {f"{section}.{key}": name, f"{section}.{used}": options}


def options_of_optax():
    """(key that is named, changes): values that a function of optax cannot take."""
    steps = ("transition_steps", 3)
    schedules = [
        ("exponential_decay", ("decay_rate", "x"), steps),
        ("exponential_decay",),
        ("exponential_decay", ("decay_rate", 0.5), ("transition_steps", float("inf"))),
        ("cosine_decay_schedule", ("init_value", {})),
        ("linear_onecycle_schedule", steps, ("div_factor", 0)),
        *(("constant_schedule", ("value", x))
          for x in ((), {}, None, "x", 2**63, 1j, True, (0.1, 0.2))),
        *(("piecewise_constant_schedule", ("boundaries_and_scales", x))
          for x in (5, "x", (0.5,), ((0.5, "x"),), (("x", 0.1),), ((0.5, 0.1, 3),))),
    ]  # fmt: skip
    optimizers = [
        ("adamw", ("b1", "x")),
        ("adamw", ("b1", 1j)),
        ("adamw", ("mu_dtype", "bread")),
        ("adamw", ("weight_decay", 0.1)),
        ("adamw", ("bread", 1)),
        ("scale_by_rms", ("decay", None)),
        ("scale_by_yogi", ("initial_accumulator_value", "x")),
        ("adafactor", ("decay_rate", "x")),
    ]
    for section in ("weights", "meta"):
        for row in schedules:
            changes = of_optax("schedule", *row, section=section)
            yield f"{section}.schedule_options", changes
        for row in optimizers:
            yield f"{section}.options", of_optax("optimizer", *row, section=section)


def kurtosis(**options):
    return {"terms": ({"name": "kurtosis", **options},)}


# (keys of which one is named, changes)
CASES = [
    # Terms of the loss
    *(("terms[0].targets", kurtosis(targets=x)) for x in (
        (1, 2), (("(", 1.8),), ((".*", "x"),), ((".*", 0.5),), ((3, 1.8),), ("ab",),
        ((".*", True),), ((".*", 1.8, 1),))),
    ("terms[0].pattern", kurtosis(pattern="nothing")),
    ("terms[0].pattern", kurtosis(pattern="(")),
    ("terms[1].pattern",
     {"terms": ({"name": "kurtosis"}, {"name": "quantization_error"})}),
    # Functions of optax and their arguments
    *options_of_optax(),
    ("weights.schedule_options", of_optax("schedule", "linear", ("bread", ()))),
    ("weights.options", of_optax("optimizer", "sgd", ("bread", 2))),
    ("meta.options", of_optax("optimizer", "adam", ("b1", 0.9), section="meta")),
    ("optimizers[0].options",
     {"optimizers": ({"pattern": ".*", "options": (("b1", 0.9),)},)}),
    ("optimizers[0].options",
     {"optimizers": (LION | {"options": (("b1", "x"),)},)}),
    # Quantizers of one's own
    *(("quantizer.name", {"quantizer.name": x}) for x in OWN),
    *(("rules[1].quantizer", {"rules": (RULE, {"pattern": ".*", "quantizer": x})})
      for x in OWN),
]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "changes"), CASES, ids=[f"{i}-{k}" for i, (k, _) in enumerate(CASES)]
)
def test_arguments_are_refused(keys, changes):
    assert not fault(lambda: build(config_of(changes)), keys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer.name": "mine:f"}, "quantizer.name='mine:f': No module named"),
        ({"rules": (RULE | {"pattern": ".*kernel"},)}, "layers='inner': `rules` claim"),
        (
            {"quantizer.name": "builtins:print"},
            "quantizer.name='builtins:print', expected a function that returns a "
            "Quantizer: it returned a NoneType",
        ),
    ],
)
def test_messages_say_it_once(changes, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        build(config_of(changes))
    assert "(?" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        kurtosis(pattern="head/kernel", targets=(("head.*", 1.5), (".*", 2))),
        of_optax("optimizer", "adamw", ("b1", 0.8), ("mu_dtype", "bfloat16")),
        of_optax("optimizer", "scale_by_yogi", section="meta"),
        of_optax("schedule", "constant_schedule", ("value", 0)),
        of_optax(
            *("schedule", "piecewise_constant_schedule"),
            ("boundaries_and_scales", ((0.5, 0.1), (0.8, 0.1))),
        ),
        of_optax("optimizer", "adamw", ("b1", 0.8))
        | {"optimizers": ({"pattern": ".*/bias", "optimizer": "sgd"},)},
    ],
)
def test_what_goes_together_is_built(changes):
    build(config_of(changes))
