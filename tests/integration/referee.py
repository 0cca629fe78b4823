"""Judges how a bad configuration is refused: before training, in one line, by name."""

import copy
import functools
import pathlib
import re
import traceback
import warnings

import jax
from ml_collections import ConfigDict

from quantnet_jax import config as config_lib
from quantnet_jax.common import command
from quantnet_jax.config import flags
from quantnet_jax.training import experiment

ROOT = pathlib.Path(__file__).parents[2]
EXPECTED = (ValueError, FileNotFoundError, ImportError)
"""What `train.py` reports in one line."""
LONGEST = 600
"""Characters of a message; some list paths of parameters."""


@functools.cache
def start():
    """A tiny experiment that is fine: 100 images of 8 pixels, for 4 devices."""
    c = config_lib.base()
    c.data.name = "synthetic"
    c.data.train_size, c.data.test_size, c.data.pad = 100, 50, 1
    c.model.name = "small"
    c.batch_size, c.eval_batch_size = 16, 12
    c.epochs, c.eval_every = 0.96, 0.32
    c.tensorboard = c.export = False
    return c.to_dict()


def config_of(changes, removed=()):
    """`start()` with other values at dotted keys, and without some."""
    config = copy.deepcopy(start())

    def place(key):
        *sections, last = key.split(".")
        at = config
        for section in sections:
            if not isinstance(at.get(section), dict):
                at[section] = {}
            at = at[section]
        return at, last

    for key, value in changes.items():
        at, last = place(key)
        at[last] = value
    for key in removed:
        at, last = place(key)
        del at[last]
    return ConfigDict(config)


def build(config):
    """All that happens before training."""
    config_lib.check(config)
    experiment.build(config, jax.devices()[:4])


def parse(words):
    """The configuration that `train.py` would make of its command line."""
    overrides, others = command.overrides(words)
    names = [x.removeprefix("--config=") for x in others if x.startswith("--config=")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of ml_collections
        return flags.read("".join(names), overrides)


def fault(call, keys):
    """What is wrong with how a call refuses: '' if it names a key, in one line."""
    try:
        call()
    except SystemExit as e:
        message = str(e.code)
        if not message.startswith("error: "):
            return f"the end without an error: {message}"
    except EXPECTED as e:
        message = str(e)
        (*_, frame) = traceback.extract_tb(e.__traceback__)
        if not frame.filename.startswith(str(ROOT)):
            return f"{type(e).__name__} of {frame.filename}: {message}"
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    else:
        return "accepted"
    if len(message.splitlines()) != 1 or len(message) > LONGEST:
        return f"not one short line: {message}"
    named = r"(?<![\w.])(config\.|-config\.)?{}(?!\w)"
    if not any(re.search(named.format(re.escape(k)), message) for k in keys.split()):
        return f"does not name {keys}: {message}"
    return ""
