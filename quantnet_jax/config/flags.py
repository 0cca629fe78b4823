"""The command line of the training program: errors in one line that names the key."""

import difflib
import pathlib
import re
import sys

import jax
from absl import flags

from quantnet_jax import config as config_lib


def parse(
    argv: list[str],
    values: flags.FlagValues,
    holder: flags.FlagHolder,
    default: str | pathlib.Path,
) -> list[str]:
    """Parses the flags; what is wrong with them is told in one line.

    Args:
      argv: the program's name and its arguments.
      values: where the flags are defined.
      holder: of the flag `config`, defined without a default of its own.
      default: file of the configuration where `argv` names none.

    Returns:
      The arguments that are no flags, the program's name first.

    Raises:
      SystemExit: with that line.
    """
    if not any(re.match("--?config(=|$)", word) for word in argv):
        argv = [argv[0], f"--config={default}", *argv[1:]]
    try:
        rest = values(argv)
        holder.value.lock()  # fails if the file could not be read
        return rest
    except (KeyError, AttributeError) as e:  # of an override
        reason = e.args[0]
        while isinstance(reason, Exception):
            reason = reason.args[0]
        key, *hint = str(reason).strip().splitlines()
        if not re.fullmatch("'[^']*'", key):
            sys.exit(f"error: {key}")
        hint, key = (hint or [nearest_key(key)])[-1], dotted(key.strip("'"), argv)
        sys.exit(f"error: unknown config key {key!r}; {hint}")
    except (flags.Error, OSError, TypeError, ValueError, SyntaxError, ImportError) as e:
        sys.exit(f"error: {str(e).strip().splitlines()[-1].strip()}")


def dotted(key: str, argv: list[str]) -> str:
    """The override of `argv` that `key`, one of its names, is from."""
    for word in argv:
        names = re.match("--?config[.]([^=]*)", word)
        if names and key in names[1].split("."):
            return names[1]
    return key


def nearest_key(word: str) -> str:
    """Where ml_collections has no near name on that level: the nearest on any."""
    leaves = jax.tree.leaves_with_path(
        config_lib.base().to_dict(), is_leaf=lambda x: isinstance(x, tuple)
    )
    paths = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in leaves]
    names = {path.rsplit(".", 1)[-1]: path for path in paths}
    (near,) = difflib.get_close_matches(word, list(names), n=1, cutoff=0.0)
    return f"the nearest known one is {names[near]!r}"
