"""Runs what the documentation says: doctests, Python blocks and shell commands."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import tomllib
from collections.abc import Mapping
from typing import NamedTuple

import artifacts
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from pages import (
    blocks,
    commands,
)

import quantnet_jax as qn

ROOT = pathlib.Path(__file__).parents[2]
MODULES = sorted(
    ["quantnet_jax"]
    + [info.name for info in pkgutil.walk_packages(qn.__path__, "quantnet_jax.")]
)
PAGES = ["README.md"] + sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")
)
DEFAULT_CONFIG = "configs/default.py"  # what train.py takes where none is given
OURS = ("quantnet_jax", "tools", "benchmarks", "measurements", "tests")
# Commands of the system whose arguments say nothing about this repository.
FOREIGN = {"git", "cd", "tensorboard", "tfds", "gcloud", "export"}


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring that says its job"
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, optionflags=flags).failed == 0


def test_there_are_doctests_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [t for name in MODULES for t in finder.find(importlib.import_module(name))]
    assert sum(len(t.examples) for t in found) >= 20


def undocumented(name, thing):
    """Whether a public thing lacks a docstring of its own."""
    if not (inspect.ismodule(thing) or callable(thing)):
        return False  # a constant or a type alias; its comment is in the source
    text = inspect.cleandoc(thing.__doc__ or "")
    # NamedTuples and dataclasses write their own signature where nothing is said.
    return not text or text.startswith(f"{getattr(thing, '__name__', name)}(")


def test_every_public_name_is_documented():
    assert len(qn.__all__) == len(set(qn.__all__)) > 0
    missing = [name for name in qn.__all__ if not hasattr(qn, name)]
    assert not missing
    assert not [n for n in qn.__all__ if undocumented(n, getattr(qn, n))]


def problems(args):
    """What a command names that is not in this repository."""
    head, *rest = args
    program = head.rsplit("/", 1)[-1]
    if program == "make":
        return [x for x in rest if not has_goal(x)]
    if program in ("python", "python3"):
        if rest[:2] in (["-m", "venv"], ["-m", "pytest"]):
            return []
        if rest[:2] == ["-m", "pip"]:
            return pip_problems(rest[2:])
        if rest[:1] == ["-m"]:
            module, spec = rest[1], None
            if module.split(".")[0] in OURS:
                spec = importlib.util.find_spec(module)
            return ([] if spec else [module]) + flag_problems(rest[2:])
        return missing_files(rest[:1]) + flag_problems(rest[1:])
    if program == "pip":
        return pip_problems(rest)
    if program in ("bash", "sh"):
        return missing_files(rest[:1])
    if program in ("pytest", "ruff", "pyright"):
        return missing_files(x for x in rest if "/" in x)
    return [] if program in FOREIGN else [f"unknown command {head}"]


def has_goal(word):
    """Whether a word after `make` is a goal, or an assignment to a known variable."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    name, is_assignment, _ = word.partition("=")
    pattern = rf"^{re.escape(name)} \?=" if is_assignment else rf"^{re.escape(name)}:"
    return re.search(pattern, makefile, re.MULTILINE) is not None


def missing_files(paths):
    """The paths that are not files or folders of the repository."""
    return [x for x in paths if not (ROOT / x).exists()]


