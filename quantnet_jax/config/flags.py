"""The configuration of a command line: a file, a shipped name, overrides."""

import pathlib
import re
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import config_dict, config_flags

from quantnet_jax import models
from quantnet_jax.common.command import OVERRIDE
from quantnet_jax.common.names import ALIASES, nearest
from quantnet_jax.config.keys import Config, base

UNSET = re.compile(r"--?config[.]model[.](\w+)=None$")
"""A word that gives an option of the network its own default."""
MOST = 4
"""Keys of other sections that a message names."""
PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def shipped_configs() -> dict[str, pathlib.Path]:
    """{name: file} of the configurations that ship.

    In a checkout they stand in configs/, in an installed package inside of it.
    """
    inside = PACKAGE / "configs"
    folder = inside if inside.is_dir() else PACKAGE.parent / "configs"
    return {p.stem: p for p in sorted(folder.glob("[!_]*.py"))}


def find(name: str) -> str:
    """The file of `--config`, with its variant: 'FILE.py:VARIANT'.

    Args:
      name: 'FILE.py' or the name of a shipped one, perhaps with ':VARIANT'; '' for
        'default'.

    Raises:
      FileNotFoundError: there is no such file, and no such name.
    """
    path, colon, variant = (name or "default").rpartition(":")
    if not colon or "/" in variant or "\\" in variant:  # of a path such as C:\x.py
        path, variant = (name or "default"), ""
    known = shipped_configs()
    if path in known:
        path = str(known[path])
    elif not pathlib.Path(path).is_file():
        stem = pathlib.Path(path).stem
        near = nearest(stem, known) if known else ""
        raise FileNotFoundError(
            f"--config={path}: no such file, nor one that ships{near}"
        )
    return f"{path}:{variant}" if variant else path


def read(name: str = "", overrides: Sequence[str] = ()) -> Config:
    """The configuration of a file, with values of a command line; not checked yet.

    Args:
      name: see `find`.
      overrides: words such as '--config.model.width=8'.

    Raises:
      ValueError, FileNotFoundError: one line that names what is wrong.
    """
    unset = [w for w in overrides if UNSET.match(w)]
    kept = [w for w in overrides if w not in unset]
    words = ["", f"--config={find(name)}", *kept]
    values = flags.FlagValues()
    # Without a default of its own: ml_collections would read it, with the overrides,
    # here and now.
    holder = config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, sys_argv=words
    )
    try:
        rest = values(words)
        holder.value.lock()  # fails if the file could not be read
    except (KeyError, AttributeError) as e:  # of an override
        reason = e.args[0]
        while isinstance(reason, Exception):
            reason = reason.args[0]
        text = unknown_key(overrides) or str(reason).strip().splitlines()[0]
        raise ValueError(text) from e
    except IndexError as e:
        word = next((w for w in overrides if "[" in w.partition("=")[0]), name)
        raise ValueError(
            f"{word}: one item of a sequence cannot be set; give the whole sequence"
        ) from e
    except config_dict.RequiredValueError as e:
        raise ValueError(
            f"--config={name}: a required value is missing; set it in the file"
        ) from e
    except (flags.Error, OSError, TypeError, ValueError, SyntaxError, ImportError) as e:
        text = _section(overrides) or str(e).strip().splitlines()[-1].strip()
        if text.startswith(raised := "ValueError: "):  # of the file
            text = f"--config={name}: {text.removeprefix(raised)}"
        raise ValueError(text) from e
    if rest[1:]:
        raise ValueError(f"unexpected argument {rest[1]!r}")
    _fit_network(holder.value, overrides)
    return holder.value


def _fit_network(config: Config, overrides: Sequence[str]) -> None:
    """Unsets options of `config.model`: by '=None', and those of the file's network
    that another one, which the command line names, does not have."""
    given = {m[1] for w in overrides if (m := OVERRIDE.match(w))}
    dropped = {m[1] for w in overrides if (m := UNSET.match(w))}
    if unknown := sorted(dropped - set(config.model)):
        raise ValueError(unknown_key([f"--config.model.{unknown[0]}=None"]))
    if "model.name" in given and config.model.name in models.names():
        has = models.options_of(config.model.name)
        others = {k for k in config.model if k not in has and k != "name"}
        dropped |= {k for k in others if f"model.{k}" not in given}
    for key in dropped:
        config.model[key] = None


def _section(overrides: Sequence[str]) -> str:
    """The message for the first override that gives a section a value, or ''."""
    for key, equals, value in (word.partition("=") for word in overrides):
        place, key = base().to_dict(), key.lstrip("-").removeprefix("config.")
        for name in key.split("."):
            place = place.get(name) if isinstance(place, dict) else None
        if equals and isinstance(place, dict) and not value.startswith("{"):
            near = f"; did you mean {key}.name={value}?" if "name" in place else ""
            return f"config key {key}={value} is a section{near}"
    return ""


def unknown_key(overrides: Sequence[str]) -> str:
    """The message for the first override of a key that no configuration has, or ''."""
    for word in overrides:
        if not (found := OVERRIDE.match(word)):
            continue
        place = base().to_dict()
        for name in found[1].split("."):
            if not isinstance(place, dict):
                return f"unknown config key {found[1]!r}: it is below a value"
            if name not in place:
                return f"unknown config key {found[1]!r}{_near(name, place)}"
            place = place[name]
    return ""


def _near(name: str, place: dict) -> str:
    """What an unknown name may have meant: of its section, else of another one."""
    text = nearest(name, sorted(place))
    if "did you mean" in text:
        return text
    wanted = ALIASES.get(name, name)
    elsewhere = [x for x in _dotted(base().to_dict()) if x.split(".")[-1] == wanted]
    least = min((x.count(".") for x in elsewhere), default=0)
    near = [repr(x) for x in elsewhere if x.count(".") == least]
    shown = " or ".join(near[:MOST])
    return f"; did you mean {shown}?" if shown else text


def _dotted(place: dict, prefix: str = "") -> Iterator[str]:
    for name, value in place.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
