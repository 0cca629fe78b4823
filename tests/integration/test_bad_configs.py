"""What is bad is refused before training, in one line that names the key.

Wrong values are generated from the declared limits of every key and option; what does
not go together, or not with the data, the devices or the network, is a list of cases in
`test_bad_combinations.py`.
"""

import json
import os
import random

import pytest
from ml_collections import ConfigDict

from quantnet_jax import activations, models, quantizers, tasks
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
from quantnet_jax.config import checks, ranges
from tests.integration.referee import LONGEST, build, config_of, fault, start

INF = float("inf")
MEMBERS = {"quantizer": quantizers.MEMBERS, "activation": activations.MEMBERS}
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
def declared():
    """{key: limit} of every key and option that a configuration may have."""
    found = {}

    def visit(node, prefix):
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and name not in ranges.OPEN:
                visit(value, f"{name}.")
            elif not isinstance(value, dict):
                found[name] = ranges.LIMITS.get(name) or checks._like(value)

    visit(config_lib.base().to_dict(), "")
    found |= {f"{section}.name": ranges.LIMITS[f"{section}.name"]
              for section in ranges.OPEN}  # fmt: skip
    small = ("width", "act", "stem_strides", "momentum")
    found |= {f"model.{option}": models.OPTIONS[option] for option in small}
    for section, members in MEMBERS.items():
        for name, member in members.items():
            for option, limit in limits_of(member.factory).items():
                found[f"{section}.{name}.{option}"] = limit
    for name, factory in tasks.TASKS.items():
        for option, limit in limits_of(factory).items():
            found[f"task.{name}.{option}"] = limit
    return found


LIMITS = declared()
OTHERS = (None, [], {}, "", "3", "nan", 1j, b"x", len, {1, 2}, [1, "a"], 10**400)
"""Values of types that a key may not have; a kind keeps those that it may have."""


def wrong_values(limit, turn=0):
    """Values that a limit has to refuse; each turn has others of the wrong types."""
    others = OTHERS[turn % 4 :: 4]
    if isinstance(limit, Choice):
        word = next(filter(None, limit.words))
        return [None, 3, f"{word}x", f" {word}", word * 2, f"{word}\n"]
    if isinstance(limit, Flag):
        return [*others, 0, 1, "True"]
    if isinstance(limit, Text):
        return [x for x in OTHERS if not isinstance(x, str)] + [3, True]
    if isinstance(limit, Sequence):
        return [x for x in OTHERS if not isinstance(x, list)] + [3, True, "abc"]
    if isinstance(limit, Scheduled):
        return [x for x in wrong_values(limit.number, turn) if x != {}]
    assert isinstance(limit, Number), limit
    step = 1 if limit.whole else 0.01
    beyond = [limit.low - step, limit.high * 1.01 + 1, -INF, INF, float("nan")]
    beyond += [limit.low] * limit.above + [limit.high] * limit.below
    beyond += [limit.low + 0.5, 3.0] if limit.whole else [1e300]
    beyond += [10**400 + 1, True]
    return [*others, *(x for x in beyond if not (limit.zero and x == 0))]


def edges(limit):
    """Values that are just fine."""
    if isinstance(limit, Choice):
        return limit.words
    if isinstance(limit, Flag):
        return (True, False)
    if isinstance(limit, Scheduled):
        low, high = edges(limit.number)
        plain = {"schedule": "linear", "start": low, "end": high, "until": 1}
        return low, high, plain
    if not isinstance(limit, Number):
        return ()
    low = limit.low + limit.above * (1 if limit.whole else 1e-6)
    high = limit.high - limit.below * (1 if limit.whole else 1e-3 * limit.high)
    return low, high


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
    optional = ("width", "act", "stem_strides", "momentum")
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


ODD = (
    *(None, [], {}, "", "nan", 1j, len, {1, 2}, 10**400, -1, 2**40, 1e300, INF, ((),)),
    *([[]], [{}], ({"pattern": 1},), ({"name": "kurtosis", "weight": "x"},), "(", "\0"),
    *(
        "x" * 300,
        "\ud800",
        {"schedule": "optax:x"},
        {"name": {}},
        {"schedule": "linear"},
    ),
)


def test_several_odd_values_at_once_are_one_line_or_fine():
    draw, faults, refused = random.Random(0), {}, 0
    for _ in range(150):
        keys = [draw.choice(list(LIMITS)) for _ in range(draw.randint(1, 3))]
        changes = {key: draw.choice(ODD) for key in keys}
        config = config_of(changes)
        try:
            config_lib.check(config)
        except (ValueError, FileNotFoundError) as e:
            refused += 1
            if len(str(e).splitlines()) != 1 or len(str(e)) > LONGEST:
                faults[str(changes)] = str(e)
        except Exception as e:
            faults[str(changes)] = repr(e)
    assert not faults
    assert refused > 120
