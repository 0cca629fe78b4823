"""Super-resolution: data and metrics against published values, networks, a study."""

import dataclasses
import importlib
import io
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from util import normal

import quantnet_jax as qn
from quantnet_jax import (
    activations,
    config,
    data,
    evaluate,
    exhibits,
    models,
    predict,
    tasks,
)
from quantnet_jax.data import bicubic, patches
from quantnet_jax.data.sets import superres
from quantnet_jax.experiments import grid, results
from quantnet_jax.experiments.study import Run
from quantnet_jax.models.super_resolution import enlarged, sub_pixels
from quantnet_jax.tasks.base import Source
from quantnet_jax.tasks.super_resolution import SHOWN, super_resolution
from quantnet_jax.training import experiment

PUBLISHED = {"Set5": 33.66, "Set14": 30.24}
"""PSNR of bicubic enlargement by 2, in dB, as the papers print it."""


def luma(image, gray=False):
    y = image.astype(np.float64) @ np.asarray([65.481, 128.553, 24.966]) / 255
    return y * 255 / 219 if gray else y + 16


def psnr(one, other, border, gray=False):
    inner = (slice(border, -border),) * 2
    error = (luma(one, gray) - luma(other, gray))[inner]
    return 10 * np.log10(255**2 / np.mean(error**2))


def ssim(one, other):
    """By windows, in float64."""
    place = np.arange(11) - 5
    weight = np.exp(-(place[:, None] ** 2 + place**2) / 4.5)
    weight /= weight.sum()
    a, b = (np.lib.stride_tricks.sliding_window_view(x, (11, 11)) for x in (one, other))
    mean = lambda x: (x * weight).sum((-1, -2))
    m, n, c, d = mean(a), mean(b), 2.55**2, 7.65**2
    v, w, s = mean(a * a) - m * m, mean(b * b) - n * n, mean(a * b) - m * n
    return ((2 * m * n + c) * (2 * s + d) / ((m * m + n * n + c) * (v + w + d))).mean()


# Bicubic ------------------------------------------------------------------------------
@pytest.mark.parametrize("sizes", [(12, 24), (24, 12), (24, 6), (9, 27)])
def test_bicubic_keeps_a_ramp(sizes):
    size, wanted = sizes
    scale = wanted / size
    ramp = np.arange(size, dtype=np.float64)
    place = (np.arange(wanted) + 0.5) / scale - 0.5
    made = bicubic.matrix(size, wanted) @ ramp
    reach = 2 / min(scale, 1)  # where nothing beyond the ends is looked at
    inner = (place >= reach) & (place <= size - 1 - reach)
    assert inner.sum() > wanted / 4
    np.testing.assert_allclose(made[inner], place[inner], atol=1e-12)


def test_bicubic_weights_by_hand():
    np.testing.assert_allclose(  # at 1/4 between pixels, from Keys' polynomial
        bicubic.matrix(8, 16)[8][2:6], np.asarray([-3, 29, 111, -9]) / 128
    )
    np.testing.assert_allclose(
        bicubic.matrix(16, 8)[4][5:13] * 256,
        np.asarray([-3, -9, 29, 111, 111, 29, -9, -3]),
    )


@pytest.fixture(scope="module")
def photographs(shared_data, tmp_path_factory):
    """The published tests, with two small photographs in place of the 200."""
    folder = tmp_path_factory.mktemp("superres")
    for name in ("Set5.zip", "Set14.zip"):
        (folder / name).symlink_to(shared_data / "superres" / name)
    with zipfile.ZipFile(folder / "BSDS200_train.zip", "w") as file:
        for number, size in enumerate([(33, 49), (49, 33)]):  # one of them upright
            content, pixels = io.BytesIO(), np.full((*size, 3), 100 * number, np.uint8)
            Image.fromarray(pixels).save(content, "PNG")
            file.writestr(f"BSDS200_train/{number}.png", content.getvalue())
    found = superres.read_superres("superres_x2", folder)
    assert found.train_image.shape == (2, 16, 24, 3)
    assert found.train_target.shape == (2, 32, 48, 3)
    return superres.with_margin(found, 16)


