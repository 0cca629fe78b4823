"""The command line of the training program: errors in one line that names the key."""

import pathlib
import re
import sys

from absl import flags

from quantnet_jax.config.keys import base
from quantnet_jax.core.names import nearest


def parse(
    argv: list[str],
    values: flags.FlagValues,
    holder: flags.FlagHolder,
    default: str | pathlib.Path,
) -> list[str]:
    """Parses the flags; reports what is wrong with them in one line.

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
        sys.exit(f"error: {unknown_key(argv) or str(reason).strip().splitlines()[0]}")
    except (flags.Error, OSError, TypeError, ValueError, SyntaxError, ImportError) as e:
        sys.exit(f"error: {str(e).strip().splitlines()[-1].strip()}")


def unknown_key(argv: list[str]) -> str:
    """The message for the first override of a key that no configuration has, or ''."""
    for word in argv:
        if not (found := re.match(r"--?(?:no)?config[.]([^=]*)", word)):
            continue
        place = base().to_dict()
        for name in found[1].split("."):
            if not isinstance(place, dict):
                return f"unknown config key {found[1]!r}: it is below a value"
            if name not in place:
                return f"unknown config key {found[1]!r}{nearest(name, sorted(place))}"
            place = place[name]
    return ""
