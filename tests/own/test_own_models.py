"""Every kind of model through its whole life: each step works, or is refused."""

import ast
import importlib.util
import math
import pathlib
import re

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import own_models
import pytest

import quantnet_jax as qn
from quantnet_jax.trees.paths import flatten

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "your_own_model.md"
TABLE = re.compile(r"<!-- models -->\n(.*?)<!-- end of models -->", re.S)
STAGES = (
    *("rules", "train", "gap", "summary", "save", "load", "predict"),
    *("StableHLO", "ONNX"),
)
NO_ONNX = importlib.util.find_spec("onnx") is None


def live(own, folder):
    """{stage: 'yes', or the one line that refuses it}."""
    found, space = {}, {}
    apply, x = own.apply, own.example

    def rules():
        network = lambda params, x: apply((params, own.state), x)
        space["axes"] = qn.axes(network, own.params, x)
        rule = qn.Rule(own.pattern, qn.bitnet(per="channel"), out="auto")
        space["q"] = qn.tree_quantizer([rule], own.params, axes=space["axes"])
        space["qparams"] = space["q"].init(jax.random.key(0), own.params)

    def train():
        q, state = space["q"], own.state
        loss = lambda params, x: jnp.mean(apply((params, state), x) ** 2)
        update = qn.make_update(q, optax.sgd(0.1))
        step = jax.jit(lambda *args: update.step(loss, *args))
        carried = (
            own.params,
            space["qparams"],
            update.init(own.params, space["qparams"]),
        )
        for _ in range(2):
            *carried, value = step(*carried, x)
        assert math.isfinite(value)
        space["params"], space["qparams"], _ = carried
        space["hard"] = space["q"].hard(space["qparams"], space["params"]), state

    def gap():
        run = jax.jit(lambda params: jnp.mean(apply((params, own.state), x)))
        scores = qn.gap(run, space["q"], space["qparams"], space["params"], 2)
        assert scores.gap == 0.0  # straight-through

    def save():
        space["path"] = folder / "model.safetensors"
        sizes = qn.save(space["path"], space["hard"], apply=apply, example=x)
        assert sizes["payload"] == space["payload"]

    def summary():
        found = qn.summary(apply, space["hard"], x)
        assert sum(found.macs.values()) > 0 and str(found)
        space["payload"] = found.payload

    def load():
        space["predictor"] = qn.load(space["path"], apply=apply, like=space["hard"])
        tree = qn.deploy.unpack_tree(space["predictor"].params)
        chex.assert_trees_all_equal(tree, space["hard"])

    def predict():
        space["outputs"] = jax.jit(apply)(qn.dequantize_tree(space["hard"]), x)
        np.testing.assert_array_equal(space["predictor"](x), space["outputs"])

    def stablehlo():
        program = bytearray(qn.to_stablehlo(apply, space["hard"], x))
        outputs = jax.export.deserialize(program).call(x)
        np.testing.assert_allclose(outputs, space["outputs"], rtol=1e-4, atol=1e-5)

    def onnx():
        qn.to_onnx(apply, space["hard"], x)  # compares it in onnxruntime

    steps = rules, train, gap, summary, save, load, predict, stablehlo, onnx
    for name, step in zip(STAGES, steps, strict=True):
        if name == "ONNX" and NO_ONNX:
            found[name] = "not installed"
            continue
        try:
            with jax.numpy_dtype_promotion("standard"):  # optax and Flax need it
                step()
            found[name] = "yes"
        except ValueError as e:
            assert str(e) and "\n" not in str(e), (name, e)
            found[name] = f"refused: {e}"
    return found, space


@pytest.mark.parametrize("name", own_models.MODELS)
def test_each_step_of_the_life_works(name, tmp_path):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        own = own_models.MODELS[name]()
        found, space = live(own, tmp_path)
    leaves = flatten(space["hard"][0])
    quantized = [x for x in leaves.values() if isinstance(x, qn.QTensor)]
    assert quantized and all(x.levels.shape == (3,) for x in quantized)
    rows = dict(row_of(line) for line in written().splitlines()[2:])
    cells = dict(zip(STAGES, rows[name], strict=True))
    if NO_ONNX:
        cells["ONNX"] = "not installed"
    assert cells == {k: x.split(":")[0] for k, x in found.items()}, found


def row_of(line):
    name, *cells = (x.strip() for x in line.strip("| ").split("|"))
    return name, cells


def written():
    """The table of the page."""
    (table,) = TABLE.findall(PAGE.read_text("utf-8"))
    return table.strip()


def test_the_table_has_all_models_and_stages():
    lines = written().splitlines()
    assert row_of(lines[0])[1] == list(STAGES)
    assert [row_of(x)[0] for x in lines[2:]] == list(own_models.MODELS)


@pytest.mark.parametrize(("heading", "most"), [("A linen model", 20), ("An nnx", 25)])
def test_a_life_is_short(heading, most):
    """Statements of the page's own code, without the model, its data and imports."""
    section = PAGE.read_text("utf-8").split(f"## {heading}")[1].split("\n## ")[0]
    _, life = re.findall(r"```python\n(.*?)```", section, re.S)
    statements = [x for x in ast.walk(ast.parse(life)) if isinstance(x, ast.stmt)]
    names = {x.attr for x in ast.walk(ast.parse(life)) if isinstance(x, ast.Attribute)}
    whole = {"make_update", "gap", "summary", "save", "load", "to_stablehlo", "to_onnx"}
    assert whole <= names and len(statements) <= most
