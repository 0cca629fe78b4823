"""Bad configurations, generated from the declared limits of every key and option.

    python -m tests.integration.bad_configs --count 5000    # to results/faults.jsonl

Half of them have one wrong value, whose key the refusal has to name; the others up to
three odd values, which may be fine. Whatever is refused is refused in one line.
"""

import argparse
import random
import shlex
import sys

from quantnet_jax import activations, models, quantizers, tasks
from quantnet_jax import config as config_lib
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
from quantnet_jax.experiments import results
from quantnet_jax.logging.provenance import provenance
from tests.integration.referee import LONGEST, ROOT, config_of, fault

INF = float("inf")
MEMBERS = {"quantizer": quantizers.MEMBERS, "activation": activations.MEMBERS}


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
    found |= {f"model.{k}": limit for k, limit in models.options_of("small").items()}
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


def several(count, seed):
    """{'refused', 'faults'} of configurations with up to three odd values."""
    draw, faults, refused = random.Random(seed), {}, 0
    for _ in range(count):
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
    return {"refused": refused, "faults": faults}


def single(count, seed):
    """{'refused', 'faults'} of configurations with one wrong value."""
    draw, faults = random.Random(seed), {}
    for turn in range(count):
        key = draw.choice(list(LIMITS))
        values = wrong_values(LIMITS[key], turn)
        if key.startswith("model.") and key != "model.name":  # None is the default
            values = [x for x in values if x is not None]
        value = draw.choice(values)
        config = config_of({key: value})
        if wrong := fault(lambda c=config: config_lib.check(c), key):
            faults[f"{key}={value!r:.60}"] = wrong
    return {"refused": count - len(faults), "faults": faults}


def main():
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    half = args.count // 2
    found = {
        "one wrong value": single(args.count - half, args.seed),
        "up to three odd values": several(half, args.seed),
    }
    words = ["python", "-m", "tests.integration.bad_configs", *sys.argv[1:]]
    record = {"benchmark": "bad configurations", "count": args.count, **found}
    record |= {"seed": args.seed, "command": shlex.join(words), **provenance()}
    results.append("faults", record, ROOT / results.FOLDER)
    for kind, result in found.items():
        print(f"{kind}: {result['refused']} refused, faults: {result['faults']}")
    return int(any(x["faults"] for x in found.values()))


if __name__ == "__main__":
    sys.exit(main())
