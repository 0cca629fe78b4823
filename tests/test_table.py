"""The docs tables are those of the one list."""

import re

import pytest

from quantnet_jax import quantizers
from quantnet_jax.quantizers import table


def test_page_holds_the_tables_of_the_list():
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.with_tables(page) == page, (
        "run `python -m quantnet_jax.quantizers.table --write`"
    )


@pytest.mark.parametrize("members", [quantizers.MEMBERS, quantizers.ACTIVATIONS])
def test_every_member_has_one_line_with_all_cells(members):
    head, rule, *lines = table.markdown(members).splitlines()
    assert rule == "|---" * len(table.HEAD) + "|"
    for name, line in zip(members, lines, strict=True):
        assert line.startswith(f"| `{name}` | ")
        # Bars within a cell are escaped, so that they do not end it.
        found = re.split(r"(?<!\\)\|", line)[1:-1]
        assert len(found) == len(table.HEAD) == len(head.split("|")) - 2
        assert found[1].strip().replace("\\|", "|") == members[name].value


def test_tables_are_written_between_the_markers(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    assert table.main(["--write"]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n") and text.endswith("after\n")
    assert "old" not in text and table.block() in text
    assert table.main(["--write"]) == 0 and page.read_text() == text
    page.write_text("no markers\n")
    capsys.readouterr()
    assert table.main(["--write"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert page.read_text() == "no markers\n"


def test_widths():
    assert table._widths(()) == "float"
    assert table._widths((1,)) == "1"
    assert table._widths((1, 2)) == "1, 2"
    assert table._widths((1, 2, 3, 4)) == "1-4"
    assert table._widths((1, 2, 4)) == "1, 2, 4"