def saved(width, height):
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    "train, test, says",
    [
        ([(8, 8), (8, 12)], [(8, 8)], "train.zip:1: reduced to 3 x 2 .*expected 2 x 2"),
        ([(8, 3)], [(8, 8)], "train.zip:0.png: .*8 x 3 pixels, at least 4"),
        ([(8, 8)], [(8, 8), (3, 8)], "Set5.zip:1.png: .*3 x 8 pixels, at least 4"),
        ([(8, 8)], [(769, 4)], "Set5.zip:0.png: .*769 x 4 pixels, at most 768"),
        ([(8, 8)], [(768, 4), (4, 768)] * 80, "Set5, Set14 take .* bytes on canv"),
        ([(8, 8)], [], "Set5.zip: found none of its kind, expected photographs"),
    ],
)
def test_sizes_that_are_refused(train, test, says, tmp_path):
    parts = {superres.TRAIN: train, "Set5": test, "Set14": [(8, 8)]}
    for name, sizes in parts.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as file:
            for number, size in enumerate(sizes):
                file.writestr(f"{number}.png", saved(*size))
    with pytest.raises(ValueError, match=says) as error:
        superres.read_superres("superres_x4", tmp_path)
    assert str(error.value).isprintable()


def parts(found, i):
    """(input, target, whether gray) of a test image, without its canvas."""
    label = found.test_label[i]
    top, left, height, width = found.more["areas"][label]
    low = found.test_image[i][top : top + height, left : left + width]
    high = found.test_target[i][2 * top :, 2 * left :][: 2 * height, : 2 * width]
    return low, high, found.more["gray"][label]


def test_published_inputs_and_values_of_bicubic(photographs, shared_data):
    """The inputs bit for bit; the PSNR of bicubic interpolation to 0.05 dB."""
    found = {}
    for i, label in enumerate(photographs.test_label):
        of, name = photographs.classes[label].split("/")
        low, high, gray = parts(photographs, i)
        with zipfile.ZipFile(shared_data / "superres" / f"{of}.zip") as file:
            for scale in (2, 4):
                content = file.read(f"{of}/LR_x{scale}/{name}.png")
                wanted = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
                height, width = wanted.shape[:2]
                whole = high[: scale * height, : scale * width]
                if scale == 2:
                    np.testing.assert_array_equal(low, wanted)
                np.testing.assert_array_equal(
                    bicubic.resize(whole, height, width), wanted
                )
        found.setdefault(of, []).append(
            psnr(bicubic.resize(low, *high.shape[:2]), high, 2, gray)
        )
    assert {k: len(v) for k, v in found.items()} == {"Set5": 5, "Set14": 14}
    for of, wanted in PUBLISHED.items():
        assert np.mean(found[of]) == pytest.approx(wanted, abs=0.05)


def test_metrics_on_canvases_are_those_of_whole_images(photographs):
    """Of a colour and of a gray image, against NumPy in double precision."""
    mean, std = (0.4, 0.45, 0.5), (0.25, 0.2, 0.3)

    def ready(held, batch, *, seed, train):
        norm = lambda x: (x / np.float32(255) - np.float32(mean)) / np.float32(std)
        made = {k: jnp.asarray(norm(held[k])) for k in ("image", "target")}
        return made | {"label": held["label"], "mask": batch["mask"]}

    shape = photographs.test_image.shape[1:]
    task = super_resolution(Source(ready, shape, mean, std, photographs.info))
    names = [photographs.classes[i] for i in photographs.test_label]
    rows = [names.index("Set5/butterfly"), names.index("Set14/bridge")]
    held = {k: x[rows] for k, x in data.split(photographs, "test").items()}
    batch = {"mask": jnp.ones(2)}
    examples = task.prepare(held, batch, seed=0, train=False)
    rng = np.random.default_rng(0)
    noisy = held["target"] + rng.normal(0, 8, held["target"].shape)
    outputs = (noisy / 255 - mean) / std
    found = task.metrics(jnp.asarray(outputs, jnp.float32), examples)
    loss = task.loss(jnp.asarray(outputs, jnp.float32), examples, train=False)
    for i, row in enumerate(rows):
        low, high, gray = parts(photographs, row)
        height, width = high.shape[:2]
        made = np.floor(noisy[i].clip(0, 255) + 0.5)[32 : 32 + height, 32 : 32 + width]
        plain = bicubic.resize(low, height, width)
        assert found["psnr"][i] == pytest.approx(psnr(made, high, 2, gray), abs=1e-3)
        assert found["bicubic"][i] == pytest.approx(
            psnr(plain, high, 2, gray), abs=2e-3
        )
        inner = (slice(2, -2),) * 2
        wanted = ssim(luma(made, gray)[inner], luma(high, gray)[inner])
        assert found["ssim"][i] == pytest.approx(wanted, abs=2e-4)
        error = abs(noisy[i][32 : 32 + height, 32 : 32 + width] - high) / 255 / std
        assert loss[i] == pytest.approx(error.mean(), rel=1e-4)
    of_sets = [found[f"psnr_{x}"] for x in ("set5", "set14")]
    np.testing.assert_allclose(of_sets[0], found["psnr"] * jnp.asarray([19 / 5, 0.0]))
    np.testing.assert_allclose(of_sets[1], found["psnr"] * jnp.asarray([0.0, 19 / 14]))


