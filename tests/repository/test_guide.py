"""Follows docs/add_a_quantizer.md in a copy of the package, down to a trained run."""

import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from pages import blocks, commands

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add_a_quantizer.md").read_text(encoding="utf-8")
LIST = "quantnet_jax/quantizers/members.py"
SMOKE = ROOT / "configs" / "smoke.py"
SMALL = [
    "--config.epochs=0.5",  # after the page's own: the last one counts
    "--config.recalibration_batches=0",
    "--config.report=False",
    "--config.tensorboard=False",
]


def section(title):
    """The text under a heading of the page."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return text


def code(title, language="python"):
    """The one block of a language under a heading."""
    ((_, text),) = blocks(section(title), (language,))
    return text


def row():
    """(import line, lines of the entry) that the page adds to the list."""
    diff = code("The row", "diff").splitlines()
    first, *entry = (x[1:] for x in diff if x.startswith("+"))
    assert first.startswith("from ")
    return first, entry


def with_row(source):
    """The list of quantizers with the lines that the page adds."""
    first, entry = row()
    lines = without_row(source).splitlines()
    before = max(x for x in lines if x.startswith("from ") and x < first)
    lines.insert(lines.index(before) + 1, first)
    start = lines.index("MEMBERS: dict[str, Member] = {") + 1
    lines[start:start] = entry
    return "\n".join(lines) + "\n"


def without_row(source):
    """The list of quantizers where the page was not followed."""
    first, entry = row()
    return source.replace(f"{first}\n", "").replace("\n".join([*entry, ""]), "")


def files(folder):
    """{path: content} of a copy of the package, or of the package itself."""
    paths = sorted((folder / "quantnet_jax").rglob("*"))
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


CHILD = """
import runpy, sys
import quantnet_jax
{new}
assert quantnet_jax.__file__.startswith({copy!r}), quantnet_jax.__file__
{laws}
assert quantnet_jax.noisy_sign is noisy_sign and "noisy_sign" in quantnet_jax.__all__
sys.argv = {command!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """(copy, its files before, folder of the run, new file): the page, followed."""
    copy = tmp_path_factory.mktemp("guide")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "quantnet_jax", copy / "quantnet_jax", ignore=ignored)
    (new,) = re.findall(r"`(quantnet_jax/quantizers/\w+/\w+\.py)`, complete", PAGE)
    (copy / new).unlink(missing_ok=True)  # somebody follows the page right here
    (copy / LIST).write_text(without_row((copy / LIST).read_text("utf-8")), "utf-8")
    before = files(copy)
    (copy / new).write_text(code("The file") + "\n", encoding="utf-8")
    (copy / LIST).write_text(with_row((copy / LIST).read_text("utf-8")), "utf-8")

    ((_, script, *options),) = commands(section("A run"))
    options += re.findall(r"`(--config\.quantizer\.\S+)`", section("A run"))
    program = CHILD.format(
        new=row()[0],
        copy=str(copy),
        laws=code("The laws"),
        command=[str(ROOT / script), f"--config={SMOKE}", *options, *SMALL],
    )
    path = os.pathsep.join([str(copy), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (workdir,) = [x.partition("=")[2] for x in options if x.startswith("--workdir=")]
    return copy, before, copy / workdir, new


def test_one_new_file_and_one_changed_list(followed):
    copy, before, _, new = followed
    after = files(copy)
    assert after.keys() - before.keys() == {new}
    assert not before.keys() - after.keys()
    assert [x for x in before if after[x] != before[x]] == [LIST]


def test_the_lines_of_the_page_are_linted(followed):
    pytest.importorskip("ruff")
    copy, _, _, new = followed
    lint = [sys.executable, "-m", "ruff"]
    config = f"--config={ROOT / 'pyproject.toml'}"
    for words in (["check"], ["format", "--check"]):
        command = [*lint, *words, config, copy / LIST, copy / new]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_quantizer_of_the_page_trains(followed):
    _, _, workdir, new = followed
    name = pathlib.Path(new).stem
    result = json.loads((workdir / "result.json").read_text())
    assert result["method"] == name
    assert result["steps"] == 4  # half an epoch of configs/smoke.py
    assert result["layers"]
    for score in ("soft", "hard"):
        assert math.isfinite(result[score]) and 0 <= result[score] <= 1
    config = json.loads((workdir / "config.json").read_text())
    assert config["quantizer"]["name"] == name
    recipe = {"schedule": "exponential", "start": 0.03, "end": 20.0, "until": 1.0}
    assert config["quantizer"][name] == {"sharpness": recipe}


def test_file_of_the_page_is_short():
    """'About 20 lines of code': blank lines, docstrings and imports aside."""
    text = re.sub(r'"""(?:.|\n)*?"""', "", code("The file"))
    text = re.sub(r"^from .*?(\((?:.|\n)*?\))?$|^import .*$", "", text, flags=re.M)
    assert len([x for x in text.splitlines() if x.strip()]) <= 20


def test_table_has_a_line_for_every_law():
    rows = re.findall(r"^\| (\d+) \|", section("The laws"), re.M)
    assert [int(x) for x in rows] == list(range(1, 16))
