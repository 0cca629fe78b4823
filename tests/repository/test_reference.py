"""Tests of the API reference: it is current, and shows docstrings as they are meant."""

from typing import Annotated

import quantnet_jax as qn
from tools import reference


def made_up(w: int, *, bits: Annotated[int, "range"] = 1, path: str = "a.b", q=len):
    """Rounds a * b.

    Forward: s round(w / s),
      s = 2**bits.
    Backward: 1[|w| <= s].

    Args:
      bits: at least
        1.
      path, q: see `made_up`.

    Returns:
      A number.

    Example:
      >>> made_up(1)
    """


def test_docstrings_become_markdown():
    assert reference.entry("qn.made_up", made_up) == [
        "```pyi\nqn.made_up(w: int, *, bits: int = 1, path: str = 'a.b', q = len)\n```",
        r"""Rounds a \* b.

**Forward:**

```text
s round(w / s),
s = 2**bits.
```

**Backward:**

```text
1[|w| <= s].
```

**Args:**

- `bits`: at least 1.
- `path, q`: see `made_up`.

**Returns:** A number.

**Example:**

```pycon
>>> made_up(1)
```""",
    ]


def test_page_is_current_and_names_everything(capsys):
    assert reference.main(["--check"]) == 0, "run python -m tools.reference"
    text = reference.PAGE.read_text("utf-8")
    for name in qn.__all__:
        assert f"\n## {name}\n" in text or f"\n### qn.{name}\n" in text, name
    assert " at 0x" not in text


def test_an_old_page_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "PAGE", tmp_path / "reference.md")
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0 and reference.main(["--check"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "reference.md: out of date"
