"""Checks that the packaging files agree with each other and with the tree."""

import pathlib
import re
import tomllib

import pytest

from quantnet_jax import zoo
from quantnet_jax.data.sources import BUNDLED_FILE

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LIBRARY = set(PROJECT["project"]["dependencies"])
EXTRAS = {
    name: set(lines)
    for name, lines in PROJECT["project"]["optional-dependencies"].items()
}


def requirements(name):
    """The lines of a requirements file that name a package."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith(("#", "-r "))}


def test_requirements_are_those_of_the_metadata():
    run, dev = requirements("requirements.txt"), requirements("requirements-dev.txt")
    assert run >= LIBRARY
    assert (run - LIBRARY) | dev == EXTRAS["dev"]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_has_a_lower_bound(name):
    # The CI job with the oldest versions reads the bound with this same pattern.
    pattern = r"[A-Za-z0-9_-]+(\[\w+\])?>=[\d.]+(,<[\d.]+)?(; [^;]+)?"
    assert requirements(name)
    assert not [x for x in requirements(name) if not re.fullmatch(pattern, x)]


def test_tensorflow_is_only_an_extra():
    needed = {re.match(r"[\w-]+", line).group() for line in LIBRARY | EXTRAS["dev"]}
    assert "tensorflow-datasets" in needed
    assert not needed & {"tensorflow", "torch"}
    assert EXTRAS["prepare"] == {"tensorflow"}


def test_package_data_covers_the_bundled_images():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["quantnet_jax.data"]
    matched = {p for x in patterns for p in (ROOT / "quantnet_jax/data").glob(x)}
    assert BUNDLED_FILE.resolve() in {p.resolve() for p in matched}


def test_package_data_covers_the_zoo():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["quantnet_jax.zoo"]
    matched = {p for x in patterns for p in zoo.FOLDER.glob(x)}
    wanted = {p for p in zoo.FOLDER.iterdir() if p.suffix in (".json", ".safetensors")}
    assert zoo.INDEX in wanted and matched == wanted


def test_every_file_of_the_package_is_in_a_package():
    # setuptools leaves a folder without __init__.py out, silently.
    sources = (ROOT / "quantnet_jax").rglob("*.py")
    bare = [p for p in sources if not (p.parent / "__init__.py").is_file()]
    assert not bare


def test_ci_workflow_names_files_that_exist():
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"configs/\w+\.py|\.ci/run", text))
    assert ".ci/run" in named
    assert not [name for name in named if not (ROOT / name).is_file()]
