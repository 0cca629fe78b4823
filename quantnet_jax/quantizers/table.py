"""Writes the tables of all quantizers into docs/quantizers.md, from the one list.

python -m quantnet_jax.quantizers.table             # prints them
python -m quantnet_jax.quantizers.table --write     # into the page
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping

from quantnet_jax.quantizers import ACTIVATIONS, MEMBERS, Member

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "quantizers.md"
BEGIN = "<!-- members: written from quantnet_jax/quantizers/members.py -->"
END = "<!-- end of members -->"
HEAD = (
    *("name", "deployed value", "forward", "backward"),
    *("bits", "learned", "reference", "ours"),
)


def markdown(members: Mapping[str, Member]) -> str:
    """The Markdown table of some members, one line each, in the order of the list.

    Example:
      >>> print(markdown({"identity": MEMBERS["identity"]}).splitlines()[2])
      | `identity` | w | float | exact | float |  | full precision |  |
    """
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for name, member in members.items():
        cells = (
            *(f"`{name}`", member.value, member.forward, member.backward),
            *(_widths(member.bits), member.learned, member.reference, member.ours),
        )
        # A bar ends a cell, even within code.
        lines.append("| " + " | ".join(x.replace("|", "\\|") for x in cells) + " |")
    return "\n".join(lines)


def block() -> str:
    """What stands between the markers of the page."""
    return (
        f"Weights (`config.quantizer.name`):\n\n{markdown(MEMBERS)}\n\n"
        f"Activations (`config.activation.name`):\n\n{markdown(ACTIVATIONS)}\n"
    )


def with_tables(page: str) -> str:
    """The text of the page with its tables made anew.

    Raises:
      ValueError: the page lacks the markers, or has one twice.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"expected {BEGIN!r} and {END!r} once each in the page")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{block()}\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m quantnet_jax.quantizers.table")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    if not parser.parse_args(argv).write:
        print(block())
        return 0
    try:
        text = with_tables(PAGE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        print(f"error: {PAGE}: {e}", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


def _widths(bits: tuple[int, ...]) -> str:
    """'float', '1', '1, 2' or '1-8'."""
    if not bits:
        return "float"
    if len(bits) > 2 and bits == tuple(range(bits[0], bits[-1] + 1)):
        return f"{bits[0]}-{bits[-1]}"
    return ", ".join(map(str, bits))


if __name__ == "__main__":
    sys.exit(main())
