"""What ships: bit-exact files, predictions equal to hard evaluation, no more."""

import dataclasses
import json
import math
import re
import shutil

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from artifacts import SPEC
from safetensors import safe_open
from tiny import tiny_config
from util import noisy

import quantnet_jax
from quantnet_jax import activations, deploy, evaluate, export, models
from quantnet_jax import run as train
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.deploy.format.packed import Packed, float_tree, leaves
from quantnet_jax.deploy.summary import summarize_network
from quantnet_jax.logging.progress import summary
from quantnet_jax.models.norm import BatchNorm
from quantnet_jax.training import experiment
from quantnet_jax.trees.tree import dequantize_tree

pytestmark = pytest.mark.optimized

KERNELS = {"conv": (3, 3, 2, 3), "dense": (5, 3)}


def tensor(rng, shape, levels, *, table, scale):
    """A QTensor of random codes: 'table' and 'scale' are one, or one per channel."""
    channels = shape[-1]
    tables = (channels, levels) if table == "channel" else (levels,)
    scales = (1,) * (len(shape) - 1) + (channels,) if scale == "channel" else ()
    codes = rng.integers(0, levels, shape)
    codes.flat[0] = levels - 1
    return QTensor(
        jnp.asarray(codes, jnp.uint8),
        jnp.asarray(np.sort(rng.normal(size=tables)), jnp.float32),
        jnp.asarray(rng.uniform(0.1, 2.0, scales), jnp.float32),
    )


