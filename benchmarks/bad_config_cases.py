"""Bad configurations without end: number -> what is changed, and the key to be named.

What is generated is a change of `bad_configs.START`, a tiny experiment that is fine.
"""

import random
import string
from collections.abc import Callable
from typing import Any

from benchmarks import bad_config_together as together
from benchmarks.bad_config_keys import KEYS, OPTIONS, PLAIN, RESNET, SECTIONS, Range
from benchmarks.bad_config_together import Case, pick

SEED = 20260
INF = float("inf")


def case(number: int) -> Case:
    """The bad configuration of a number; the same on every machine."""
    rng = random.Random(f"{SEED} {number}")
    category = ORDER[number % len(ORDER)]
    return CATEGORIES[category][1](rng)._replace(category=category)


# Values -------------------------------------------------------------------------------
def word(rng) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))


def typo(rng, text: str, known=()) -> str:
    """`text` with a slip of the fingers that makes it none of `known`."""
    while True:
        i = rng.randrange(len(text))
        slip = rng.choice(string.ascii_lowercase)
        new = pick(
            rng,
            text[:i] + text[i + 1 :],
            text[:i] + text[i] + text[i:],
            text[:i] + slip + text[i + 1 :],
            text[:i] + slip + text[i:],
            text[:i] + text[i:].upper(),
            f"{text}_",
            f"{text}s",
            text.replace("_", "") or "x",
        )
        if new and new != text and new not in known and new.isidentifier():
            return new


def alien(rng, *but: type) -> Any:
    """A value of a type that is none of `but`."""
    values: list[Any] = [
        *(None, [], [1, 2], (), ("a",), {}, {"a": 1}, {1: 2}, True, False),
        *(1j, b"bytes", frozenset({1}), range(3), object, len, Ellipsis),
        *("", word(rng), "3", "0.5", "True", "None", "nan", "[1]", "a\nb"),
        *(rng.randint(0, 100), rng.random(), INF, float("nan"), 10**400, {1, 2}),
        rng.choices("abc", k=rng.randint(0, 4)),
    ]
    fits = lambda v: isinstance(v, but) and (bool in but or not isinstance(v, bool))
    return rng.choice([v for v in values if not fits(v)])


def outside(rng, limit: Range) -> Any:
    """A number that is not in a range."""
    if limit.also and rng.random() < 0.2:
        return rng.choice(limit.also)
    step = rng.choice((1, 2, 10, 1e3, 1e9, 1e25)) * rng.uniform(0.5, 1)
    step = max(1, int(step)) if limit.whole else step
    edges = [limit.low] * ("low" in limit.open) + [limit.high] * ("high" in limit.open)
    far = [10**400, -(10**400)] if limit.whole else [INF, -INF, float("nan"), 1e300]
    beyond = limit.high + (step if limit.whole else max(step, limit.high * 1e-3))
    values = [limit.low - step, beyond, *edges, rng.choice(far)]
    if limit.whole:
        values.append(rng.uniform(limit.low + 0.1, min(limit.high, 99) - 0.1))
    return rng.choice(values)


def wrong_type(rng, kind: Any) -> Any:
    if isinstance(kind, Range):
        return alien(rng, int) if kind.whole else alien(rng, int, float)
    if kind == "flag":
        return pick(rng, 0, 1, alien(rng, bool))
    if kind in ("fractions", "rules"):
        return alien(rng, tuple, list)
    if isinstance(kind, tuple) and kind[0] == "schedule":
        return alien(rng, int, float, dict)
    return alien(rng, str)


def wrong_value(rng, kind: Any) -> Any:
    """A value of the right type that is bad, or where all are fine a wrong type."""
    if isinstance(kind, Range):
        return outside(rng, kind)
    if isinstance(kind, tuple) and kind[0] == "schedule":
        return outside(rng, kind[1])
    if isinstance(kind, tuple):
        return pick(rng, typo(rng, rng.choice(kind), kind), f" {kind[0]}", kind[0] * 2)
    if kind == "name":
        return word(rng) + "_0"
    if kind == "fractions":
        middle = rng.uniform(0.1, 0.9)
        return pick(
            rng, (middle, middle / 2), (middle, middle), (0.0, middle), (middle, 1.0),
            (-middle,), (1 + middle,), (middle, str(middle)), (None,), ((middle,),),
            (middle, float("nan")), (True,), [INF], ("a", "b"), ({},), (1e300,),
        )  # fmt: skip
    if kind == "rules":
        return together.rules(rng)
    return wrong_type(rng, kind)


