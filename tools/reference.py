"""Writes docs/reference.md, the API reference, from the docstrings of the package.

python -m tools.reference            # every public name of quantnet_jax
python -m tools.reference --check    # exit code 1 if the page is out of date
"""

import argparse
import inspect
import pathlib
import re
import sys
import types
import typing
from typing import Any

import quantnet_jax

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "reference.md"
HEAD = (
    "# API reference\n\nGenerated from the docstrings by `python -m tools.reference`."
)
FORMULAS = ("Forward", "Backward")
PARTS = ("Learned", "Penalty", "Reference", "Deviations")
LISTS = ("Args", "Attributes", "Raises")
LABEL = re.compile(rf"(?:{'|'.join(FORMULAS + PARTS)}): ")


def page() -> str:
    """The text of the page."""
    public = {name: getattr(quantnet_jax, name) for name in quantnet_jax.__all__}
    # `qn.summary` is a module that is called as the function it wraps.
    public = {
        k: getattr(v, "__wrapped__", v) if inspect.ismodule(v) else v
        for k, v in public.items()
    }
    modules = {k: v for k, v in public.items() if inspect.ismodule(v)}
    rooms = {"quantnet_jax": {k: v for k, v in public.items() if k not in modules}}
    rooms |= {name: members(module) for name, module in modules.items()}
    parts, top = [HEAD, " · ".join(f"[{x}](#{x})" for x in rooms)], {}
    for room, things in rooms.items():
        parts.append(f"## {room}")
        if room in modules:
            parts.append(prose(inspect.getdoc(modules[room]) or ""))
        for name, thing in things.items():
            full = f"qn.{room}.{name}" if room in modules else f"qn.{name}"
            if other := top.get(id(thing)):
                parts.append(f"`{full}` is `{other}`.")
                continue
            top[id(thing)] = full
            parts += [f"### {full}", *entry(full, thing)]
    return "\n\n".join(filter(None, parts)) + "\n"


def members(module: types.ModuleType) -> dict[str, Any]:
    """Public functions and classes of a module: those it lists, or else defines."""
    listed = getattr(module, "__all__", None)
    own = lambda k, v: k[0] != "_" and v.__module__ == module.__name__
    found = {k: getattr(module, k) for k in listed or vars(module)}
    found = {k: v for k, v in found.items() if is_documented(v)}
    return {k: v for k, v in found.items() if listed or own(k, v)}


def is_documented(thing: Any) -> bool:
    """Whether it is a function or a class, with a docstring."""
    return bool((inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__doc__)


def entry(name: str, thing: Any) -> list[str]:
    """Signature, docstring and, of a class, its methods."""
    parts = [
        f"```pyi\n{signature(name, thing)}\n```",
        prose(inspect.getdoc(thing) or ""),
    ]
    for key, method in vars(thing).items() if inspect.isclass(thing) else ():
        own = getattr(method, "__module__", "") == thing.__module__
        if is_documented(method) and own and (key[0] != "_" or key == "__call__"):
            first = inspect.getdoc(method).partition("\n")[0]
            parts.append(f"- `{signature(f'.{key}', method)}`: {inline(first)}")
    return parts


def signature(name: str, thing: Any) -> str:
    """The call, without ranges and module names."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return name
    shown = []
    for p in inspect.signature(thing).parameters.values():
        if p.kind is p.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        shown += [parameter(p)] if p.name != "self" else []
    line = f"{name}({', '.join(shown)})"
    return (
        line if len(line) <= 88 else f"{name}(\n    " + ",\n    ".join(shown) + ",\n)"
    )


def parameter(p: inspect.Parameter) -> str:
    """`name: type = default`; '...' for a default that is no short value."""
    text, kind = str(p.replace(annotation=p.empty, default=p.empty)), p.annotation
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if kind is not p.empty:
        kind = kind if isinstance(kind, str) else inspect.formatannotation(kind)
        text += ": " + re.sub(r"\b(?:\w+\.)+(?=\w)", "", kind)
    if p.default is not p.empty:
        default = getattr(p.default, "__name__", repr(p.default))
        text += f" = {default if len(default) < 40 and default[0] != '<' else '...'}"
    return text


def prose(text: str) -> str:
    """A docstring in Google style as Markdown, its formulas on lines of their own."""
    found = []
    for block in re.split(rf"\n\n|\n(?={LABEL.pattern})", text):
        head, _, rest = block.partition(":")
        body = inspect.cleandoc(rest)
        if LABEL.match(block) and head in FORMULAS:
            block = f"**{head}:**\n\n```text\n{body}\n```"
        elif LABEL.match(block):
            block = f"**{head}:** {inline(body)}"
        elif head in LISTS and rest[:1] == "\n":
            rows = (row.partition(": ") for row in re.split(r"\n(?=\S)", body))
            lines = [f"- `{name}`: {inline(what)}" for name, _, what in rows]
            block = f"**{head}:**\n\n" + "\n".join(lines)
        elif head == "Example" and rest[:1] == "\n":
            block = f"**{head}:**\n\n```pycon\n{body}\n```"
        elif head in ("Returns", "Yields") and rest[:1] == "\n":
            block = f"**{head}:** {inline(body)}"
        elif ">>> " in block or re.search("^  ", block, re.M):
            block = f"```text\n{inspect.cleandoc(chr(10) + block)}\n```"
        else:
            block = inline(block)
        found.append(block)
    return "\n\n".join(found)


def inline(text: str) -> str:
    """Text on one line, with the characters escaped that mean something in Markdown."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    special = r"\*|\b_|_\b|<(?=[A-Za-z/!])"
    escape = lambda x: re.sub(special, lambda m: "\\" + m[0], x)
    return "".join(x if x.startswith("`") else escape(x) for x in parts)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check, text = parser.parse_args(argv).check, page()
    if check:
        stale = not PAGE.exists() or PAGE.read_text("utf-8") != text
        print(f"{PAGE.name}: {'out of date' if stale else 'up to date'}")
        return int(stale)
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