def pip_problems(args):
    """Files and extras that a `pip install` names and the repository lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    found = missing_files(y for x, y in zip(args, args[1:], strict=False) if x == "-r")
    for word in args:
        if match := re.fullmatch(r"\.\[([\w,-]+)\]", word):
            found += sorted(set(match[1].split(",")) - extras)
    return found


def flag_problems(args):
    """A --config file that is missing, or a --config.key that it does not have."""
    flags = [word.partition("=")[::2] for word in args]
    path, _, argument = dict(flags).get("--config", DEFAULT_CONFIG).partition(":")
    if not (ROOT / path).is_file():
        return [path]
    keys = [name.split(".")[1:] for name, _ in flags if name.startswith("--config.")]
    if not keys:
        return []
    config = get_config(path, argument)
    return [".".join(x) for x in keys if not has_key(config, x)]


def get_config(path, argument):
    """What the `get_config` of a configuration file returns."""
    spec = importlib.util.spec_from_file_location("config_of_page", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*[argument] if argument else [])


def has_key(config, names):
    """Whether nested keys lead to something in a configuration."""
    for name in names:
        if not isinstance(config, Mapping | ConfigDict) or name not in config:
            return False
        config = config[name]
    return True


@pytest.mark.parametrize("page", PAGES)
def test_shell_commands_exist(page):
    found = commands((ROOT / page).read_text(encoding="utf-8"))
    assert found or page != "README.md", "README.md shows no command"
    bad = {" ".join(args): problems(args) for args in found}
    assert not {command: what for command, what in bad.items() if what}


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    # The blocks of a page are one program, run in a folder of its own, for a reader
    # who has a network, its parameters, a key, some images and batches; and, where a
    # page loads them, the files of an exported network.
    monkeypatch.chdir(tmp_path)
    key, images = jax.random.key(0), jnp.ones((2, 8, 8, 3))
    model = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(4, (3, 3))])
    space = {"__name__": "page", "NamedTuple": NamedTuple, "key": key}
    batches = [(images, jnp.zeros((2, 8, 8), jnp.int32))] * 2
    space |= {"model": model, "images": images, "batches": batches}
    space["params"] = model.init(key, images)["params"]
    found = blocks((ROOT / page).read_text(encoding="utf-8"), ("python", "py"))
    assert found or page != "README.md", "README.md shows no Python example"
    if any("model.safetensors" in text for _, text in found):
        artifacts.write_export(tmp_path)
    for line, text in found:
        tree = ast.increment_lineno(ast.parse(text), line - 1)
        exec(compile(tree, page, "exec"), space)


class Plain(nn.Module):
    """The CNN of the Flax tutorial, narrower: no normalization anywhere."""

    @nn.compact
    def __call__(self, x):
        pool = lambda x: nn.avg_pool(nn.relu(x), (2, 2), (2, 2))
        x = pool(nn.Conv(16, (3, 3))(pool(nn.Conv(8, (3, 3))(x))))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x.reshape(len(x), -1))))


def test_lines_of_the_readme_train():
    """Hard weights of a network without normalization, every kernel quantized."""
    dataset = qn.data.subset(qn.data.load("bundled"), 1000, 500)
    statistics = qn.data.normalization(dataset)
    normal = lambda x: qn.data.normalize(x[:, ::2, ::2], *statistics)
    images, labels = normal(dataset.train_image), jnp.asarray(dataset.train_label)
    rows = jax.random.permutation(jax.random.key(0), 1000).reshape(-1, 25)
    model, key = Plain(), jax.random.key(0)
    batches = [(images[i], labels[i]) for i in rows] * 3
    space = {"model": model, "key": key, "batches": batches}
    *_, (_, text) = blocks((ROOT / "README.md").read_text("utf-8"), ("python",))
    with jax.numpy_dtype_promotion("standard"):  # Flax's avg_pool needs it
        space["params"] = jax.jit(model.init)(key, images[:1])["params"]
        exec(compile(text, "README.md", "exec"), space)
        weights = qn.dequantize_tree(space["hard"])
        logits = jnp.asarray(
            model.apply({"params": weights}, normal(dataset.test_image))
        )
    assert float(space["value"]) < 1.5  # chance is 2.3
    assert (logits.argmax(-1) == dataset.test_label).mean() > 0.5


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [x for x in links if not re.match(r"\w+:", x)]
    assert not [x for x in local if not ((ROOT / page).parent / x).exists()]


PAGE = """
```bash
git clone somewhere && cd quantnet_jax
make train
A=1 make test ARGS=-x   # a remark
python -m tools.make_bundled \\
    folder
```
```console
$ pip install -r requirements.txt
output that is no command
```
```python
make nothing
    make this_neither
```
Or, after an ordinary line:

    make lint  # another remark
    make clean

- a list

    make no_command_of_a_list

The end, and a paragraph
    make nothing_either
"""


def test_commands_of_a_page():
    assert commands(PAGE) == [
        ["git", "clone", "somewhere"],
        ["cd", "quantnet_jax"],
        ["make", "train"],
        ["make", "test", "ARGS=-x"],
        ["python", "-m", "tools.make_bundled", "folder"],
        ["pip", "install", "-r", "requirements.txt"],
        ["make", "lint"],
        ["make", "clean"],
    ]
    assert not [args for args in commands(PAGE) if problems(args)]


@pytest.mark.parametrize(
    "command",
    [
        "make bread",
        "make test BREAD=1",
        "python bread.py",
        "python -m quantnet_jax.bread",
        "python -m bread",
        "python train.py --config=configs/bread.py",
        "python train.py --config.bread=1",
        "python train.py --config.weights.bread=1",
        "python train.py --config.seed.bread=1",
        "pip install -r bread.txt",
        "pip install '.[bread]'",
        "bash bread",
        "bread --now",
    ],
)
def test_checker_finds_what_does_not_exist(command):
    (args,) = commands(f"```bash\n{command}\n```")
    assert problems(args)


def test_checker_accepts_keys_that_exist():
    (args,) = commands(
        "```sh\npython train.py --config.seed=1 --config.quantizer.name=x\n```"
    )
    assert not problems(args)


def test_undocumented_things_are_found():
    class Bare:
        pass

    assert undocumented("Bare", Bare)
    assert undocumented("f", lambda: 0)
    assert not undocumented("undocumented", undocumented)