# Categories ---------------------------------------------------------------------------
def unknown_key(rng) -> Case:
    key = rng.choice([*KEYS, *SECTIONS, *OPTIONS])
    *path, last = key.split(".")
    prefix = ".".join([*path, ""])
    siblings = {k.removeprefix(prefix).split(".")[0] for k in (*KEYS, *OPTIONS, *PLAIN)}
    siblings |= set(RESNET)
    new = prefix + typo(rng, last, siblings)
    value = pick(rng, 0, 1.5, "x", True, {}, None, {"a": {"b": 1}})
    return Case(f"{new} for {key}", (new,), ((new, value),))


def wrong_nesting(rng) -> Case:
    source, target = rng.choice([*KEYS]), rng.choice(["", *SECTIONS, *OPTIONS, *PLAIN])
    last = pick(rng, source.rsplit(".", 1)[-1], *SECTIONS)
    new = f"{target}.{last}" if target else last
    known = new in {*KEYS, *SECTIONS, *OPTIONS, *PLAIN} or last in OPTIONS.get(
        target, {}
    )
    if known or (target == "model" and last in RESNET):
        return wrong_nesting(rng)
    return Case(f"{last} in {target or 'the root'}", (new,), ((new, rng.random()),))


def type_of_key(rng) -> Case:
    key = rng.choice([*KEYS])
    value = wrong_type(rng, KEYS[key])
    return Case(f"type of {key}", (key,), ((key, value),))


def range_of_key(rng) -> Case:
    key = rng.choice([k for k, v in KEYS.items() if v not in ("text", "flag")])
    value = wrong_value(rng, KEYS[key])
    return Case(f"value of {key}", (key,), ((key, value),))


def option(rng, sections: tuple[str, ...]) -> Case:
    section = rng.choice([s for s in OPTIONS if s.startswith(sections)])
    name, kind = rng.choice([*OPTIONS[section].items()])
    key, how = f"{section}.{name}", rng.randrange(5)
    if how == 0:
        key = f"{section}.{typo(rng, name, OPTIONS[section])}"
        return Case(f"{key} for {name}", (key,), ((key, rng.randint(1, 9)),))
    value = wrong_type(rng, kind) if how == 1 else wrong_value(rng, kind)
    used = (("quantizer.name", section.split(".")[1]),) if rng.random() < 0.5 else ()
    used = () if section.startswith("activation") else used
    return Case(f"option {key}", (key,), (*used, (key, value)))


def model_option(rng) -> Case:
    model = pick(
        rng, "small", "resnet8", "resnet20", "resnet56", "resnet18", "resnet50"
    )
    kinds = {k[6:]: v for k, v in KEYS.items() if k.startswith("model.") if v != "name"}
    if model != "small":
        kinds = kinds | RESNET
    name, kind = rng.choice([*kinds.items()])
    key, value = f"model.{name}", wrong_value(rng, kind)
    how = rng.randrange(5)
    if how == 0:
        value = wrong_type(rng, kind)
    elif how == 1:
        key, value = f"model.{typo(rng, name, [*kinds, *RESNET])}", rng.randint(1, 9)
    elif how == 2:
        fixed = ("classes", "blocks", "block", "parent", "axis_name", "dtype")
        key = f"model.{pick(rng, *fixed, 'folded', 'act_quant', 'depth', 'bits')}"
        value = pick(rng, 3, True, None, "x", (1, 2))
    return Case(f"{key} of {model}", (key,), (("model.name", model), (key, value)))


def schedule(rng) -> Case:
    """A schedule as plain data, with one thing wrong."""
    places = [
        (f"{section}.{name}", kind[1])
        for section, options in OPTIONS.items()
        for name, kind in options.items()
        if isinstance(kind, tuple) and kind[0] == "schedule"
    ]
    key, limit = rng.choice(places)
    top = min(limit.high, 10)
    plain: dict[str, Any] = {"schedule": pick(rng, "linear", "exponential")}
    plain |= {"start": top * rng.uniform(0.1, 0.4), "end": top * rng.uniform(0.5, 0.9)}
    plain["until"] = rng.uniform(0.1, 1)
    name = rng.choice([*plain])
    how, named = rng.randrange(4), f"{key}.{name}"
    if how == 0:
        del plain[name]
    elif how == 1:
        named = f"{key}.{typo(rng, name, plain)}"
        plain[named.rsplit(".", 1)[-1]] = 1
    elif name == "schedule":
        plain[name] = pick(rng, typo(rng, plain[name]), "cosine", "constant", 1, None)
    elif how == 2:
        plain[name] = alien(rng, int, float)
    elif name == "until":
        plain[name] = outside(rng, Range(0, 1, open="low"))
    else:
        zero = plain["schedule"] == "exponential" and not limit.low
        plain[name] = outside(rng, limit._replace(open="low" if zero else ""))
    return Case(f"schedule {key}: {name}", (named,), ((key, plain),))


