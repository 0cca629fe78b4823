"""Fills in the tables of README.md and docs/ from the records under results/.

    python -m tools.tables            # writes what has changed
    python -m tools.tables --check    # exit code 1 if a page differs from its records

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. NAME is one of
`blocks.py`, `cost_blocks.py`, `posttrain_blocks.py`, `members.py`, `sparse.py` or
`super_resolution.py`; or `study STUDY` for all of a study, `rows STUDY` for its table
alone, `about STUDY` for what its numbers are.
"""

import argparse
import pathlib
import re
import sys

from quantnet_jax.experiments import grid, results, tables
from tools import (
    blocks,
    cost_blocks,
    members,
    posttrain_blocks,
    sparse,
    super_resolution,
)

BLOCKS = blocks.BLOCKS | cost_blocks.BLOCKS | members.BLOCKS | posttrain_blocks.BLOCKS
BLOCKS |= sparse.BLOCKS | super_resolution.BLOCKS
ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- table: ([^\n]*?) -->\n).*?(<!-- end -->)", re.S)


def pages() -> list[pathlib.Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str, folder: pathlib.Path = ROOT / results.FOLDER) -> str:
    """A page with each table written again.

    Raises:
      ValueError: a name that is none of a table; a table without an end.
    """
    if text.count("<!-- table: ") != len(BLOCK.findall(text)):
        raise ValueError("a table has no '<!-- end -->'")
    return BLOCK.sub(lambda m: f"{m[1]}{table(m[2], folder)}\n{m[3]}", text)


def table(name: str, folder: pathlib.Path) -> str:
    """The Markdown of a table."""
    kind, _, study = name.partition(" ")
    if kind in ("study", "rows", "about") and study in grid.names():
        found = grid.load(study)
        records = results.of_study(study, found, folder)
        if kind == "rows":
            return tables.table(found, records)
        if kind == "about":
            return tables.about(study, found, records)
        times = blocks.step_times(folder, study)
        return tables.section(study, found, records, times)
    if name not in BLOCKS:
        known = ", ".join([*BLOCKS, "study STUDY", "rows STUDY", "about STUDY"])
        raise ValueError(f"no table {name!r}, expected one of {known}")
    return BLOCKS[name](folder)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tables", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    stale = []
    for path in pages():
        text = path.read_text("utf-8")
        if (new := filled(text)) != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if not args.check:
                path.write_text(new, "utf-8")
    verb = "out of date" if args.check else "wrote"
    print(f"{verb}: {', '.join(stale) or 'nothing'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
