"""The decoder of docs/artifact_format.md, of NumPy alone, against `qn.load`."""

import ast
import pathlib
import re

import artifacts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import normal

import quantnet_jax as qn
from quantnet_jax import deploy
from quantnet_jax.deploy.format.artifact import FORMAT
from quantnet_jax.models import kernel_rule

pytestmark = pytest.mark.optimized

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "artifact_format.md"
SIGNS = {"name": "sign_ste", "sites": ["input"]}


@pytest.fixture(scope="module")
def decoder():
    """The functions of the page."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    tree, space = ast.parse(source), {}
    tree.body = tree.body[:-1]  # the call at its end
    exec(compile(tree, str(PAGE), "exec"), space)
    imports = [x for x in ast.walk(tree) if isinstance(x, ast.Import | ast.ImportFrom)]
    found = {alias.name for x in imports for alias in x.names}
    assert found == {"hashlib", "json", "numpy", "pathlib", "re"}
    return space


def make_file(path, spec):
    """A network of random parameters, with all kernels of its blocks of one bit."""
    rng = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)
    shapes = jax.eval_shape(spec.network().init, jax.random.key(0), image)["params"]
    draw = lambda shape: rng.normal(size=shape) if shape else 0.7  # that of a site
    random = lambda x: jnp.asarray(draw(x.shape), jnp.float32)
    params = jax.tree.map(random, shapes)
    rules = [qn.Rule(kernel_rule("inner"), qn.binary_ste())]
    q = qn.tree_quantizer(rules, params)
    deploy.save(path, q.hard(q.init(jax.random.key(0), params), params), spec)


@pytest.mark.parametrize(
    ("model", "activation"),
    [
        ({"name": "resnet8", "width": 4}, SIGNS),
        ({"name": "resnet8", "width": 4, "shortcut": "B"}, SIGNS),
        ({"name": "resnet14", "width": 4, "bi_real": True, "shortcut": "B"}, SIGNS),
        ({"name": "resnet8", "width": 4}, None),
        ({"name": "small", "width": 4}, {"name": "dorefa", "bits": 2}),
        ({"name": "small", "width": 4}, {"name": "lsq", "bits": 3}),
    ],
    ids=["W1A1-A", "W1A1-B", "W1A1-bi_real", "W1", "dorefa", "lsq"],
)
def test_outputs_are_those_of_the_predictor(model, activation, decoder, tmp_path):
    path = tmp_path / "model.safetensors"
    spec = deploy.NetworkSpec(
        model=model,
        outputs=5,
        shape=(9, 8, 3),
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.2, 0.3),
        activation=activation,
    )
    make_file(path, spec)
    images = np.random.default_rng(1).integers(0, 256, (6, 9, 8, 3)).astype(np.uint8)
    wanted = np.asarray(qn.load(path, popcount=False)(images))
    found = decoder["run"](path, images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * abs(wanted).max())
    assert np.std(wanted, axis=0).min() > 1e-3  # images differ


def test_tables_of_channels_and_pact(decoder, tmp_path):
    path = tmp_path / "model.safetensors"
    deploy.save(path, artifacts.make_params(), artifacts.SPEC)
    images = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
    wanted = np.asarray(qn.load(path)(images))
    found = decoder["run"](path, images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * abs(wanted).max())


def test_values_of_an_own_tree(decoder, tmp_path):
    """Ternary and 3-bit codes, an odd number of them, and tables of any axis."""
    w = jnp.asarray(normal(0, (3, 5)))
    tree = {"a": qn.bitnet().hard((), w), "b": [qn.dorefa(bits=3).hard((), w)]}
    levels = jnp.sort(jnp.asarray(normal(1, (3, 1, 5))), -1)
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 5, (3, 5)), jnp.uint8)
    tree["c"] = qn.QTensor(codes, levels, jnp.ones((1, 5)))
    sparse = qn.pruning.sparse(qn.dorefa(bits=2), 0.5)
    pruned = jnp.where(jnp.arange(315) % 3 == 0, jnp.asarray(normal(2, 315)), 0.0)
    tree["s"] = sparse.hard((), pruned.reshape(3, 3, 5, 7))
    tree["n"] = np.arange(3, dtype=np.int32)
    qn.save(tmp_path / "tree.safetensors", tree)
    spec, found = decoder["read"](tmp_path / "tree.safetensors")
    assert spec["format"] == FORMAT and not spec["plain"]
    assert spec["quantized"]["s"]["zero"] == 2  # of five levels
    leaves = {"a": tree["a"], "b/0": tree["b"][0], "c": tree["c"], "s": tree["s"]}
    for name, leaf in leaves.items():
        values, scale = found[name]
        np.testing.assert_array_equal(values * scale, qn.dequantize(leaf))
    np.testing.assert_array_equal(found["n"][0], tree["n"])


def test_damage_is_found(decoder, tmp_path):
    path = tmp_path / "tree.safetensors"
    qn.save(path, {"w": np.ones(4, np.float32)})
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match="damaged"):
        decoder["read"](path)