@pytest.fixture(scope="module")
def tree():
    """A QTensor of every kind, and floats."""
    rng = np.random.default_rng(0)
    found = {"norm": {"scale": jnp.asarray(rng.normal(size=3), jnp.float32)}}
    for number, levels in enumerate((2, 3, 4, 5, 8, 16, 17, 64, 100, 200, 256)):
        kind, shape = list(KERNELS.items())[number % 2]
        choice = ("one", "channel")
        found[f"{kind}_{levels}"] = {
            "kernel": tensor(
                rng,
                shape,
                levels,
                table=choice[number % 3 == 0],
                scale=choice[number // 2 % 2],
            )
        }
    return found


@pytest.fixture(scope="module")
def packed(tree):
    return jax.jit(deploy.pack_tree)(tree)


def bits_of(x):
    x = np.asarray(x)
    return x.dtype, x.shape, x.tobytes()


# Files --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_kind_of_tensor_comes_back_bit_for_bit(dtype, tree, packed, tmp_path):
    path = tmp_path / "model.safetensors"
    sizes = deploy.write(path, packed, {"a": [1, "ü"]}, dtype=dtype)
    again, spec = deploy.read(path)
    assert spec["a"] == [1, "ü"]
    restored = jax.jit(deploy.unpack_tree)(again)
    payload = 0
    for name, layer in tree.items():
        if name == "norm":
            wanted = np.asarray(layer["scale"]).astype(dtype).astype(np.float32)
            assert bits_of(again[name]["scale"]) == bits_of(wanted)
            payload += 3 * np.dtype(dtype).itemsize
            continue
        old, new = layer["kernel"], restored[name]["kernel"]
        for part in ("codes", "levels", "scale"):
            assert bits_of(getattr(old, part)) == bits_of(getattr(new, part)), name
        bits = (old.levels.shape[-1] - 1).bit_length()
        assert spec["quantized"][f"{name}/kernel"]["bits"] == bits
        payload += -(-math.prod(old.shape) * bits // 8)
        payload += 4 * old.levels.size + 4 * old.scale.size
        assert again[name]["kernel"].nbytes == packed[name]["kernel"].nbytes
    assert sizes == {"payload": payload, "file": path.stat().st_size}
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert sizes["file"] == 8 + header + payload
    plain = tmp_path / "plain"
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(x.name for x in tmp_path.iterdir()) == [path.name, plain.name]


def test_values_of_packed_weights_are_those_of_their_tensors(tree, packed):
    new, old = jax.jit(lambda a, b: (float_tree(a), dequantize_tree(b)))(packed, tree)
    for name, layer in tree.items():
        if name == "norm":
            continue
        qt = jax.tree.map(np.asarray, layer["kernel"])
        values = np.empty(qt.shape, np.float32)
        for where in np.ndindex(qt.shape):
            table = qt.levels if qt.levels.ndim == 1 else qt.levels[where[-1]]
            values[where] = table[qt.codes[where]]
        wanted = bits_of(values * qt.scale)
        assert bits_of(new[name]["kernel"]) == bits_of(old[name]["kernel"]) == wanted


def part(**other):
    """A packed tensor of 3 x 4 binary weights, with another part."""
    parts = {"codes": jnp.zeros(2, jnp.uint8), "scale": jnp.ones(())}
    return Packed(**parts | {"levels": jnp.asarray([-1.0, 1.0])} | other, shape=(3, 4))


def deep(count):
    """A leaf in so many dicts."""
    return {"a": deep(count - 1)} if count else np.ones(2)


@pytest.mark.parametrize(
    "params, dtype, words",
    [
        ({"a": np.ones(2)}, "float64", "`dtype` is 'float64'"),
        (
            {"a": np.float32([1e6])},
            "float16",
            "a: not every number is finite as float16",
        ),
        ({"a": np.full(2, np.nan)}, "float32", "a: not every number is finite"),
        ({"a": np.full(2, 1j)}, "float32", "a: a file cannot hold complex128 values"),
        ({"a": jax.random.key(0)}, "float32", "a: a file cannot hold key<fry> values"),
        ({"a": jnp.ones(2, jnp.float8_e4m3fn)}, "float32", "a: .* hold float8_e4m3fn"),
        ({"a": {"b": "text"}}, "float32", "a/b is a str, expected an array"),
        ({"a": [math.nan]}, "float32", "a/0=nan, expected a finite number"),
        (
            {"a": {(1, 2): np.ones(2)}},
            "float32",
            r"keys .\(1, 2\).* of 'a' are not all",
        ),
        ({1: np.ones(2), "1": np.ones(2)}, "float32", "keys .1, '1'. are not all str"),
        (
            {"a": part(levels=jnp.ones((3, 2)))},
            "float32",
            "a: levels have shape .3, 2.",
        ),
        ({"a": part(scale=jnp.ones(2))}, "float32", "a: scale of shape .2,. does not"),
        ({"a": part(scale=jnp.full((), jnp.nan))}, "float32", "a:scale: not every"),
        ({"a": part(codes=jnp.zeros(3, jnp.uint8))}, "float32", "a:codes has shape"),
        ({"a/b": np.ones(2), "a": {"b": np.ones(2)}}, "float32", "the name 'a/b'"),
        (deep(65), "float32", "has more than 64 parts"),
    ],
)
def test_what_cannot_be_written(params, dtype, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        deploy.write(tmp_path / "model.safetensors", params, {}, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_parts_of_half_precision_are_written_as_float32(tmp_path):
    half = part(levels=jnp.asarray([-1, 1], jnp.bfloat16), scale=jnp.float16(0.5))
    path = tmp_path / "model.safetensors"
    sizes = deploy.write(path, {"a": half, "count": np.int64(3)}, {})
    again, _ = deploy.read(path)
    assert sizes["payload"] == 2 + 8 + 4 + 8
    assert again["a"].levels.tolist() == [-1, 1] and again["a"].scale == 0.5
    assert again["a"].levels.dtype == again["a"].scale.dtype == jnp.float32
    assert again["count"] == 3 and again["count"].dtype == np.int64


def test_equal_networks_make_equal_files(packed, tmp_path):
    for name in ("a", "b"):
        deploy.write(tmp_path / name, packed, {"x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    content = (tmp_path / "a").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["quantnet_jax", "sha256"]


def test_file_of_a_binary_network_is_at_its_floor(tmp_path):
    # ResNet-20 of CIFAR-10: 267,264 bits, 9,832 bytes of folded normalizations, stem
    # and head, 2,688 bytes of scales; and two levels for each of 18 kernels.
    model = models.create("resnet20", outputs=10, width=16, folded=True)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    pattern = models.kernel_rule("inner")

    def leaf(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not re.fullmatch(pattern, name):
            return np.ones(x.shape, np.float32)
        codes = np.zeros(math.prod(x.shape) // 8, np.uint8)
        scale = np.ones((1, 1, 1, x.shape[-1]), np.float32)
        return Packed(codes, np.float32([-1, 1]), scale, x.shape)

    params = jax.tree_util.tree_map_with_path(leaf, shapes)
    sizes = deploy.save(tmp_path / "model.safetensors", params, SPEC)
    floor = 267_264 // 8 + 9_832 + 2_688
    assert sizes["payload"] == floor + 18 * 2 * 4 <= 1.02 * floor
    assert sizes["file"] < 1_084_392 / 8


# Runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, result) of a run that was exported at its end."""
    workdir = tmp_path_factory.mktemp("deploy") / "run"
    return workdir, train.train(exported(), workdir)


def exported():
    """A configuration that is exported at the end; one evaluation, no more programs."""
    return tiny_config(export=True, eval_every=0.96, recalibration_batches=0)


@pytest.fixture(scope="module")
def predictor(finished):
    return quantnet_jax.load(finished[0] / "export" / "model.safetensors")


def images_of(predictor, count):
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, *predictor.spec.shape)).astype(np.uint8)


def test_run_ends_with_the_accuracy_of_what_ships(finished):
    workdir, result = finished
    assert json.loads((workdir / "result.json").read_text()) == result
    assert result["packed"] == result["exported"] == result["hard"]
    files = {x.name for x in (workdir / "export").iterdir()}
    assert files == {"model.safetensors", "model.stablehlo"}
    rows = [line.split() for line in summary(result).splitlines()]
    shown = f"{100 * result['hard']:.2f}%"
    assert ["packed", shown] in rows and ["exported", shown] in rows
    page = (workdir / "report.html").read_text()
    assert "Packed" in page and "Exported" in page
    shown = json.loads((workdir / "exhibits.json").read_text())
    counts = np.asarray(shown["panels"]["matrix"]["counts"])
    assert counts.sum() == result["examples"]
    assert np.trace(counts) == round(result["hard"] * result["examples"])
    loaded = quantnet_jax.load(workdir / "export" / "model.safetensors", popcount=False)
    size = summarize_network(loaded.params, loaded.spec)
    assert shown["size"]["payload"] == size.payload
    assert "Confusion matrix" in page and set(shown["kernels"]) == set(result["layers"])


def test_file_holds_the_network_and_nothing_else(finished, predictor):
    path = finished[0] / "export" / "model.safetensors"
    with safe_open(path, framework="numpy") as file:
        names = set(file.keys())
    quantized = {"conv1/kernel", "conv2/kernel"}
    expected = {f"{n}:{part}" for n in quantized for part in ("codes", "levels")}
    expected |= {f"{n}:scale" for n in quantized} | {"stem/kernel"}
    expected |= {f"{n}/{x}" for n in ("stem_bn", "bn1", "bn2") for x in ("bias",)}
    expected |= {f"{n}/scale" for n in ("stem_bn", "bn1", "bn2")}
    expected |= {"head/kernel", "head/bias"}
    assert names == expected
    header, spec = deploy.read(path)[1], predictor.spec
    assert header["quantized"]["conv1/kernel"] == {"bits": 1, "shape": [3, 3, 4, 4]}
    assert spec.origin["method"] == "quantnet" and spec.origin["data"] == "synthetic"
    assert spec.model["name"] == "small" and spec.activation is None
    assert spec.task == "classification" and len(spec.info["classes"]) == spec.outputs
    assert {"versions", "commit"} <= spec.origin.keys()
    assert spec.origin["versions"]["quantnet_jax"] == quantnet_jax.__version__


def test_program_runs_for_any_batch_size_on_any_platform(finished, predictor):
    program = (finished[0] / "export" / "model.stablehlo").read_bytes()
    exported = jax.export.deserialize(bytearray(program))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    for count in (1, 7):
        images = images_of(predictor, count)
        outputs = exported.call(images)
        assert outputs.shape == (count, predictor.spec.outputs)
        np.testing.assert_allclose(outputs, predictor(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(np.float32),
        lambda x: x[0],
        lambda x: x[:, 1:],
        lambda x: x[..., :1],
        lambda x: x[None],
    ],
)
def test_predictor_refuses_other_images(change, predictor):
    images = change(images_of(predictor, 2))
    with pytest.raises(ValueError, match=r"images are .*expected uint8\[N, 8, 8, 3\]"):
        predictor(images)


def test_export_command(finished, tmp_path, capsys):
    workdir, result = finished
    stripped = {k: v for k, v in result.items() if k not in ("packed", "exported")}
    path, out = workdir / "result.json", tmp_path / "out"
    path.write_text(json.dumps(stripped))
    words = [f"--workdir={workdir}", f"--out={out}", "--float=float16"]
    assert export.main(words) == 0
    assert json.loads(path.read_text()) == stripped  # rounded: not what was scored
    printed = capsys.readouterr().out
    assert str(out) in printed and "payload" in printed and "50 images" in printed
    assert export.main([f"--workdir={workdir}"]) == 0
    assert json.loads(path.read_text()) == result
    assert " 0 predictions differ" in capsys.readouterr().out
    whole, half = (
        deploy.read(folder / "model.safetensors")[0]["head"]["kernel"]
        for folder in (workdir / "export", out)
    )
    rounded = np.asarray(whole).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(half, rounded)
    assert export.main(["--workdir=no"]) == 1
    assert export.main([f"--workdir={workdir}", "--step=99"]) == 1
    assert capsys.readouterr().err.count("error: ") == 2


def test_export_command_with_onnx(finished, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    workdir, _ = finished
    words = [f"--workdir={workdir}", f"--out={tmp_path}"]
    assert export.main([*words, "--onnx"]) == 0
    printed = capsys.readouterr().out
    assert "model.onnx: checked with onnxruntime: outputs of 50 of 50 images" in printed
    assert (
        f"model.stablehlo: made by jax {jax.__version__}; runs by a jaxlib" in printed
    )
    files = lambda: {x.name for x in tmp_path.iterdir()}
    assert files() == {"model.safetensors", "model.stablehlo", "model.onnx"}
    # One of another export would not belong to the others.
    assert export.main(words) == 0
    assert files() == {"model.safetensors", "model.stablehlo"}


def test_statistics_of_hard_weights_may_ship(finished, tmp_path, monkeypatch):
    workdir, result = finished
    words = [f"--workdir={workdir}", f"--out={tmp_path}", "--bn"]
    assert export.main(words) == 1  # the run has no batches for it
    config = json.loads((workdir / "config.json").read_text())
    copied = tmp_path / "run"
    shutil.copytree(workdir, copied)
    (copied / "config.json").write_text(
        json.dumps(config | {"recalibration_batches": 2})
    )
    scores = evaluate.evaluate(str(copied))
    made = export.export(str(copied), str(tmp_path / "out"), bn=True)
    assert made["hard"] == made["packed"] == scores["hard_bn"]
    # That of the run's own statistics is what its result goes on to say.
    assert json.loads((copied / "result.json").read_text()) == result
    plain = deploy.load(copied / "export" / "model.safetensors")
    moved = deploy.load(tmp_path / "out" / "model.safetensors")
    norms = [p["bn1"]["scale"] for p in (plain.params, moved.params)]
    assert not np.allclose(*norms)


def test_rounded_network_is_held_to_its_own_predictions(tmp_path, monkeypatch):
    exp = experiment.build(exported(), jax.devices()[:1])
    made = export.export_state(exp, exp.state, tmp_path, "float16")
    assert made["examples"] == 50
    to_stablehlo = deploy.stablehlo.of_predictor

    def other(predictor):  # a program of another network
        apply = lambda params, images: -predictor.apply(params, images)
        return to_stablehlo(dataclasses.replace(predictor, apply=apply))

    monkeypatch.setattr(deploy.stablehlo, "of_predictor", other)
    before = {x.name: x.read_bytes() for x in tmp_path.iterdir()}
    assert len(before) == 2
    with pytest.raises(ValueError, match=r"0 of model.safetensors and 50 of model.st"):
        export.export_state(exp, exp.state, tmp_path, "float16")
    assert {x.name: x.read_bytes() for x in tmp_path.iterdir()} == before


def test_files_have_their_names_once_they_are_verified(tmp_path, monkeypatch):
    exp = experiment.build(exported(), jax.devices()[:1])
    (tmp_path / "model.safetensors").write_text("of before")
    test_images, seen = export.test_images, []

    def looking(*args):
        seen.extend(x.name for x in tmp_path.iterdir() if x.is_file())
        assert (tmp_path / "model.safetensors").read_text() == "of before"
        return test_images(*args)

    monkeypatch.setattr(export, "test_images", looking)
    export.export_state(exp, exp.state, tmp_path)
    assert seen == ["model.safetensors"] * 2
    files = {x.name for x in tmp_path.iterdir()}
    assert files == {"model.safetensors", "model.stablehlo"}
    deploy.load(tmp_path / "model.safetensors")


def test_difference_ends_the_run_and_changes_no_file(finished, monkeypatch, capsys):
    workdir, result = finished
    load = deploy.load

    def other(path, **options):
        found = load(path, **options)
        apply = lambda params, images: -found.apply(params, images)
        return dataclasses.replace(found, run=apply, apply=apply)

    monkeypatch.setattr(deploy.export, "load", other)
    before = {x: x.read_bytes() for x in (workdir / "export").iterdir()}
    assert len(before) == 2
    with pytest.raises(ValueError, match="50 of model.safetensors") as e:
        train.train(exported(), workdir)
    assert "export: " in str(e.value) and "\n" not in str(e.value)
    assert {x: x.read_bytes() for x in (workdir / "export").iterdir()} == before
    after = json.loads((workdir / "result.json").read_text())
    assert after["hard"] == result["hard"] and not {"packed", "exported"} & after.keys()
    assert "soft - hard" in capsys.readouterr().out  # the table is shown all the same


def test_predictions_are_those_of_hard_evaluation(tmp_path):
    # 2 bits, and activations quantized by a learned clip.
    config = tiny_config(
        quantizer__name="lsq", quantizer__lsq__bits=2, activation__name="pact"
    )
    exp = experiment.build(config, jax.devices()[:1])
    host = jax.device_get(exp.state)
    params = noisy(host.params)
    state = exp.state._replace(
        params=params,
        batch_stats=jax.tree.map(lambda x: np.abs(x) + 0.1, noisy(host.batch_stats)),
    )
    predict = lambda: exp.scoring.predict(
        dequantize_tree(jax.device_get(exp.deployed(state)))
    )
    # So that no class wins everywhere.
    params["model"]["head"]["bias"] -= predict().mean(0)
    made = export.export_state(exp, state, tmp_path / "out")
    assert made["differ"] == 0 and made["examples"] == 50
    assert made["hard"] == made["packed"] == made["exported"]
    predictor = quantnet_jax.load(tmp_path / "out" / "model.safetensors")
    packed = np.concatenate([predictor(x) for x in export.test_images(exp.feed)])
    hard = predict()
    np.testing.assert_array_equal(packed.argmax(-1), hard.argmax(-1))
    np.testing.assert_allclose(packed, hard, rtol=1e-4, atol=1e-4)
    assert len(set(hard.argmax(-1))) > 1
    packed = [x for _, x in leaves(predictor.params) if isinstance(x, Packed)]
    assert {x.bits for x in packed} == {2}
    assert predictor.spec.activation["name"] == "pact"


def test_options_of_the_network_come_back(tmp_path):
    # Every option that changes what a network does with the same parameters.
    options = {"shortcut": "B", "bi_real": True, "act": "hardtanh", "width": 4}
    act = {"name": "sign_ste"}
    model = models.create(
        "resnet8",
        outputs=3,
        folded=True,
        act_quant=activations.create("sign_ste"),
        **options,
    )
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes["params"]
    )
    spec = deploy.NetworkSpec(
        model={"name": "resnet8", **options},
        outputs=3,
        shape=(8, 8, 3),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        activation=act,
    )
    deploy.save(tmp_path / "model.safetensors", params, spec)
    found = deploy.load(tmp_path / "model.safetensors")
    x = (images / 255 - spec.mean) / spec.std
    x = jnp.asarray(x, jnp.float32)
    wanted = jax.jit(lambda p: model.apply({"params": p}, x))(params)
    np.testing.assert_allclose(found(images), wanted, rtol=1e-4, atol=1e-3)


# Folding ------------------------------------------------------------------------------


def test_folded_network_is_the_network(key):
    model = models.create("small", outputs=3, width=4)
    images = jax.random.normal(key, (4, 8, 8, 3))
    shapes = jax.eval_shape(model.init, key, images)
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), jnp.float32)
    variables = jax.tree.map(draw, shapes)
    params, stats = variables["params"], variables["batch_stats"]
    folded = models.fold(params, stats)
    wanted = jax.jit(lambda v: model.apply(v, images))(variables)
    other = model.clone(folded=True)
    apply = jax.jit(lambda p: other.apply({"params": p}, images))
    np.testing.assert_allclose(apply(folded), wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(apply(params) - wanted).max() > 1e-2  # not for want of statistics


def test_folding_reaches_every_normalization():
    model = models.create("resnet8", outputs=3, width=2, shortcut="B")
    image = jnp.ones((1, 16, 16, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    folded = models.fold(ones["params"], ones["batch_stats"])
    assert jax.tree.structure(folded) == jax.tree.structure(ones["params"])
    value = {"scale": 1.00001**-0.5, "bias": 1 - 1.00001**-0.5}
    for path, x in jax.tree_util.tree_leaves_with_path(folded):
        wanted = value.get(path[-1].key, 1.0) if path[0].key != "head" else 1.0
        np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-6)


def test_folded_normalization_cannot_be_trained(key):
    norm, x = BatchNorm(folded=True), jnp.ones((2, 4, 4, 3))
    variables = norm.init(key, x, train=False)
    assert set(variables) == {"params"}
    with pytest.raises(ValueError, match="no statistics to train"):
        norm.apply(variables, x, train=True, mutable=["batch_stats"])