# Patches ------------------------------------------------------------------------------
def test_crops_of_images_and_targets_agree():
    target = np.random.default_rng(0).integers(0, 255, (3, 20, 28, 3), np.uint8)
    image = target[:, ::2, ::2]  # so that a crop of one is that of the other
    target = image.repeat(2, 1).repeat(2, 2)
    row, top, left = (
        np.asarray([2, 0, 1, 2, 0, 1, 2, 0]),
        np.arange(8) % 5,
        np.arange(8),
    )
    turn = np.arange(8)
    given = [jnp.asarray(x, jnp.int32) for x in (row, top, left, turn)]
    found = patches.crops(jnp.asarray(image), *given, 6)
    for i in range(8):
        wanted = image[row[i], top[i] : top[i] + 6, left[i] : left[i] + 6]
        wanted = wanted.swapaxes(0, 1) if turn[i] & 1 else wanted
        wanted = wanted[::-1] if turn[i] & 2 else wanted
        wanted = wanted[:, ::-1] if turn[i] & 4 else wanted
        np.testing.assert_array_equal(found[i], wanted)
    double = [given[0], 2 * given[1], 2 * given[2], given[3]]
    large = patches.crops(jnp.asarray(target), *double, 12)
    np.testing.assert_array_equal(large[:, ::2, ::2], found)


def test_corners_are_everywhere_and_of_the_position_alone():
    position = jnp.arange(4000, dtype=jnp.uint32)
    top, left, turn = patches.draw(position, seed=3, free=(4, 9))
    for found, most in ((top, 4), (left, 9), (turn, 7)):
        counts = np.bincount(found, minlength=most + 1)
        assert len(counts) == most + 1 and counts.min() > 0.7 * counts.mean()
    again = patches.draw(position[7:9], seed=3, free=(4, 9))
    np.testing.assert_array_equal(np.stack(again), np.stack([top, left, turn])[:, 7:9])


# Networks -----------------------------------------------------------------------------
def test_sub_pixels():
    x = normal(0, (2, 3, 4, 12))
    found = np.asarray(sub_pixels(jnp.asarray(x), 2))
    for i in range(2):
        for j in range(2):
            channels = x[..., 3 * (2 * i + j) : 3 * (2 * i + j) + 3]
            np.testing.assert_array_equal(found[:, i::2, j::2], channels)


