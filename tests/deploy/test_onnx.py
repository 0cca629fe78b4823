"""ONNX models say what the packed network says; the judge is onnxruntime."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

from quantnet_jax import (  # noqa: E402
    activations,  # noqa: E402
    deploy,
    export_onnx,
    models,
)
from quantnet_jax.core.qtensor import QTensor  # noqa: E402
from quantnet_jax.deploy import onnx as onnx_files  # noqa: E402
from quantnet_jax.deploy.onnx import check as onnx_check  # noqa: E402
from quantnet_jax.deploy.onnx.convert import convert  # noqa: E402

SHAPE = (8, 8, 3)


def write(
    path, activation=None, dtype="float32", name="resnet8", outputs=10, **options
):
    """An artifact with random weights, binary but for stem and head."""
    rng = np.random.default_rng(0)
    act = dict(activation or {})
    sites = act.pop("sites", ("input",))
    quantizer = activations.create(act.pop("name"), **act) if act else None
    model = models.create(
        name,
        outputs=outputs,
        folded=True,
        dtype=dtype,
        act_quant=quantizer,
        sites=sites,
        **options,
    )
    image = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), image)["params"]

    def leaf(key, x):
        where = jax.tree_util.keystr(key, simple=True, separator="/")
        if not where.endswith("kernel"):
            return np.asarray(rng.uniform(0.2, 1.0, x.shape), np.float32)
        fan = np.float32(np.sqrt(np.prod(x.shape[:-1])))
        if where in ("stem/kernel", "head/kernel"):
            return rng.normal(size=x.shape).astype(np.float32) / fan
        codes = jnp.asarray(rng.integers(0, 2, x.shape), jnp.uint8)
        scale = rng.uniform(0.5, 1.5, (1,) * (len(x.shape) - 1) + x.shape[-1:])
        scale = jnp.asarray(scale.astype(np.float32) / fan)
        return QTensor(codes, jnp.asarray([-1.0, 1.0]), scale)

    spec = deploy.NetworkSpec(
        model={"name": name, **options},
        outputs=outputs,
        dtype=dtype,
        activation=activation,
        shape=SHAPE,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
        info={"names": [f"class {i}" for i in range(10)]},
    )
    deploy.save(path, jax.tree_util.tree_map_with_path(leaf, tree), spec)
    return path


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["outputs"], {"images": images})[0]


@pytest.mark.parametrize(
    ("activation", "options"),
    [
        (None, {"width": 4}),
        (None, {"width": 4, "shortcut": "B", "stem_pool": True, "act": "hardtanh"}),
        ({"name": "sign_ste"}, {"width": 4, "bi_real": True, "act": "prelu"}),
        ({"name": "pact", "bits": 2, "start": 6.0}, {"name": "small"}),
        (
            {
                "name": "learned_clip",
                "signed": True,
                "sites": ["residual", "output"],
            },
            {"width": 4},
        ),
        (
            {
                "name": "learned_clip",
                "signed": True,
                "sites": ["input", "rectified", "residual"],
            },
            {"name": "edsr", "outputs": 12, "width": 4, "image_skip": True},
        ),
    ],
    ids=[
        "shortcut A",
        "shortcut B, pool",
        "signs, prelu",
        "2-bit inputs",
        "residual and output",
        "super-resolution",
    ],
)
def test_onnx_gives_the_outputs_of_the_packed_network(tmp_path, activation, options):
    path = write(tmp_path / "model.safetensors", activation, **options)
    predictor, file = deploy.load(path, popcount=False), tmp_path / "model.onnx"
    result = onnx_files.write(file, predictor)
    assert result["file"] == str(file) and result["bytes"] == file.stat().st_size
    assert result["check"]["difference"] <= 1e-4 and result["check"]["differ"] == 0
    # Another batch size and other images than those of the command's own check.
    images = np.random.default_rng(1).integers(0, 256, (5, *SHAPE), np.uint8)
    found, expected = run(file, images), np.asarray(predictor(images))
    wanted = (16, 16, 3) if options.get("name") == "edsr" else (10,)
    assert found.shape == (5, *wanted) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.ptp(expected, axis=0).max() > 1e-2  # they do depend on the image


def test_model_says_what_it_is_and_moves_the_channels_once(tmp_path, capsys):
    path = write(tmp_path / "m.safetensors", width=4)
    assert export_onnx.main([str(path), f"--out={tmp_path / 'x.onnx'}"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "no 1-bit numbers" in first and "16 of 16 images agree" in second
    model = onnx.load(tmp_path / "x.onnx")
    onnx.checker.check_model(model, full_check=True)
    about = {x.key: json.loads(x.value) for x in model.metadata_props}
    assert about["quantnet_jax"] == json.loads(
        json.dumps(deploy.load(path).spec.to_json())
    )
    assert about["quantnet_jax"]["info"]["names"][9] == "class 9"
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Transpose") == 1 and operators.count("Conv") == 7
    assert sorted(x.name for x in tmp_path.iterdir()) == ["m.safetensors", "x.onnx"]


@pytest.mark.parametrize(
    ("operator", "says"),
    [
        ("Identity", "16 of 16 images differ"),
        ("Concat", "onnxruntime does not run the model: "),
    ],
)
def test_check_finds_a_wrong_model(operator, says, tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "m.safetensors", width=4)
    whole = onnx_files.of_predictor

    def broken(predictor):
        model = whole(predictor)
        next(x for x in model.graph.node if x.op_type == "Relu").op_type = operator
        return model

    monkeypatch.setattr(onnx_files, "of_predictor", broken)
    assert export_onnx.main([str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert [x.name for x in tmp_path.iterdir()] == ["m.safetensors"]


SIGNS = {"name": "sign_ste"}


def with_inputs(predictor, change):
    """The predictor of other images."""
    apply = lambda params, images: predictor.apply(params, change(images))
    jitted = jax.jit(apply)
    return dataclasses.replace(predictor, apply=apply, run=jitted)


def test_rounding_may_turn_signs_in_a_few_images(tmp_path):
    path = write(tmp_path / "m.safetensors", SIGNS, width=4, bi_real=True, act="prelu")
    predictor = deploy.load(path)
    content = onnx_files.of_predictor(predictor).SerializeToString()
    images = np.random.default_rng(3).integers(0, 256, (1500, *SHAPE), np.uint8)
    # As an engine that rounds the normalized images much worse than float32 does.
    other = with_inputs(predictor, lambda x: x.astype(jnp.float32) + 4e-3)
    found = onnx_check.check(content, other, [images[:1200], images[1200:]])
    assert found["examples"] == 1500 and 0 < found["differ"] < 750
    assert 0 < found["difference"] <= 1e-4 * 10
    exact = onnx_check.check(content, predictor, [images])
    assert exact["differ"] < found["differ"]
    # Without quantized activations nothing excuses an image.
    real = deploy.load(write(path, width=4))
    content = onnx_files.of_predictor(real).SerializeToString()
    last = jnp.arange(50).reshape(-1, 1, 1, 1) == 49
    wrong = with_inputs(real, lambda x: jnp.where(last, 255 - x, x))
    with pytest.raises(ValueError, match="outputs of 1 of 50 images differ"):
        onnx_check.check(content, wrong, [images[:50]])


def test_few_images_that_are_wrong_are_no_rounding(tmp_path):
    path = write(tmp_path / "m.safetensors", SIGNS, width=4, bi_real=True, act="prelu")
    predictor = deploy.load(path)
    content = onnx_files.of_predictor(predictor).SerializeToString()
    images = np.random.default_rng(3).integers(0, 256, (40, *SHAPE), np.uint8)
    few = images[:, 0, 0, 0] > 200
    assert 0 < few.sum() < 12
    change = lambda x: jnp.where(x[:, :1, :1, :1] > 200, 255 - x, x)
    message = f"inputs of stage1_block0/conv1_input of {few.sum()} of 40 images differ"
    with pytest.raises(ValueError, match=message):
        onnx_check.check(content, with_inputs(predictor, change), [images])


@pytest.mark.parametrize("step", ["quantizer", "convolution", "head"])
def test_a_step_that_is_wrong_is_named(tmp_path, step):
    path = write(tmp_path / "m.safetensors", SIGNS, width=4, bi_real=True, act="prelu")
    predictor = deploy.load(path)
    model = onnx_files.of_predictor(predictor)
    of = lambda kind: [node for node in model.graph.node if node.op_type == kind]
    if step == "quantizer":
        signs = [x for x in of("GreaterOrEqual") if x.input[0].endswith("/real")]
        signs[2].op_type = "Less"
        where = "the outputs of stage2_block0/conv1_input"
    elif step == "convolution":  # the second of two of the same shape in a block
        of("Conv")[2].input[1] = of("Conv")[1].input[1]
        where = "the inputs of stage2_block0/conv1_input"
    else:
        (head,), where = of("MatMul"), "the outputs"
        (weights,) = (x for x in model.graph.initializer if x.name == head.input[1])
        values = 1.001 * onnx.numpy_helper.to_array(weights)
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    images = np.random.default_rng(3).integers(0, 256, (8, *SHAPE), np.uint8)
    with pytest.raises(ValueError, match=f"{where} of 8 of 8 images differ"):
        onnx_check.check(model.SerializeToString(), predictor, [images])


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "m.safetensors", dtype="bfloat16", name="small")
    find = onnx_files.importlib.util.find_spec
    cases = {
        "computes in bfloat16, expected float32": str(path),
        "missing.safetensors not found": str(tmp_path / "missing.safetensors"),
    }
    for message, file in cases.items():
        assert export_onnx.main([file]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    hide = lambda name: None if name == "onnx" else find(name)
    monkeypatch.setattr(onnx_files.importlib.util, "find_spec", hide)
    assert export_onnx.main([str(path)]) == 1
    assert "pip install onnx" in capsys.readouterr().err


def test_without_onnxruntime_it_says_that_nothing_was_checked(
    tmp_path, capsys, monkeypatch
):
    path = write(tmp_path / "m.safetensors", name="small")
    find = onnx_files.importlib.util.find_spec
    hide = lambda name: None if name == "onnxruntime" else find(name)
    monkeypatch.setattr(onnx_files.importlib.util, "find_spec", hide)
    assert export_onnx.main([str(path)]) == 0
    assert "not checked" in capsys.readouterr().out
    assert (tmp_path / "m.onnx").is_file()


# Each makes an array of rank 4 from images.
WAYS = {
    "slice and pad": lambda x: jnp.pad(x[:, 1:7], ((0, 0), (1, 1), (0, 0), (0, 1))),
    "reshape": lambda x: jnp.pad(x, ((0, 0),) * 3 + ((0, 1),)).reshape(-1, 8, 8, 4),
    "every second pixel": lambda x: conv(x)[:, ::2, ::2, 1:],
    "pooled": lambda x: jax.lax.reduce_window(
        conv(x), -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
    ),
    "select": lambda x: jnp.where(conv(x) > 0.1, jnp.tanh(conv(x)), conv(x) ** 2),
    "edge": lambda x: jnp.pad(conv(x), ((0, 0), (2, 1), (0, 3), (0, 0)), mode="edge"),
    "sum of channels": lambda x: conv(x).sum(-1, keepdims=True),
}


def conv(x):
    w = np.random.default_rng(2).normal(size=(3, 3, 3, 4)).astype(np.float32)
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("way", WAYS)
def test_single_operations_equal_those_of_jax(way):
    def function(images):
        x = WAYS[way](images.astype(jnp.float32) / 255.0)
        return x.mean((1, 2)) - 0.5

    image = jax.ShapeDtypeStruct((1, *SHAPE), np.uint8)
    model = convert(function, (image,), name="one", names=("images", "outputs"))
    model = model.SerializeToString()
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    np.testing.assert_allclose(run(model, images), function(images), atol=1e-5)
