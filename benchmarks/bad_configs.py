"""Feeds bad configurations to all that happens before training, and reads the errors.

    python benchmarks/bad_configs.py    # writes results/bad_configs.json

Each has to be refused, by `command_line.parse`, `config.check` or `experiment.build`,
in one line that names the key as its author would type it, raised on purpose: by our
own code, as an error of the kinds that `train.py` tells in one line. Nothing may be
written. A number says all of a configuration, see `benchmarks/bad_config_cases.py`.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import re
import shlex
import sys
import tempfile
import time
import traceback
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/bad_configs.py` finds only itself

import jax  # noqa: E402
from absl import flags  # noqa: E402
from ml_collections import ConfigDict, config_flags  # noqa: E402

import train  # noqa: E402
from benchmarks.bad_config_cases import CATEGORIES, case  # noqa: E402
from benchmarks.bad_config_together import DEVICES, TEST, TRAIN, Case  # noqa: E402
from quantnet_jax import config as config_lib  # noqa: E402
from quantnet_jax.config import flags as command_line  # noqa: E402
from quantnet_jax.training import experiment  # noqa: E402

TOLD = (ValueError, FileNotFoundError, ImportError)
"""What `train.py` tells in one line."""
LONGEST = 600
"""Characters of a message; some list paths of parameters."""
NAMED = r"(config\.|-config\.)?"
"""May stand before a key on the command line."""


def start() -> dict:
    """A tiny experiment that is fine, as nested dictionaries."""
    c = config_lib.base()
    c.data.name = "synthetic"
    c.data.train_size, c.data.test_size, c.data.pad = TRAIN, TEST, 1
    c.model.name = "small"
    c.batch_size, c.eval_batch_size = 16, 12
    c.epochs, c.eval_every = 0.96, 0.32
    c.tensorboard = c.export = False
    return c.to_dict()


def config_of(bad: Case) -> ConfigDict:
    """The configuration of a case."""
    config = start()

    def place(key):
        *sections, last = key.split(".")
        at = config
        for section in sections:
            if not isinstance(at.get(section), dict):
                at[section] = {}
            at = at[section]
        return at, last

    for key, value in bad.changes:
        at, last = place(key)
        at[last] = value
    for key in bad.removed:
        at, last = place(key)
        del at[last]
    return ConfigDict(config)


def parse(words: tuple[str, ...]) -> ConfigDict:
    """The configuration that `train.py` would make of its command line.

    Raises:
      SystemExit: with the line that it ends with.
    """
    values, argv = flags.FlagValues(), ["train.py", *words]
    holder = config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of ml_collections
        command_line.parse(argv, values, holder, train.DEFAULT_CONFIG)
    return holder.value


def refuse(bad: Case, devices: list) -> tuple[str, str, str]:
    """(stage, what is wrong with the refusal or '', message)."""
    stage, message = "check", ""
    try:
        if bad.words:
            stage = "command line"
            config = parse(bad.words)
            stage = "check"
        else:
            config = config_of(bad)
        config_lib.check(config)
        stage = "build"
        experiment.build(config, devices)
    except SystemExit as e:
        message = str(e.code)
        if not message.startswith("error: "):
            return stage, "the end without an error", message
    except TOLD as e:
        message = str(e)
        frames = traceback.extract_tb(e.__traceback__)
        if not frames[-1].filename.startswith(str(ROOT)):
            return stage, f"{type(e).__name__} of {frames[-1].filename}", message
    except Exception as e:
        return stage, type(e).__name__, str(e)
    else:
        return "none", "accepted", ""
    if len(message.splitlines()) != 1:
        return stage, "not one line", message
    if not any(
        re.search(rf"(?<![\w.]){NAMED}{re.escape(k)}(?!\w)", message) for k in bad.keys
    ):
        return stage, f"does not name {' or '.join(bad.keys)}", message
    if len(message) > LONGEST:
        return stage, "too long", message
    return stage, "", message


def run(numbers, devices: list) -> dict:
    """Counts by category and stage, failures, and the slowest of the refusals."""
    counts = {name: collections.Counter() for name in CATEGORIES}
    failures, distinct, slowest = [], set(), (0.0, None)
    for number in numbers:
        bad = case(number)
        distinct.add(repr(bad[:5]))
        begun = time.monotonic()
        stage, wrong, message = refuse(bad, devices)
        slowest = max(slowest, (time.monotonic() - begun, number))
        counts[bad.category][stage] += 1
        if wrong:
            failures.append(
                {
                    "number": number,
                    "category": bad.category,
                    "description": bad.description,
                    "changes": repr(bad.changes or bad.removed or bad.words)[:300],
                    "keys": bad.keys,
                    "wrong": wrong,
                    "message": message[:500],
                }
            )
    total = sum(counts.values(), collections.Counter())
    return {
        "configurations": total.total(),
        "distinct": len(distinct),
        "refused": total.total() - len(failures),
        "stages": dict(total),
        "categories": {name: dict(count) for name, count in counts.items()},
        "slowest": {"seconds": round(slowest[0], 3), "number": slowest[1]},
        "failures": failures,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/bad_configs.py",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument("--count", type=int, default=5000, help="how many; default all")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--out", default=str(ROOT / "results" / "bad_configs.json"))
    args = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    if args.count < 1 or args.first < 0:
        print(f"error: --count={args.count} --first={args.first}", file=sys.stderr)
        return 2
    from quantnet_jax.logging import records
    from quantnet_jax.logging.provenance import provenance

    devices = jax.devices()[:DEVICES]
    if len(devices) < DEVICES:
        print(f"error: {len(devices)} devices, expected {DEVICES}", file=sys.stderr)
        return 2
    warnings.simplefilter("error")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        experiment.build(ConfigDict(start()), devices)  # which is fine
        result = run(range(args.first, args.first + args.count), devices)
        written = sorted(os.listdir(folder))
    result |= {"written": written, "seconds": round(time.monotonic() - begun, 1)}
    result |= provenance()
    result["command"] = shlex.join(["python", "benchmarks/bad_configs.py", *words])
    out = pathlib.Path(args.out).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    records.write_json(out, result)
    good = not result["failures"] and not written
    print(f"{result['refused']} of {result['configurations']} refused in one line each")
    for failure in result["failures"][:20]:
        print(f"  {failure}")
    print(f"wrote {out}")
    return 0 if good else 1


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    sys.exit(main())