@pytest.mark.parametrize("name", ["edsr", "srresnet"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sizes_and_places(name, scale):
    model = models.create(name, outputs=3 * scale**2, width=4, depth=1)
    x = normal(0, (1, 7, 5, 3))
    variables = model.init(jax.random.key(0), x)
    assert model.apply(variables, x).shape == (1, 7 * scale, 5 * scale, 3)
    with pytest.raises(ValueError, match="`outputs` is 10, expected 3 channels"):
        models.create(name, outputs=10).init(jax.random.key(0), x)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_image_skip_is_bicubic_interpolation(scale):
    x = normal(0, (2, 9, 6, 3))
    rows, columns = (bicubic.matrix(n, scale * n) for n in x.shape[1:3])
    wanted = np.einsum("ih,jw,nhwc->nijc", rows, columns, x)
    np.testing.assert_allclose(enlarged(x, scale), wanted, atol=1e-5)


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["edsr", "srresnet"])
def test_outputs_depend_on_what_is_within_reach(name, scale, depth):
    """And on all of it: by the gradient of what becomes of the middle pixel."""
    model = models.create(name, outputs=scale**2, depth=depth, width=4, image_skip=True)
    x = normal(0, (1, 2 * (reach := model.reach) + 3, 5, 1))
    params = model.init(jax.random.key(1), x)
    middle = slice(scale * (reach + 1), scale * (reach + 2))
    seen = jax.grad(lambda x: jnp.sum(model.apply(params, x)[:, middle]))(x)
    rows = np.flatnonzero(np.abs(seen).sum((0, 2, 3)))
    assert (rows[0], rows[-1]) == (1, 2 * reach + 1)


@pytest.mark.parametrize("depth", [4, 16])
def test_outputs_do_not_depend_on_the_canvas(depth):
    """Within the margin of the test images, by networks of the study and the papers."""
    small = importlib.import_module("configs.super_resolution").get_config("runlocal")
    small.model.depth = depth
    exp = experiment.Experiment(small)
    margin, side = exp.task.info["margin"], exp.feed.shape[0]
    assert margin == {4: 12, 16: 36}[depth] and side == 12 + 2 * margin
    model = models.create("edsr", outputs=12, depth=depth, image_skip=True)
    image = exp.feed.test_data["image"][:1].astype(np.float32) / 255
    params = model.init(jax.random.key(1), image)
    inner = (slice(None), *(slice(2 * margin, 2 * margin + 24),) * 2)
    alone = model.apply(params, image)[inner]
    wide = np.pad(image, [(0, 0), (0, 11), (0, 6), (0, 0)], "edge")
    on_canvas = model.apply(params, wide)[inner]
    size = np.abs(alone).max()
    np.testing.assert_allclose(alone / size, on_canvas / size, atol=1e-5)


def test_both_terms_of_a_sum_are_on_one_grid_and_rectified_inputs_have_their_own():
    rules = [{"site": "rectified", "signed": False}, {"site": "residual", "bits": 2}]
    sites = ("input", "rectified", "residual")
    quantizers = activations.at_sites("learned_clip", sites, rules, bits=3, signed=True)
    model = models.create(
        "edsr", outputs=12, width=4, depth=2, act_quant=quantizers, sites=sites
    )
    x = normal(0, (1, 6, 6, 3))
    params = model.init(jax.random.key(1), x)
    seen = {}

    def look(path, value, quantize):
        seen[path] = np.asarray(quantize(value))
        return seen[path]

    with activations.sites.replace_quantizers(look):
        model.apply(params, x)
    sums = [path for path in seen if path.endswith("residual")]
    assert len(sums) == 3 and len(seen) == 3 + 2 * 2 + 3
    for path in sums:
        step = params["params"][path]["qparams"] / 3
        both = seen[path].reshape(-1, 2, 4) / step
        integers = np.round(both)
        np.testing.assert_allclose(both, integers, atol=1e-4)
        assert set(np.unique(integers)) <= {-3, -1, 1, 3}
        assert not np.array_equal(integers[:, 0], integers[:, 1])
    assert seen["block0_conv2_input"].min() == 0 == seen["block1_conv2_input"].min()
    assert len(np.unique(seen["block0_conv2_input"])) == 8
    assert seen["block0_conv1_input"].min() < 0 and 0 not in seen["block0_conv1_input"]


@pytest.mark.parametrize("calibrates", ["both", "clip"])
@pytest.mark.parametrize("where", ["weights", "activations"])
def test_calibration_moves_the_clip_and_perhaps_what_is_quantized(where, calibrates):
    """Against the closed form, of each of 15 steps between -c and c."""
    options = {"bits": 4, "calibration": 0.5, "calibrates": calibrates}
    x, c = normal(0, (40,)), 1.3
    if where == "weights":
        q, made = qn.learned_clip(**options), qn.PerTensor
    else:
        q, made = (
            activations.create("learned_clip", signed=True, **options),
            lambda c: c,
        )
    penalty = lambda c, x: q.penalty(made(c), x, step=0)
    value, (of_c, of_x) = jax.value_and_grad(penalty, (0, 1))(jnp.float32(c), x)
    inside = abs(x) <= c
    fixed = 2 * c / 15 * np.floor((x.clip(-c, c) / c + 1) * 7.5 + 0.5) - c
    assert value == pytest.approx(0.5 * abs(x - fixed).mean(), rel=1e-4)
    slope = np.where(inside, (fixed - x) / c, np.sign(x))  # of the forward value
    wanted = -0.5 * np.mean(np.sign(x - fixed) * slope)
    assert of_c == pytest.approx(wanted, rel=1e-3)
    beyond = 0.5 * np.where(inside, 0.0, np.sign(x)) / x.size  # straight through inside
    wanted = beyond if calibrates == "both" else np.zeros_like(x)
    np.testing.assert_allclose(of_x, wanted, atol=1e-6)
    assert 2 < (~inside).sum() < 20


# A run --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from quantnet_jax import run as program

    small = importlib.import_module("configs.super_resolution").get_config("runlocal")
    small.export = True
    workdir = tmp_path_factory.mktemp("enlarge")
    return workdir, program.train(small, workdir)


def test_a_run_evaluates_what_it_ships(run):
    workdir, result = run
    assert {"soft", "hard", "ssim_hard", "bicubic_hard", "psnr_between"} <= set(result)
    assert result["examples"] == 8 and result["packed"] == pytest.approx(result["hard"])
    again = evaluate.evaluate(str(workdir))
    assert again["hard"] == result["hard"] and again["loss_hard"] == result["loss_hard"]
    with pytest.raises(ValueError, match="data='synthetic' is normalized otherwise"):
        evaluate.evaluate(str(workdir), data="synthetic")
    exp, state, _ = evaluate.restore(str(workdir))
    hard = experiment.tree.dequantize_tree(exp.deployed(state))
    outputs = exp.scoring.predict(exp.runner.place(hard))
    border = 2 * exp.model.reach
    inner = (slice(None), *(slice(border, -border),) * 2)
    outputs, target = outputs[inner], exp.feed.test_data["target"][inner]
    assert target.shape == (8, 24, 24, 3)
    pixels = 255 * (outputs * np.float32(exp.feed.std) + np.float32(exp.feed.mean))
    pixels = np.floor(pixels.clip(0, 255) + 0.5)
    wanted = np.mean([psnr(a, b, 2) for a, b in zip(pixels, target, strict=True)])
    assert result["hard"] == pytest.approx(wanted, abs=1e-3)
    page = (workdir / "report.html").read_text()
    assert page.count("difference x 4") == SHOWN and "bicubic" in page


def test_images_of_the_run_that_a_run_began_from_stand_beside_its_own(run):
    workdir, _ = run
    shown = json.loads((workdir / exhibits.FILE).read_text())["panels"]["samples"]
    again = json.loads(json.dumps(shown))
    exhibits.compare(again, str(workdir))
    order = ["input", "bicubic", "learned_clip", "network", "original"]
    for sample, plain in zip(again, shown, strict=True):
        assert list(sample["images"]) == [*order, "difference x 4"]
        assert sample["images"]["learned_clip"] == plain["images"]["network"]
    exhibits.compare(shown, str(workdir / "none"))
    assert "learned_clip" not in shown[0]["images"]


def test_an_image_is_enlarged_from_the_packed_file(run, tmp_path, capsys, monkeypatch):
    workdir, _ = run
    predictor = qn.load(workdir / "export" / "model.safetensors")
    pixels = np.random.default_rng(0).integers(0, 255, (10, 15, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    words = [str(workdir / "export" / "model.safetensors"), str(tmp_path / "small.png")]
    assert predict.main([*words, f"--out={tmp_path}", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["shape"] == [20, 30, 3]
    found = np.asarray(Image.open(tmp_path / "small_x2.png"))
    folded = predictor.spec.network()
    params = experiment.tree.dequantize_tree(evaluate_params(workdir))
    margin = predictor.spec.info["margin"]
    wide = np.pad(pixels, [(margin, margin)] * 2 + [(0, 0)], "edge")
    x = predictor.spec.normalize(jnp.asarray(wide[None]))
    outputs = np.asarray(folded.apply({"params": params}, x)[0])
    outputs = outputs[2 * margin : -2 * margin, 2 * margin : -2 * margin]
    wanted = 255 * (
        outputs * np.float32(predictor.spec.std) + np.float32(predictor.spec.mean)
    )
    wanted = np.floor(np.clip(wanted, 0, 255) + 0.5)
    assert np.abs(found - wanted).max() <= 1
    monkeypatch.setattr(predict, "TILE", 4)  # 3 x 4 of them, the last ones overlapping
    in_tiles, _ = predict.draw(predictor, words[1])
    np.testing.assert_array_equal(in_tiles, found)
    (tmp_path / "other").mkdir()
    Image.fromarray(pixels).save(tmp_path / "other" / "small.png")
    assert predict.main([*words, str(tmp_path / "other" / "small.png")]) == 1
    assert "several images would become" in capsys.readouterr().err
    assert predict.main([*words, f"--out={tmp_path / 'small.png'}"]) == 1
    assert "expected a folder" in capsys.readouterr().err
    damaged = dict(predictor.spec.info, margin=-1)
    with pytest.raises(ValueError, match="info.margin=-1, expected a whole number"):
        tasks.DRAWINGS["super_resolution"].before(pixels, damaged)
    other = dict(predictor.spec.info, scale=8)
    other = dataclasses.replace(predictor.spec, info=other)
    predictor = dataclasses.replace(predictor, spec=other)
    with pytest.raises(ValueError, match="^info.scale=8, but an image of shape"):
        predict.draw(predictor, words[1])


def evaluate_params(workdir):
    exp, state, _ = evaluate.restore(str(workdir))
    return jax.device_get(exp.deployed(state))


@pytest.mark.parametrize("variant", ["float", "x4", "srresnet,float", "x4,srresnet"])
def test_variants(variant):
    found = importlib.import_module("configs.super_resolution").get_config(variant)
    config.check(found)
    assert found.data.name == f"superres_x{4 if 'x4' in variant else 2}"
    assert found.model.name == ("srresnet" if "srresnet" in variant else "edsr")
    assert bool(found.activation.name) != ("float" in variant)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data.pad": 1}, "data.pad=1.*targets"),
        ({"data.crop": 13}, "data.crop=13, expected at most 12"),
        ({"data.name": "synthetic", "data.crop": 0}, "no larger images as targets"),
        ({"activation.rules": ({"site": "outputs"},)}, r"activation.rules\[0\].site="),
        (
            {"activation.rules": ({"site": "residual", "bits": 9},)},
            r"activation.rules\[0\].bits=9",
        ),
        ({"model.depth": 1024}, "^model.depth: the test images of .* take .* bytes"),
        (
            {"activation.learned_clip.warmup": 8},
            "^activation.learned_clip.warmup=8, expected less than the 8 steps",
        ),
        (
            {"activation.rules": ({"site": "input", "warmup": 9},)},
            r"^activation.rules\[0\].warmup=9, expected less than the 8 steps",
        ),
        (
            {"model.name": "srresnet", "activation.sites": ("rectified",)},
            r"^activation.sites=\('rectified',\): this 'srresnet' quantizes no",
        ),
    ],
)
def test_refused_at_the_door(change, message):
    small = importlib.import_module("configs.super_resolution").get_config("runlocal")
    small.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        experiment.build(small)


# The study, shortened -----------------------------------------------------------------
def test_the_study_on_synthetic_images():
    study = grid.load("super_resolution")
    small = importlib.import_module("configs.super_resolution").get_config("runlocal")
    start = study.initializations[0]
    made = {}
    for row in study.rows:
        given = Run("final", row, "x", start, 1e-3, 0, False)
        made[row] = c = study.configure(study, given)
        for key, value in results.settings(small).items():
            if key.startswith(("data.", "model.")) or key == "epochs":
                c.update_from_flattened_dict({key: value})
        config.check(c)
    c = made["2 bits"]
    c.activation.learned_clip.warmup = 1
    exp = experiment.build(c, jax.devices()[:1])
    state, batches, penalties = exp.state, exp.train_batches(0), []
    for _ in range(3):
        state, metrics = exp.train_step(state, exp.train_data, next(batches))
        penalties.append(float(metrics["penalty"]))
    assert penalties[1] > penalties[0] > 0  # of activations too, after the warm-up
    scores, layers, _ = exp.evaluate(state)
    assert scores["gap"] == 0 and np.isfinite(scores["loss_hard"])
    assert {x["bits"] for x in layers.values()} == {2}
    assert len(layers) == 6  # stem and head too
    clips = exp.model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))["params"]
    sums = {path for path in clips if path.endswith("residual")}
    assert sums == {"block0_residual", "residual"}
