"""Reads every import of the package and fails on one that goes up or in a circle."""

import ast
import graphlib
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Rooms from the ground up: an import may only go to an earlier one. "" is the package's
# own files (evaluate.py, export.py, ...), which may import all of them.
ORDER = (
    *("common", "core", "ops", "trees", "quantizers", "activations", "models", "data"),
    *("tasks", "distributed", "config", "checkpoint", "logging", "evaluation"),
    *("training", "posttrain", "analysis", "deploy", "zoo", "report", "experiments"),
    *("testing", ""),
)
# Rooms that see less than what is below them: what runs a deployed network needs no
# training, data loads without networks, files are written without knowing a run.
ONLY = {
    "data": {"common"},
    "models": {"common", "core", "ops", "activations"},
    "distributed": {"common", "core", "trees"},
    "checkpoint": {"common", "trees"},
    "deploy": {"common", "core", "ops", "trees", "quantizers", "activations", "models"},
    "zoo": {"common", "deploy"},
    "report": {"common", "logging"},
}
ROOMS = {room: ONLY.get(room, set(ORDER[:number])) for number, room in enumerate(ORDER)}

# What a room may import from outside, the standard library and these aside.
JAX = {"jax", "numpy"}
OUTSIDE = {
    "common": {"etils", "gcsfs"},
    "activations": {"flax"},
    "models": {"flax"},
    "tasks": {"flax", "optax"},
    "data": {
        *("absl", "PIL", "tensorflow_datasets", "grain"),
        "cykooz_resizer",
    },
    "config": {"ml_collections", "absl", "optax"},
    "checkpoint": {"orbax", "absl"},
    "logging": {"tensorboardX", "tqdm", "absl"},
    "evaluation": {"ml_collections"},
    "training": {"optax", "ml_collections", "absl"},
    "deploy": {"safetensors", "onnx", "onnxruntime"},
    "posttrain": {"ml_collections", "safetensors"},
    "experiments": {"ml_collections"},
    "": {"ml_collections", "absl", "PIL", "flax", "optax", "onnx", "onnxruntime"},
}
OUTSIDE = {room: JAX | others for room, others in OUTSIDE.items()}
OUTSIDE["common"] -= {"jax"}

# What only one file may use.
ONLY_IN = {
    "orbax": "quantnet_jax/checkpoint/manager.py",
    "cykooz_resizer": "quantnet_jax/data/turbo.py",
    "etils": "quantnet_jax/common/files.py",
    "gcsfs": "quantnet_jax/common/files.py",
}

# The words of JAX that say which devices or processes there are.
DEVICE_WORDS = {
    *("pmap", "shard_map", "make_mesh", "set_mesh", "Mesh", "NamedSharding"),
    *("devices", "local_devices", "device_count", "local_device_count"),
    *("process_index", "process_count", "distributed", "multihost_utils"),
    *("PartitionSpec", "AxisType", "default_backend"),
}
# The law "replicas are equal" is about devices, so the law suite needs them too.
KNOWS_DEVICES = {
    *("quantnet_jax/distributed/hosts.py", "quantnet_jax/distributed/runners.py"),
    "quantnet_jax/testing/__init__.py",
}


class Import(NamedTuple):
    """One import: `module`, and `name` where it was `from module import name`."""

    line: int
    module: str
    name: str | None
    typing_only: bool


