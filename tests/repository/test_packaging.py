"""Checks that the packaging files agree with each other and with the tree."""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from quantnet_jax import zoo
from quantnet_jax.common import command
from quantnet_jax.data.sets.sources import BUNDLED_FILE

ROOT = pathlib.Path(__file__).parents[2]
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


SELF = re.compile(r"quantnet_jax\[([\w,]+)\]")
TESTED = ("train", "data", "jpeg", "onnx", "gcs")
"""The extras that the tests need."""


def test_requirements_are_those_of_the_metadata():
    run, dev = requirements("requirements.txt"), requirements("requirements-dev.txt")
    (itself,) = [x for x in EXTRAS["dev"] if SELF.fullmatch(x)]
    assert set(SELF.fullmatch(itself)[1].split(",")) == set(TESTED)
    library = LIBRARY.union(*(EXTRAS[name] for name in TESTED))
    assert run >= library
    assert (run - library) | dev == EXTRAS["dev"] - {itself}


def test_the_core_is_four_packages():
    names = {re.match(r"[\w-]+", line)[0] for line in LIBRARY}
    assert names == {"jax", "flax", "numpy", "safetensors"}


def test_a_missing_package_is_told_with_the_extra_that_has_it():
    named = {"PIL": "pillow", "orbax": "orbax-checkpoint", "absl": "absl-py"}
    for module, extra in command.EXTRA_OF.items():
        wanted = named.get(module, module).replace("_", "-").lower()
        found = [re.match(r"[\w-]+", x)[0].replace("_", "-") for x in EXTRAS[extra]]
        assert wanted in [x.lower() for x in found], module
    line = command.describe(ModuleNotFoundError("No module", name="optax.tree"))
    assert line.endswith("extra 'train': pip install 'quantnet_jax[train]'")


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_has_a_lower_bound(name):
    # The CI job with the oldest versions reads the bound with this same pattern.
    pattern = r"[A-Za-z0-9_-]+(\[\w+\])?>=[\d.]+(,<[\d.]+)?(; [^;]+)?"
    assert requirements(name)
    assert not [x for x in requirements(name) if not re.fullmatch(pattern, x)]


def test_tensorflow_is_only_an_extra():
    lines = LIBRARY.union(*(EXTRAS[name] for name in (*TESTED, "dev")))
    needed = {re.match(r"[\w-]+", line).group() for line in lines}
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


def installed(folder, *words, without=()):
    """Runs Python in an empty folder, with the package that is installed in another."""
    code = (
        "import sys, runpy\n"
        "from importlib import machinery\n"
        "class Finder(machinery.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        if name.split('.')[0] not in {without!r}:\n"
        "            return machinery.PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path = [Finder if x is machinery.PathFinder else x "
        "for x in sys.meta_path]\n"
        "module, *sys.argv[1:] = sys.argv[1:]\n"
        "runpy.run_module(module, run_name='__main__', alter_sys=True)"
    )
    place = folder / "elsewhere"
    place.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(folder / "site")},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package as `pip install` leaves it in site/."""
    have = importlib.metadata.version("setuptools")
    if int(have.split(".")[0]) < 77:
        pytest.skip(f"setuptools {have} cannot build the wheel, expected 77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("quantnet_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=leave)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    pip += ["--no-build-isolation", "--target", str(folder / "site"), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_has_the_commands_and_the_configurations(site):
    made = {path.name for path in (site / "site" / "bin").iterdir()}
    assert made >= set(PROJECT["project"]["scripts"])
    shipped = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert {
        p.name for p in (site / "site/quantnet_jax/configs").glob("*.py")
    } == shipped
    assert not (site / "site" / "configs").exists()


def test_who_installed_the_package_can_train(site):
    words = ("--workdir=run", "--config.epochs=0.5", "--config.report=False")
    done = installed(site, "quantnet_jax.train", "--config=smoke", *words)
    assert done.returncode == 0, done.stderr
    assert (site / "elsewhere" / "run" / "result.json").is_file()
    mine = site / "elsewhere" / "mine.py"
    mine.write_text((ROOT / "configs" / "smoke.py").read_text())
    done = installed(site, "quantnet_jax.summary", "mine.py", "--config.model.width=2")
    assert done.returncode == 0 and "small, quantnet, synthetic" in done.stdout


def test_the_core_alone_predicts_and_says_what_is_missing(site):
    of_flax = ("optax", "absl", "orbax", "etils")  # it brings them
    core = tuple(x for x in command.EXTRA_OF if x not in of_flax)
    done = installed(site, "quantnet_jax.zoo", without=core)
    assert done.returncode == 0 and "zoo:NAME" in done.stdout, done.stderr
    name = next(iter(zoo.entries()))
    (site / "elsewhere" / "ask.py").write_text(
        "import numpy as np, quantnet_jax as qn\n"
        f"network = qn.load('zoo:{name}')\n"
        "print(network(np.zeros((1, *network.spec.shape), np.uint8)).shape)\n"
    )
    done = installed(site, "ask", without=core)
    assert done.stdout.startswith("(1, "), done.stderr
    for module in ("train", "evaluate", "export"):
        words = () if module == "train" else ("run",)
        done = installed(site, f"quantnet_jax.{module}", *words, without=core)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "pip install 'quantnet_jax[train]'" in line
