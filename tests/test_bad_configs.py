"""What is bad is refused before training, in one line that names the key.

Three hundred of the generated configurations; all of them:
`python benchmarks/bad_configs.py`.
"""

import inspect
import os

import jax
import pytest
from ml_collections import ConfigDict

from benchmarks import bad_configs
from benchmarks.bad_config_cases import CATEGORIES, ORDER, case
from benchmarks.bad_config_keys import KEYS, OPTIONS, PLAIN, RESNET, SECTIONS, Range
from benchmarks.bad_config_together import Case
from quantnet_jax import config as config_lib
from quantnet_jax import models, quantizers
from quantnet_jax.config import checks as config_check
from quantnet_jax.core import limits
from quantnet_jax.quantizers.options import limits_of
from quantnet_jax.training import experiment

ROUNDS = 6


@pytest.fixture
def nothing_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.usefixtures("nothing_written")
def test_bad_configurations_are_refused(category):
    numbers = [n for n in range(ROUNDS * len(ORDER)) if case(n).category == category]
    result = bad_configs.run(numbers, jax.devices()[:4])
    assert not result["failures"], result["failures"][:3]
    assert result["configurations"] == len(numbers) >= ROUNDS
    assert result["distinct"] > 0.7 * len(numbers)


# The generator ------------------------------------------------------------------------
def test_a_number_says_all():
    for number in (0, 17, 4999):
        assert repr(case(number)) == repr(case(number))
    assert len(ORDER) == 50 and set(ORDER) == set(CATEGORIES)


def test_what_the_cases_start_from_is_fine():
    config_lib.check(ConfigDict(bad_configs.start()))


def test_tables_of_the_cases_know_every_key():
    known, options = set(), set()

    def visit(config, prefix):
        for key, value in config.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and name.count(".") == 0:
                visit(value, f"{name}.")
            elif isinstance(value, dict):
                options.add(name)
            else:
                known.add(name)

    visit(config_lib.base().to_dict(), "")
    small = {f"model.{name}" for name in models.OPTIONS if name not in RESNET}
    assert set(KEYS) == known | small
    assert set(OPTIONS) | set(PLAIN) == options
    assert set(SECTIONS) == {k.split(".")[0] for k in known if "." in k}
    for place, kinds in OPTIONS.items():
        section, name = place.split(".")
        members = {
            "quantizer": quantizers.MEMBERS,
            "activation": quantizers.ACTIVATIONS,
        }
        factory = members[section][name].factory
        assert set(kinds) == set(inspect.signature(factory).parameters), place


def edges(kind):
    """Values that are just fine, of the tables written by hand."""
    if isinstance(kind, Range):
        step = 1e-3 * (kind.high - kind.low)
        low = kind.low + ("low" in kind.open) * step
        high = kind.high - ("high" in kind.open) * step
        return (int(low), int(high)) if kind.whole else (low, high)
    if kind == "flag":
        return (True, False)
    if isinstance(kind, tuple) and kind[0] == "schedule":
        plain = {"schedule": "linear", "until": 1}
        (low, high) = edges(kind[1])
        return (low, high, plain | {"start": low, "end": high})
    return kind if isinstance(kind, tuple) else ()


def test_edges_of_every_range_are_accepted():
    count = 0
    for key, kind in KEYS.items():
        limit = config_check.LIMITS.get(key) or models.OPTIONS.get(key[6:])
        for value in edges(kind):
            limits.check(key, value, limit or limits.Flag())
            count += 1
    for place, kinds in OPTIONS.items():
        section, name = place.split(".")
        members = {
            "quantizer": quantizers.MEMBERS,
            "activation": quantizers.ACTIVATIONS,
        }
        known = limits_of(members[section][name])
        for option, kind in kinds.items():
            for value in edges(kind):
                limits.check(f"{place}.{option}", value, known[option])
                count += 1
    assert count > 200


def test_options_on_the_edge_make_quantizers():
    """What the tables accept, the factories take."""
    for place, kinds in OPTIONS.items():
        section, name = place.split(".")
        make = {
            "quantizer": quantizers.create,
            "activation": quantizers.create_activation,
        }
        for option, kind in kinds.items():
            for value in edges(kind):
                both = {"lowest": {"highest": 0.9995}, "highest": {}}.get(option, {})
                if option == "highest":
                    both = {"lowest": 0.5}
                if option == "unit" and value == "conv":
                    both = {"width": 2}
                make[section](name, **{option: value} | both)


# The referee --------------------------------------------------------------------------
SEED = Case("seed", ("seed",), (("seed", -1),))


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (KeyError("seed"), "KeyError"),
        (TypeError("seed is None"), "TypeError"),
        (ValueError("seed\nis -1"), "not one line"),
        (ValueError("data.seed is -1"), "does not name seed"),
        (ValueError("seeds is -1"), "does not name seed"),
        (ValueError("seed " * 200), "too long"),
        (SystemExit("seed"), "the end without an error"),
    ],
)
def test_referee_sees_what_is_wrong(monkeypatch, error, wrong):
    def check(config):
        raise error

    assert bad_configs.refuse(SEED, [])[:2] == ("check", "")
    monkeypatch.setattr(bad_configs.config_lib, "check", check)
    if type(error) in bad_configs.TOLD:  # of a file of ours
        monkeypatch.setattr(bad_configs, "ROOT", "")
    assert bad_configs.refuse(SEED, [])[1] == wrong


def test_referee_sees_what_is_accepted(monkeypatch):
    monkeypatch.setattr(experiment, "build", lambda config, devices: None)
    fine = Case("fine", ("seed",), (("seed", 1),))
    assert bad_configs.refuse(fine, []) == ("none", "accepted", "")


def test_referee_sees_errors_of_others():
    bad = Case("not ours", ("seed",), (("seed", 1), ("data.pad", 1)))
    monkey = pytest.MonkeyPatch()
    with monkey.context() as m:
        m.setattr(bad_configs.config_lib, "check", lambda config: int("seed"))
        m.setattr(bad_configs, "ROOT", bad_configs.ROOT / "benchmarks")
        assert "ValueError of " in bad_configs.refuse(bad, [])[1]


# Files --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(): return {'seed': 1}", "dict"),
        ("def get_config(): return None", "None"),
        ("def get_config(:", "invalid syntax"),
        ("import no_such_module", "no_such_module"),
        ("def get_config(): raise ValueError('a\\nb')", "b"),
    ],
    ids=["dict", "nothing", "syntax", "import", "raises"],
)
def test_file_that_holds_no_configuration(tmp_path, text, message):
    path = tmp_path / "experiment.py"
    path.write_text(text)
    bad = Case("file", ("x",), words=(f"--config={path}",))
    stage, wrong, told = bad_configs.refuse(bad, [])
    assert wrong in ("", "does not name x"), (wrong, told)
    assert message in told and len(told.splitlines()) == 1