def module_of(path):
    """Dotted module name of a file: 'a/b/__init__.py' is 'a.b'."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(path, source):
    """All imports of a file, those inside functions too."""
    package = module_of(path).split(".")
    if not path.endswith("/__init__.py"):
        package.pop()
    found = []

    def visit(node, typing_only):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Import(node.lineno, alias.name, None, typing_only))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:
                found.append(Import(node.lineno, module, alias.name, typing_only))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, True)
            for child in node.orelse:
                visit(child, typing_only)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, typing_only)

    visit(ast.parse(source), False)
    return found


def device_words(source):
    """(line, word) for each use of a device word of jax in a source."""
    names = {}  # local name -> what it stands for, 'jax.sharding' and so on
    found = []
    nodes = list(ast.walk(ast.parse(source)))

    def report(line, dotted):
        if dotted.split(".")[0] == "jax":
            found.extend((line, x) for x in dotted.split(".") if x in DEVICE_WORDS)

    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
                report(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                names[alias.asname or alias.name] = dotted
                report(node.lineno, dotted)
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in DEVICE_WORDS:
            head, *rest = ast.unparse(node).split(".")
            report(node.lineno, ".".join([names.get(head, "?"), *rest]))
    return sorted(set(found))


def offences(sources):
    """Every broken rule in {path: source}, as 'path:line: what is wrong'."""
    modules = {module_of(path): path for path in sources}
    graph = {module: set() for module in modules}
    found = []
    for path, source in sources.items():
        module = module_of(path)
        room = room_of(path)
        if room not in ROOMS:
            found.append(f"{path}:1: room {room!r} is not in ROOMS of this test")
            continue
        for item in imports_of(path, source):
            where = f"{path}:{item.line}:"
            top = item.module.split(".")[0]
            if top == "quantnet_jax":
                full = f"{item.module}.{item.name}"
                target = full if full in modules else item.module
                if target not in modules:
                    found.append(f"{where} {target} is no module of the package")
                    continue
                if not item.typing_only:
                    graph[module].add(target)
                other = room_of(modules[target])
                if other != room and other not in ROOMS[room]:
                    found.append(
                        f"{where} {room or 'the root'} must not import {target}"
                    )
            elif top not in sys.stdlib_module_names | OUTSIDE.get(room, JAX):
                found.append(f"{where} {room or 'the root'} must not import {top}")
            if path != ONLY_IN.get(top, path):
                found.append(f"{where} only {ONLY_IN[top]} may import {top}")
        if path not in KNOWS_DEVICES:
            for line, word in device_words(source):
                found.append(f"{path}:{line}: only runners.py and hosts.py say {word}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("import circle: " + " -> ".join(error.args[1]))
    return found


def room_of(path):
    """'core' for quantnet_jax/trees/tree.py, '' for quantnet_jax/run.py.

    The command of a room, its __main__.py, is one of the package's own files.
    """
    parts = path.split("/")
    return parts[1] if len(parts) > 2 and parts[-1] != "__main__.py" else ""


def package_sources():
    """{path from the root: source} of every Python file of the package."""
    paths = sorted((ROOT / "quantnet_jax").rglob("*.py"))
    return {p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for p in paths}


def test_imports_only_go_down():
    sources = package_sources()
    assert {"core", "quantizers", "models", "data", "training"} <= {
        room_of(path) for path in sources
    }
    assert not offences(sources)


def test_rooms_and_files_are_small():
    rooms: dict[str, int] = {}
    for path, text in package_sources().items():
        assert text.count("\n") <= 300, f"{path} has more than 300 lines"
        room, _, file = path.rpartition("/")
        rooms[room] = rooms.get(room, 0) + (file != "__init__.py")
    assert max(rooms.values()) <= 12, rooms


def test_configs_import_only_the_config_library():
    allowed = {"ml_collections", "quantnet_jax"}
    paths = sorted((ROOT / "configs").glob("*.py"))
    assert paths
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        tops = {x.module.split(".")[0] for x in imports_of(name, path.read_text())}
        assert tops - set(sys.stdlib_module_names) <= allowed, name


CLEAN = {
    "quantnet_jax/__init__.py": "from quantnet_jax.core import quantizer",
    "quantnet_jax/core/__init__.py": "",
    "quantnet_jax/core/quantizer.py": "import math\nimport jax.numpy as jnp",
    "quantnet_jax/core/tree.py": "from quantnet_jax.core.quantizer import f",
    "quantnet_jax/quantizers/__init__.py": "from quantnet_jax.core import quantizer",
    "quantnet_jax/models/__init__.py": "import flax.linen as nn",
    "quantnet_jax/data/__init__.py": "def f():\n    import tensorflow_datasets",
    "quantnet_jax/training/__init__.py": "",
    "quantnet_jax/checkpoint/manager.py": "import orbax.checkpoint as ocp",
    "quantnet_jax/distributed/runners.py": "import jax\njax.pmap(f, jax.devices())",
    "quantnet_jax/training/steps.py": (
        "import optax\nfrom quantnet_jax import data, quantizers\n"
        "def f(process_index, runner):\n    return runner.devices, process_index"
    ),
}


def test_checker_accepts_what_the_rules_allow():
    assert not offences(CLEAN)


@pytest.mark.parametrize(
    "path, source, message",
    [
        ("core/tree.py", "from quantnet_jax.quantizers import f", "core must not"),
        ("core/tree.py", "from quantnet_jax import quantizers", "core must not"),
        ("core/tree.py", "from .. import quantizers", "core must not"),
        ("core/tree.py", "def f():\n  from ..quantizers import x", "core must not"),
        ("core/tree.py", "import quantnet_jax as qn", "core must not"),
        ("core/tree.py", "import flax.linen", "core must not import flax"),
        ("core/quantizer.py", "from quantnet_jax.core import tree", "import circle"),
        ("core/quantizer.py", "def f():\n  from .tree import x", "import circle"),
        (
            "core/quantizer.py",
            "import quantnet_jax.missing",
            "no module of the package",
        ),
        ("quantizers/__init__.py", "import optax", "must not import optax"),
        ("quantizers/__init__.py", "from .. import models", "must not import"),
        ("models/__init__.py", "from .. import quantizers", "must not import"),
        ("models/__init__.py", "import optax", "must not import optax"),
        ("data/__init__.py", "from ..core import quantizer", "data must not import"),
        ("data/__init__.py", "import tensorflow as tf", "must not import tensorflow"),
        (
            "data/__init__.py",
            "import typing\nif typing.TYPE_CHECKING:\n  from ..core import quantizer",
            "data must not import",
        ),
        (
            "training/steps.py",
            "import orbax.checkpoint",
            "only quantnet_jax/check",
        ),
        ("training/steps.py", "import grain", "must not import grain"),
        ("training/steps.py", "import jax\njax.pmap(f)", "say pmap"),
        ("training/steps.py", "import jax as j\nj.devices()", "say devices"),
        ("training/steps.py", "from jax import process_index as p", "process_index"),
        ("training/steps.py", "import jax.distributed", "say distributed"),
        ("training/steps.py", "from jax import sharding as s\ns.Mesh(d, a)", "Mesh"),
        ("attic/__init__.py", "", "room 'attic' is not in ROOMS"),
    ],
)
def test_checker_finds(path, source, message):
    found = offences({**CLEAN, f"quantnet_jax/{path}": source})
    assert any(message in line for line in found), found


def test_importing_the_package_is_light():
    heavy = (
        *("tensorflow", "torch", "tensorflow_datasets", "grain", "orbax"),
        "cykooz_resizer",
    )
    code = (
        "import sys, quantnet_jax, quantnet_jax.models, quantnet_jax.data\n"
        f"print('loaded:', [m for m in {heavy!r} if m in sys.modules])\n"
        "import quantnet_jax.checkpoint.manager\n"
        "print('orbax' in sys.modules)"  # the look-up does see a loaded one
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["loaded: []", "True"]
