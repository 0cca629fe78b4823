"""Export of any tree with QTensor leaves, and the spec that files carry."""

import dataclasses
import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from artifacts import SPEC, make_params

import quantnet_jax as qn
from quantnet_jax import deploy, models
from quantnet_jax.trees.tree import dequantize_tree

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)


def batches():
    return iter((IMAGES[:5], IMAGES[5:]))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, result) of the export of a tree made by hand."""
    folder = tmp_path_factory.mktemp("export") / "new" / "folder"
    return folder, deploy.export_tree(make_params(), SPEC, folder, batches=batches)


def test_tree_of_nobody_is_exported_and_predicts_the_same(exported):
    folder, made = exported
    model = SPEC.network()
    x = (IMAGES.astype(np.float32) / 255 - 0.5) / 0.25
    wanted = jax.jit(model.apply)({"params": dequantize_tree(make_params())}, x)
    for outputs in made["outputs"].values():
        np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-5)
    assert set(made["outputs"]) == {"hard", "packed", "exported"}
    assert (made["differ"], made["popcount"], made["examples"]) == (0, None, 9)
    assert made["file"] == (folder / "model.safetensors").stat().st_size
    loaded = qn.load(folder / "model.safetensors")
    assert loaded.spec == SPEC
    np.testing.assert_allclose(loaded(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    program = (folder / "model.stablehlo").read_bytes()
    found = jax.export.deserialize(bytearray(program)).call(IMAGES)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_differs_is_refused_and_the_old_files_stay(exported):
    folder, _ = exported
    (folder / ".unverified-killed").mkdir()  # of an export that was killed
    (folder / ".unverified-killed" / "model.safetensors").write_text("")
    before = {x.name: x.read_bytes() for x in folder.iterdir() if x.is_file()}
    shifted = lambda params: np.zeros((9, 3), np.float32)
    with pytest.raises(ValueError, match="of 9 predictions 9 of model.safetensors and"):
        deploy.export_tree(
            make_params(), SPEC, folder, batches=batches, predict=shifted
        )
    assert {x.name: x.read_bytes() for x in folder.iterdir()} == before
    # What counts as a difference is for the caller to say.
    deploy.export_tree(
        make_params(),
        SPEC,
        folder,
        batches=batches,
        predict=shifted,
        same=lambda one, other: np.ones(len(one), bool),
    )


def test_network_whose_outputs_are_images(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    spec = deploy.NetworkSpec(
        model={"name": "autoencoder", "width": 4},
        outputs=1,
        shape=(8, 8, 1),
        mean=(0.5,),
        std=(0.25,),
        task="reconstruction",
    )
    model = models.create("autoencoder", outputs=1, width=4)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    params = variables["params"]
    q = qn.tree_quantizer([qn.Rule("conv.*/kernel", qn.xnor())], params)
    hard = q.hard(q.init(jax.random.key(1), params), params)
    tree = models.fold(hard, variables["batch_stats"])
    made = deploy.export_tree(tree, spec, tmp_path, batches=batches, onnx=True)
    assert made["onnx"]["examples"] == 9 and made["onnx"]["differ"] == 0
    assert made["outputs"]["packed"].shape == (9, 8, 8, 1)
    assert {x.name for x in tmp_path.iterdir()} == set(deploy.export.FILES)


def test_spec_goes_through_json():
    spec = dataclasses.replace(SPEC, popcount=False, floats="float16")
    data = json.loads(json.dumps(spec.to_json()))
    assert deploy.NetworkSpec.from_json(data | {"float": "float16"}) == spec
    assert not {"floats", "float"} & data.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (8, 8)}, "shape=.8, 8., expected 3 numbers"),
        ({"shape": (8, 8, 5000)}, "shape=5000, expected a whole number from 1 to 4096"),
        ({"mean": (0.5, 0.5)}, "mean=.* expected 1 numbers"),
        ({"std": (0.0,)}, "std=0.0, expected a number from 1e-06"),
        ({"outputs": 0}, "outputs=0, expected a whole number from 1"),
        ({"floats": "bfloat16"}, "floats='bfloat16'; did you mean 'float16'"),
        ({"activation": "pact"}, "activation='pact', expected a name and options"),
        ({"info": ["coat"]}, "info=.'coat'., expected an object"),
    ],
)
def test_spec_is_checked_where_it_is_made(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **change)
