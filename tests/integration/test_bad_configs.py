"""What is bad is refused before training, in one line that names the key.

Wrong values are generated from the declared limits of every key and option; what does
not go together, or not with the data, the devices or the network, is a list of cases in
`test_bad_combinations.py`.
"""

import json
import os

import pytest
from ml_collections import ConfigDict

from quantnet_jax import activations, models, quantizers
from quantnet_jax import config as config_lib
from quantnet_jax.common import limits
from quantnet_jax.common.limits import (
    Choice,
    Flag,
    Number,
    Scheduled,
    Sequence,
    Text,
    limits_of,
)
from tests.integration import bad_configs
from tests.integration.bad_configs import LIMITS, MEMBERS, edges, wrong_values
from tests.integration.referee import build, config_of, fault, start

CREATE = {"quantizer": quantizers.create, "activation": activations.create}


@pytest.fixture(autouse=True)
def nothing_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.listdir(tmp_path)


# The referee --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (KeyError("seed"), "KeyError"),
        (TypeError("seed is None"), "TypeError"),
        (ValueError("seed\nis -1"), "not one short line"),
        (ValueError("seed " * 200), "not one short line"),
        (ValueError("data.seed is -1"), "does not name seed"),
        (ValueError("seeds is -1"), "does not name seed"),
        (SystemExit("seed"), "the end without an error"),
        (ValueError("--config.seed is -1"), ""),
    ],
)
def test_referee_sees_what_is_wrong(error, wrong):
    def call():
        raise error

    found = fault(call, "seed")
    assert found.startswith(wrong) and bool(found) == bool(wrong)


def test_referee_sees_what_is_accepted_and_errors_of_others():
    assert fault(lambda: None, "seed") == "accepted"
    assert fault(lambda: json.loads("seed"), "x").startswith("JSONDecodeError of")


# Generated: every key and option at the edges of its limit ----------------------------
def test_there_is_a_limit_for_every_key():
    assert len(LIMITS) > 100
    assert not [key for key, limit in LIMITS.items() if limit is None]
    build(ConfigDict(start()))  # what all cases start from is fine


@pytest.mark.parametrize("kind", [Number, Choice, Flag, Text, Sequence, Scheduled])
def test_wrong_values_are_refused(kind):
    faults, count = {}, 0
    for turn, (key, limit) in enumerate(LIMITS.items()):
        if not isinstance(limit, kind):
            continue
        default = key.startswith("model.") and key != "model.name"  # None stands for it
        for value in wrong_values(limit, turn):
            if default and value is None:
                continue
            config = config_of({key: value})
            count += 1
            if wrong := fault(lambda c=config: config_lib.check(c), key):
                faults[f"{key}={value!r:.60}"] = wrong
    assert not faults
    assert count > 20


def test_edges_are_accepted_and_make_quantizers():
    for key, limit in LIMITS.items():
        for value in edges(limit):
            limits.check(key, value, limit)
    for section, members in MEMBERS.items():
        for name, member in members.items():
            for option, limit in limits_of(member.factory).items():
                for value in edges(limit):
                    both = {"highest": {"lowest": 0.5}, "lowest": {"highest": 0.9995}}
                    more = both.get(option, {})
                    if value == "conv":
                        more = {"width": 2}
                    CREATE[section](name, **{option: value} | more)


@pytest.mark.parametrize("name", models.names())
def test_networks_hold_options_to_their_ranges(name):
    known = models.options_of(name)
    more = {"width": {"groups": 1}, "groups": {"width": 2**14}}
    for option, limit in known.items():
        both = more.get(option, {}) if "groups" in known else {}
        for value in edges(limit):
            call = lambda o={option: value} | both: models.create(name, outputs=1, **o)
            if (name, option, value) == ("resnet50", "bi_real", True):
                assert not fault(call, "bi_real")
                continue
            wanted = models.ACTS[value] if option == "act" else value
            assert getattr(call(), option) == wanted
        for value in wrong_values(limit):
            call = lambda o={option: value}: models.create(name, outputs=1, **o)
            assert not fault(call, option), value


def slips(word, turn):
    """Misspellings of a key, other ones in each turn."""
    found = (word[1:] or "x", word + "s", word[0] + word, word.upper(), f"{word}_")
    return found[turn % 5], found[(turn + 2) % 5]


def test_unknown_keys_are_refused():
    sections = [x.rsplit(".", 1)[0] for x in LIMITS if "." in x]
    known = {*LIMITS, *sections, *(f"model.{x}" for x in models.OPTIONS)}
    faults = {}
    for turn, key in enumerate(sorted(known)):
        *path, last = key.split(".")
        for slip in slips(last, turn):
            new = ".".join([*path, slip])
            config = config_of({new: 1})
            if new not in known and (
                wrong := fault(lambda c=config: config_lib.check(c), new)
            ):
                faults[new] = wrong
    for section in sorted({*sections, *(f"quantizer.{x}" for x in quantizers.MEMBERS)}):
        new = f"{section}.eval_batch_size"  # of another place
        if wrong := fault(lambda n=new: config_lib.check(config_of({n: 1})), new):
            faults[new] = wrong
    assert not faults


def test_missing_keys_and_sections_for_values():
    optional = models.options_of("small")
    faults = {}
    for key in config_lib.base().to_dict() | dict.fromkeys(LIMITS):
        cases = {} if key.count(".") > 1 else {"missing": ({}, (key,))}
        if key.startswith("model.") and key.split(".")[1] in optional:
            cases = {}
        section = key not in LIMITS
        if section:
            cases["no section"] = ({key: 3}, ())
        elif not isinstance(LIMITS[key], Scheduled):
            cases["a section"] = ({key: {"a": 1}}, ())
        for name, case in cases.items():
            config = config_of(*case)
            if wrong := fault(lambda c=config: config_lib.check(c), key):
                faults[f"{key} {name}"] = wrong
    assert not faults


def test_schedules_with_one_thing_wrong():
    faults = {}
    for key, limit in LIMITS.items():
        if not isinstance(limit, Scheduled):
            continue
        low, high, plain = edges(limit)
        low = low or high / 10
        plain |= {"start": low, "end": high, "schedule": "exponential"}
        number = limit.number._replace(above=limit.number.low == 0)
        cases = {name: [None, "x", *wrong_values(number)[-6:]] for name in plain}
        cases["until"] = [0, -0.1, 1.01, "1", None]
        cases["schedule"] = ["cosine", 1, None, "Linear"]
        for name, values in cases.items():
            bad = [plain | {name: value} for value in values]
            bad.append({k: v for k, v in plain.items() if k != name})
            for spec in bad:
                config = config_of({key: spec})
                call = lambda c=config: config_lib.check(c)
                if wrong := fault(call, f"{key}.{name}"):
                    faults[f"{key}={spec}"] = wrong
        config = config_of({key: plain | {"begin": 1}})
        assert not fault(lambda c=config: config_lib.check(c), f"{key}.begin")
    assert not faults


def test_several_odd_values_at_once_are_one_line_or_fine():
    found = bad_configs.several(150, seed=0)
    assert not found["faults"]
    assert found["refused"] > 120