def missing_key(rng) -> Case:
    optional = ("model.width", "model.act", "model.stem_strides", "model.momentum")
    needed = [k for k in (*KEYS, *SECTIONS) if k not in optional]
    keys = rng.sample(needed, rng.randint(1, 3))
    outer = tuple(k for k in keys if k.split(".")[0] not in keys or "." not in k)
    return Case(f"without {', '.join(outer)}", outer, removed=outer)


def wrong_kind(rng) -> Case:
    """A value where a section belongs, or the other way round."""
    if rng.random() < 0.5:
        key = rng.choice([*SECTIONS, *OPTIONS, *PLAIN])
        return Case(f"{key} no section", (key,), ((key, alien(rng, dict)),))
    key = rng.choice([*KEYS])
    value = pick(rng, {}, {word(rng): 1}, {"name": word(rng)}, {key[-1]: {}})
    return Case(f"{key} a section", (key,), ((key, value),))


def two_at_once(rng) -> Case:
    """Two bad things: one of them has to be named."""
    first, second = range_of_key(rng), type_of_key(rng)
    return Case(
        f"{first.description}, {second.description}",
        first.keys + second.keys,
        first.changes + second.changes,
    )


def words(rng) -> Case:
    """On the command line, as text."""
    how = rng.randrange(7)
    numbers = [k for k, v in KEYS.items() if isinstance(v, Range) if k[:5] != "model"]
    if how == 0:
        key = unknown_key(rng).keys[0]
        return Case(f"--config.{key}", (key,), words=(f"--config.{key}=1",))
    if how == 1:
        key = rng.choice(numbers)
        text = pick(rng, word(rng), "1,2", "(1,)", "1e", "--", "0x", "one", "{}", "1 2")
        return Case(f"--config.{key}", (key,), words=(f"--config.{key}={text}",))
    if how == 2:
        flag = pick(rng, "workdirs", "confg", "config_file", word(rng) + "_x", "seed")
        return Case(f"--{flag}", (flag,), words=(f"--{flag}=1",))
    if how == 3:
        key = rng.choice([k for k, v in KEYS.items() if v == "flag"])
        text = pick(rng, word(rng), "2", "maybe", "1.5", "-1", "()")
        return Case(f"--config.{key}", (key,), words=(f"--config.{key}={text}",))
    if how == 4:
        key = rng.choice([*SECTIONS, *OPTIONS, *PLAIN])
        return Case(f"--config.{key}", (key,), words=(f"--config.{key}={word(rng)}",))
    if how == 5:
        key = pick(rng, "rules", "weights.milestones", "meta.milestones")
        text = pick(rng, "(0.5,", word(rng), "[", "((", "0.5,,1", "{", "(1,2", ")", "=")
        return Case(f"--config.{key}", (key,), words=(f"--config.{key}={text}",))
    key = rng.choice([k for k, v in KEYS.items() if type(v) is tuple])
    if key == "model.act":
        key = "runner"
    text = typo(rng, rng.choice(KEYS[key]), KEYS[key])
    return Case(f"--config.{key}", (key,), words=(f"--config.{key}={text}",))


CATEGORIES: dict[str, tuple[int, Callable[[random.Random], Case]]] = {
    "unknown key": (4, unknown_key),
    "wrong nesting": (3, wrong_nesting),
    "wrong type": (4, type_of_key),
    "out of range": (5, range_of_key),
    "option of a quantizer": (5, lambda rng: option(rng, ("quantizer",))),
    "option of an activation": (1, lambda rng: option(rng, ("activation",))),
    "option of a network": (3, model_option),
    "schedule": (4, schedule),
    "missing key": (2, missing_key),
    "section or value": (2, wrong_kind),
    "two at once": (2, two_at_once),
    "command line": (4, words),
    "rules and layers": (3, together.layers),
    "does not go together": (2, together.keys),
    "data": (3, together.data),
    "devices and steps": (2, together.run),
    "network and quantizer": (1, together.network),
}
"""Category -> how many of fifty, and `random numbers -> case`."""
ORDER = [
    name
    for turn in range(max(share for share, _ in CATEGORIES.values()))
    for name, (share, _) in CATEGORIES.items()
    if turn < share
]
