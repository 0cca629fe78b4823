"""The examples on a few images: they learn, and ship two weight values."""

import inspect
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import noisy, normal

import quantnet_jax as qn
from examples import binarize_your_model as example
from examples import flax_tutorial_cnn, gpt, vit

OPTIONS = "--train-size=160 --test-size=60 --batch-size=16 --epochs=3"


@pytest.mark.parametrize("framework", example.FRAMEWORKS)
def test_model_is_trained_and_binary(framework, tmp_path, capsys):
    out = tmp_path / "result.json"
    words = [f"--framework={framework}", *OPTIONS.split(), f"--out={out}"]
    with jax.numpy_dtype_promotion("standard"):  # optax's adam needs it
        result = example.main(words)
    assert list(result["values"]) == ["body_a/kernel", "body_b/kernel"]
    assert all(values == [-1.0, 1.0] for values in result["values"].values())
    losses = result["losses"]
    assert len(losses) == 3 and all(math.isfinite(x) for x in losses)
    assert losses[-1] < 0.8 * losses[0]
    assert 0.2 < result["hard"] <= 1 and 0.2 < result["soft"] <= 1  # chance is 0.1
    assert result["gap"] == result["soft"] - result["hard"]

    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert f"hard  {100 * result['hard']:6.2f}%" in printed
    assert "body_a/kernel: 2 values" in printed
    assert result.items() <= written.items()
    assert {"versions", "device", "commit"} <= written.keys()
    assert f"--framework={framework} --train-size=160" in written["command"]


@pytest.mark.parametrize("model", [example.LinenModel, example.NnxModel])
def test_models_know_nothing_of_the_library(model):
    source = inspect.getsource(example)
    begin, end = "Your model begins here", "Your model ends here"
    assert source.index(begin) < source.index(f"class {model.__name__}")
    assert source.index(inspect.getsource(model)) < source.index(end)
    yours = source[source.index(begin) : source.index(end)]
    assert "qn" not in yours and "quantnet" not in yours
    assert "quantnet_jax" not in "".join(
        line for line in source[: source.index(begin)].splitlines() if "import" in line
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--framework=torch"],
        ["--epochs=0"],
        ["--batch-size=0"],
        ["--train-size=10"],
        ["--train-size=20000"],
        ["--test-size=0"],
    ],
)
def test_impossible_options_end_in_one_line(options, capsys):
    with pytest.raises(SystemExit) as e:
        example.main(options)
    assert e.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].count("error: ") == 1


def test_vit_is_trained(capsys):
    words = ["--steps=40", "--depth=2", "--batch-size=20", "--test-size=200"]
    with jax.numpy_dtype_promotion("standard"):  # optax's adam needs it
        result = vit.main(words)
    assert result["last loss"] < 0.9 * result["first loss"]
    assert min(result["soft"], result["hard"]) > 0.2  # chance is 0.1
    assert f"hard  {100 * result['hard']:6.2f}%" in capsys.readouterr().out


MEMBERS = {
    "attention/query": qn.quantnet(width=4, scale="mean_abs"),
    "attention/key": qn.quantnet(width=4, scale="learned", bits=2),
    "attention/value": qn.lsq(bits=2),
    "attention/out": qn.adabin(),
    "up": qn.twn(),
    "down": qn.lq_nets(bits=2),
}


def hard_logits(model, params, images, qparams=None, **options):
    """(qparams, logits of the hard weights), a member for each kernel of a layer."""
    apply = lambda params, images: model.apply({"params": params}, images)
    axes = qn.axes(apply, params, images) if options.get("out") == "auto" else None
    rules = [qn.Rule(f"block.*/{k}/kernel", x, **options) for k, x in MEMBERS.items()]
    q = qn.tree_quantizer(rules, params, axes=axes)
    qparams = qparams or noisy(jax.jit(q.init)(jax.random.key(1), params))
    hard = jax.jit(lambda p, w: qn.dequantize_tree(q.hard(p, w)))(qparams, params)
    return qparams, jax.jit(apply)(hard, images)


