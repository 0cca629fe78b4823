"""The table of the gradient mismatch, from results/mismatch.json."""

import pathlib

from benchmarks.runs import read

FILE = "mismatch.json"


def text(results: pathlib.Path) -> str:
    """Markdown of the measurement; says so where it was not run."""
    found = read(results / FILE)
    if found is None:
        return "Not run: `python benchmarks/mismatch.py`.\n"
    return str(found)
