"""Written calls, as in "gpfq(bits=4, per='tensor')": a name, options as plain data."""

import ast
from typing import Any

from quantnet_jax.common.names import show

WRONG = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
"""What text raises that is no Python or no plain data."""


def parse(key: str, text: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of a written call; a name alone has none.

    Args:
      key: of the setting, for messages.
      text: NAME, or NAME(option=value, ...) with plain data for values.

    Raises:
      ValueError: one line with the key, the text and what was expected.

    Example:
      >>> parse("method", "gpfq(bits=4, per='tensor')")
      ('gpfq', {'bits': 4, 'per': 'tensor'})
    """
    name, bracket, rest = text.partition("(")
    source = f"f({rest if bracket else ')'}"
    try:
        call = ast.parse(source, mode="eval").body
    except WRONG:
        call = None
    match call:
        case ast.Call(func=ast.Name(), args=[], keywords=options):
            words = {x.arg: x.value for x in options if x.arg}
            if len(words) == len(options):  # none twice, no **
                key = f"{key}={show(text)}: "
                plain = {k: _plain(f"{key}{k}", source, words[k]) for k in words}
                return name.strip(), plain
    raise ValueError(f"{key}={show(text)}, expected NAME(option=value, ...)")


def _plain(key: str, source: str, value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except WRONG:
        part = " ".join(str(ast.get_source_segment(source, value)).split())[:80]
        expected = "expected a number, a 'text', True, False or a tuple of them"
        raise ValueError(f"{key}={part}, {expected}") from None