def test_a_loop_and_a_scan_of_layers_have_the_same_hard_logits():
    """With all parameters away from their start, and those of the scan in the loop."""
    depth, images = 3, jnp.asarray(normal(0, (2, 14, 14, 1)))
    loop, scan = (vit.ViT(depth, 8, scan=scan) for scan in (False, True))
    shapes = jax.eval_shape(loop.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    random = lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype)
    params = jax.tree.map(random, shapes)
    stacked = {k: x for k, x in params.items() if not k.startswith("block")}
    layers = [params[f"block{i}"] for i in range(depth)]
    stacked["blocks"] = jax.tree.map(lambda *x: jnp.stack(x), *layers)

    qparams, logits = hard_logits(scan, stacked, images, out="auto")
    of_loop = {
        path.replace("blocks", f"block{i}"): jax.tree.map(lambda x, i=i: x[i], x)
        for path, x in qparams.items()
        for i in range(depth)
    }
    _, wanted = hard_logits(loop, params, images, of_loop, out="auto")
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
    _, one_scale_for_all = hard_logits(scan, stacked, images)
    assert np.abs(one_scale_for_all - wanted).max() > 1e-2  # not rounding


# nnx


def test_flax_tutorial_cnn_is_trained_and_saved(tmp_path, monkeypatch):
    few = qn.data.subset(qn.data.load("bundled"), 64, 40)
    monkeypatch.setattr(qn.data, "load", lambda name: few)
    with jax.numpy_dtype_promotion("standard"):
        gap, predictor = flax_tutorial_cnn.main(8, 16, tmp_path / "cnn.safetensors")
        logits = predictor(few.test_image.astype("f4") / 255)
    hard, state = qn.deploy.unpack_tree(predictor.params)
    kernels = {k: x["kernel"] for k, x in hard.items() if "kernel" in x}
    quantized = {k for k, x in kernels.items() if isinstance(x, qn.QTensor)}
    assert quantized == {"conv2", "dense1"}
    assert np.abs(state["norm1"]["mean"]).max() > 0
    found = np.mean(logits.argmax(-1) == few.test_label)
    np.testing.assert_allclose(found, gap.hard, atol=1e-6)
    source = inspect.getsource(flax_tutorial_cnn)
    lines = [x for x in source[source.index("class CNN") :].splitlines() if x.strip()]
    assert len(lines) <= 40


def test_equinox_network_is_trained_and_saved(tmp_path, monkeypatch):
    equinox_mlp = pytest.importorskip("examples.equinox_mlp", exc_type=ImportError)
    few = qn.data.subset(qn.data.load("bundled"), 64, 40)
    monkeypatch.setattr(qn.data, "load", lambda name: few)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        gap, predictor = equinox_mlp.main(4, 16, tmp_path / "mlp.safetensors")
        logits = predictor(few.test_image.reshape(40, -1).astype("f4") / 255)
    layers = qn.deploy.unpack_tree(predictor.params).layers
    packed = [isinstance(layer.weight, qn.QTensor) for layer in layers]
    assert packed == [False, True, True, False]
    assert layers[1].weight.scale.shape == (1, 1)  # bitnet's, of the tensor
    found = np.mean(logits.argmax(-1) == few.test_label)
    np.testing.assert_allclose(found, gap.hard, atol=1e-6)


TINY = "--part=0.03 --steps=20 --context=8 --size=16 --layers=2 --generate=12"


@pytest.mark.parametrize("method", ["bitnet", "quantnet"])
def test_gpt_generates_from_its_file_what_the_hard_tree_does(method, tmp_path, capsys):
    path = tmp_path / "gpt.safetensors"
    words = [*TINY.split(), f"--method={method}", f"--out={path}"]
    with jax.numpy_dtype_promotion("standard"):
        result = gpt.main(words)
        hard, apply = qn.dequantize_tree(result["hard tree"]), jax.jit(result["apply"])
        made = gpt.generate(lambda x: apply(hard, x), result["made"][:8], 12, 8)
    assert result["hard"] < 7 and math.isfinite(result["soft"])  # bits of a character
    assert result["bytes"] == path.stat().st_size < 0.5 * result["float bytes"]
    assert made == result["made"] and len(set(made[8:])) > 1
    loaded = qn.load(path, apply=result["apply"])
    chex.assert_trees_all_equal(
        qn.deploy.unpack_tree(loaded.params), jax.device_get(result["hard tree"])
    )
    assert f"hard  {result['hard']:.3f} bits a character" in capsys.readouterr().out
    kernels = result["hard tree"]["blocks"][0]
    values = {"bitnet": 3, "quantnet": 2}[method]
    assert kernels["qkv"]["kernel"].levels.shape == (values,)


def test_gpt_refuses_a_text_that_is_too_short(tmp_path, capsys):
    (tmp_path / "short.txt").write_text("To be")
    with pytest.raises(SystemExit):
        gpt.main([f"--text={tmp_path / 'short.txt'}"])
    assert "5 characters, too few" in capsys.readouterr().err
