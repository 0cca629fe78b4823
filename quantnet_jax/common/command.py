"""What all commands share: arguments, exit codes, errors in one line, signs of life."""

import argparse
import contextlib
import os
import pathlib
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from quantnet_jax.common.names import did_you_mean

OK, ERROR, USAGE = 0, 1, 2
"""Exit codes, with 75 for a run that is to be resumed."""
MENDABLE = (ValueError, OSError, ImportError, ArithmeticError)
"""Errors of what a person can mend: a program reports them in one line."""

EXTRA_OF = {
    **dict.fromkeys(("optax", "orbax", "ml_collections", "absl"), "train"),
    **dict.fromkeys(("tensorboardX", "tqdm", "flatbuffers"), "train"),
    **dict.fromkeys(("tensorflow_datasets", "grain", "importlib_resources"), "data"),
    **dict.fromkeys(("PIL", "cykooz_resizer", "turbojpeg"), "jpeg"),
    **dict.fromkeys(("onnx", "onnxruntime"), "onnx"),
    **dict.fromkeys(("gcsfs", "etils"), "gcs"),
}
"""Module of another package -> the extra of this one that installs it."""
OVERRIDE = re.compile(r"--?(?:no)?config[.]([^=]*)(=?)")
"""A word that changes an option of the configuration."""


class Parser(argparse.ArgumentParser):
    """The arguments of one command, for `python -m quantnet_jax.NAME`.

    --help shows the defaults; what is wrong is one line and exit code 2.

    Args:
      name: of the command.
      doc: docstring of its module: the first line, then usage, then details.
    """

    def __init__(self, name: str, doc: str | None):
        self._subjects: list[tuple[str, str]] = []
        program = pathlib.Path(sys.argv[0]).name  # a console script, or a Python file
        if not program.startswith("quantnet-"):
            program = f"python -m quantnet_jax.{name}"
        first, *rest = str(doc).strip().split("\n\n")
        details = [part for part in rest if not part.startswith("    ")]
        super().__init__(
            prog=program,
            description="\n\n".join([first, *details]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--debug", action="store_true", help="print the traceback of an error"
        )

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As that of argparse, with the default in the help."""
        default = options.get("default")
        if default not in (None, False, argparse.SUPPRESS):
            shown = f"{options.get('help', '')} (default: %(default)s)"
            options["help"] = shown.strip()
        return super().add_argument(*names, **options)

    def add_subject(self, name: str, metavar: str, help: str, nargs: str = "?") -> None:
        """What the command works on: by position or by flag, `DIR` or `--workdir DIR`.

        Args:
          name: of the flag, and of the attribute.
          metavar: how the help names a value.
          help: of it.
          nargs: '?' for one, '*' for one or several.
        """
        self._subjects.append((name, metavar))
        several = "+" if nargs == "*" else None
        self.add_argument(
            name, nargs=nargs, metavar=metavar, default=argparse.SUPPRESS,
            action=_Once, help=help,
        )  # fmt: skip
        self.add_argument(
            f"--{name}", nargs=several, metavar=metavar, action=_Once,
            help="the same, as a flag",
        )  # fmt: skip

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        """As that of argparse; a subject must be there."""
        parsed, others = self.parse_known_args(args, namespace)
        if others:
            flags = [x for action in self._actions for x in action.option_strings]
            near = did_you_mean(others[0].partition("=")[0], flags)
            self.error(f"unknown argument {others[0]!r}{near}")
        for name, metavar in self._subjects:
            if not getattr(parsed, name):
                self.error(f"expected {metavar}, or --{name}={metavar}")
        return parsed

    def error(self, message: str):
        """Ends the program: one line, exit code 2."""
        self.exit(USAGE, f"error: {message}; see --help\n")


class _Once(argparse.Action):
    """Stores a value that can be given in two ways, and refuses a second one."""

    def __call__(self, parser, namespace, values, option_string=None):
        if getattr(namespace, self.dest, None):
            parser.error(f"{self.dest} is given twice")
        setattr(namespace, self.dest, values)


def folder(word: str) -> str:
    """The type of --workdir and --out: not empty."""
    if not word.strip():
        raise argparse.ArgumentTypeError(f"{word!r}, expected a folder")
    return word


def overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(words of `--config.KEY=VALUE` or `--config.KEY VALUE`, all the others)."""
    found, others, value_follows = [], [], False
    for word in words:
        match = OVERRIDE.match(word)
        ours = bool(match) or (value_follows and not word.startswith("--"))
        (found if ours else others).append(word)
        value_follows = match is not None and not match[2]
    return found, others


def step(word: str) -> str | int:
    """The type of --step: 'latest', 'best' or a number of steps."""
    if word in ("latest", "best"):
        return word
    if word.isascii() and word.isdigit():
        return int(word)
    raise argparse.ArgumentTypeError(
        f"{word!r} is neither 'latest', 'best' nor a number of steps"
    )


def run(
    parser: Parser,
    work: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parses the arguments and calls `work(arguments)`; returns the exit code.

    An error of `MENDABLE` becomes one line on standard error, and 1.
    """
    args = parser.parse_args(argv)
    try:
        return work(args) or OK
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return ERROR
    except MENDABLE as e:
        if args.debug:
            traceback.print_exc()
        print(f"error: {describe(e)}", file=sys.stderr)
        return ERROR


def describe(error: BaseException) -> str:
    """An error in one line; for a package that is missing, how to install it."""
    if isinstance(error, ModuleNotFoundError):
        module = str(error.name).partition(".")[0]
        if extra := EXTRA_OF.get(module):
            return (
                f"{module} is not installed; it comes with the extra {extra!r}: "
                f"pip install 'quantnet_jax[{extra}]'"
            )
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    return " ".join(text.split()) or type(error).__name__


@contextlib.contextmanager
def phase(text: str, after: float = 5.0) -> Iterator[None]:
    """Prints 'text ...' on standard error where the block takes longer than `after`.

    Args:
      text: what is being done.
      after: seconds.
    """
    line = {"file": sys.stderr, "flush": True}
    timer = threading.Timer(after, print, [f"{text} ..."], line)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
