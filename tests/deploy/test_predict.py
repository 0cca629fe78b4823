"""The command that classifies images, and that it needs no training code."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from artifacts import CLASSES, SPEC, make_params
from PIL import Image

import quantnet_jax
from quantnet_jax import deploy, predict, tasks

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 8)).astype(np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Path of an artifact of 8 x 8 gray images and the classes coat, bag, shoe."""
    path = tmp_path_factory.mktemp("predict") / "model.safetensors"
    deploy.save(path, make_params(), SPEC)
    return path


@pytest.fixture(scope="module")
def predictor(model):
    return quantnet_jax.load(model)


@pytest.fixture
def image_file(tmp_path):
    """`image_file(array or image, name) -> path` of a new file."""

    def save(pixels, name="a.png", **options):
        image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save


def test_probabilities_of_the_best_classes(model, predictor, image_file, capsys):
    path = image_file(PIXELS)
    words = [str(model), path, "--top=2", "--json", "--popcount=off"]
    assert predict.main(words) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    logits = np.asarray(predictor(PIXELS[None, :, :, None]), np.float64)[0]
    odds = np.exp(logits) / np.exp(logits).sum()
    best = sorted(range(3), key=lambda i: -odds[i])[:2]
    assert found["image"] == path and not err
    assert [x["class"] for x in found["classes"]] == [CLASSES[i] for i in best]
    np.testing.assert_allclose([x["probability"] for x in found["classes"]], odds[best])


def test_text_for_people(model, image_file, capsys):
    paths = [image_file(PIXELS, "a.png"), image_file(PIXELS.T.copy(), "b.png")]
    assert predict.main([str(model), *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == paths[0] and lines[4] == paths[1] and len(lines) == 8
    names, shares = zip(*(line.split() for line in lines[1:4]), strict=True)
    assert set(names) == set(CLASSES)
    shares = [float(x.rstrip("%")) for x in shares]
    assert sum(shares) == pytest.approx(100, abs=0.02)
    assert shares == sorted(shares, reverse=True)


def test_images_go_in_batches_of_one_size(predictor, image_file, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 2)
    arrays = [np.roll(PIXELS, i, 0) for i in range(3)]
    paths = [image_file(x, f"{i}.png") for i, x in enumerate(arrays)]
    sizes = []

    def run(params, images):
        sizes.append(len(images))
        return predictor.run(params, images)

    found = list(predict.predict(dataclasses.replace(predictor, run=run), paths))
    assert sizes == [2, 2] and [path for path, _, _ in found] == paths
    (alone,) = predict.predict(predictor, paths[2:])
    np.testing.assert_allclose(alone[1], found[2][1], rtol=1e-5)


def test_other_sizes_and_modes(image_file):
    wide = np.tile(10 * np.arange(24, dtype=np.uint8), (16, 1))
    image, note = predict.read(image_file(wide), (8, 8, 1))
    assert image.shape == (8, 8, 1) and note == (
        "24 x 16 pixels, resized and cropped to 8 x 8"
    )
    # Columns 4 to 19, in pairs; a ramp has its own value between two columns.
    inner = np.tile(10 * (4.5 + 2 * np.arange(1, 7)), (8, 1))
    np.testing.assert_allclose(image[:, 1:-1, 0], inner, atol=1)
    colours = RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image, note = predict.read(image_file(colours), (8, 8, 3))
    assert not note and (image == colours).all()
    image, _ = predict.read(image_file(PIXELS), (8, 8, 3))
    assert (image == PIXELS[..., None]).all()
    image, _ = predict.read(image_file(colours), (8, 8, 1))
    assert image.shape == (8, 8, 1)
    image, _ = predict.read(image_file(PIXELS.astype(np.uint16) * 256), (8, 8, 1))
    assert (image[..., 0] == PIXELS).all()


def test_more_than_8_bits(image_file):
    """Of 32 bits those that are used; of 16 the upper 8, and a note if that is dark."""
    wide = PIXELS.astype(np.int32)
    for pixels, wanted in ((wide, PIXELS), (wide * 257, PIXELS)):
        image, note = predict.read(image_file(pixels, "a.tif"), (8, 8, 1))
        assert (image[..., 0] == wanted).all() and not note
    for wrong, told in ((wide - 9999, "from -99"), (wide << 9, "from 0 to 1")):
        with pytest.raises(ValueError, match=f"a.tif .*its pixels are {told}") as error:
            predict.read(image_file(wrong, "a.tif"), (8, 8, 1))
        assert "\n" not in str(error.value)
    twelve = PIXELS.astype(np.uint16) << 4
    image, note = predict.read(image_file(twelve), (8, 8, 1))
    assert (image[..., 0] == PIXELS >> 4).all() and "none above 4095" in note
    keyed = image_file(twelve << 4, "b.png", transparency=0)
    assert (predict.read(keyed, (8, 8, 1))[0][..., 0] == PIXELS).all()


@pytest.mark.parametrize(("name", "channels"), [("sparse2d", 1), ("sparse3d", 3)])
def test_images_with_more_sites_than_a_list_holds(name, channels, image_file, tmp_path):
    spec = dataclasses.replace(
        SPEC, model={"name": name, "width": 4, "capacity": 32}, activation=None,
        shape=(8, 8, channels), mean=(0.0,) * channels, std=(1.0,) * channels,
    )  # fmt: skip
    x = np.zeros((1, *spec.shape), np.float32)
    params = jax.jit(spec.network().init)(jax.random.key(0), x)["params"]
    path = tmp_path / "model.safetensors"
    few, many = np.zeros((2, 1, *spec.shape), np.uint8)
    few[0, 0, :3], many[0, :5, 1:] = 9, 17
    says = rf"capacity=32 holds 32 sites .* an image has {35 * channels} active ones"
    for mean in (0.0, 0.5):  # not 0: all sites are active
        deploy.save(path, params, dataclasses.replace(spec, mean=(mean,) * channels))
        predictor = quantnet_jax.load(path)
        if mean:
            with pytest.raises(ValueError, match=f"has {64 * channels} active ones"):
                predictor(few)
            continue
        assert np.isfinite(predictor(few)).all()
        with pytest.raises(ValueError, match=says):
            predictor(np.concatenate([few, many]))
        paths = [
            image_file(x[0].squeeze(), f"{i}.png") for i, x in enumerate((few, many))
        ]
        with pytest.raises(ValueError, match=f"1.png: {says}"):
            list(predict.predict(predictor, paths))


def test_image_is_turned_upright(image_file):
    turned = Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    image, _ = predict.read(image_file(turned, "a.png", exif=exif), (8, 8, 1))
    assert (image[..., 0] == PIXELS).all()


def test_what_cannot_be_read_is_reported_in_one_line(
    model, image_file, tmp_path, capsys
):
    path = image_file(PIXELS)
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no image")
    cut.write_bytes(pathlib.Path(path).read_bytes()[:60])
    damaged = tmp_path / "model"
    damaged.write_bytes(model.read_bytes()[:-1])
    for words, told in (
        ([model, text], "text.png is not an image"),
        ([model, cut], "cut.png is not an image"),
        ([model, tmp_path / "no.png"], "no.png not found"),
        ([model, tmp_path], "is a folder, expected an image"),
        ([damaged, path], "model is not a safetensors file"),
        ([path, path], "a.png is not a safetensors file"),
        ([tmp_path / "no", path], "no not found"),
        ([model, path, "--popcount=on"], "no convolution has float32 signs"),
    ):
        assert predict.main(list(map(str, words))) == 1
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert line.startswith("error: ") and told in line and not out


def test_transparent_pixels_show_white(image_file):
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[2:6, 2:6, 3] = 255  # a black square on a transparent background
    image, note = predict.read(image_file(ink), (8, 8, 1))
    assert note == "composed on a white background"
    expected = np.full((8, 8), 255)
    expected[2:6, 2:6] = 0
    assert (image[..., 0] == expected).all()
    ink[..., 3] = 255
    assert predict.read(image_file(ink), (8, 8, 1))[1] == ""


def test_pixels_that_are_floats_are_refused(image_file):
    path = image_file(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "a.tif")
    with pytest.raises(ValueError, match="a.tif .*its pixels are floats, expected int"):
        predict.read(path, (8, 8, 1))


def test_outputs_that_overflow_are_an_error(image_file, tmp_path, capsys):
    path, params = tmp_path / "model.safetensors", make_params()
    params["bn2"]["bias"] = np.full_like(params["bn2"]["bias"], 3e38)
    params["head"]["kernel"] = np.full_like(params["head"]["kernel"], 10.0)
    deploy.save(path, params, SPEC)
    assert predict.main([str(path), image_file(PIXELS), "--json"]) == 1
    out, err = capsys.readouterr()
    assert not out and err == f"error: {path}: the network's outputs are not finite\n"


def test_networks_that_take_no_images(image_file):
    with pytest.raises(ValueError, match="takes 5 channels"):
        predict.read(image_file(PIXELS), (8, 8, 5))


def test_class_names_cannot_steer_the_terminal():
    info = {"classes": ["\x1b[2Jred\n", "blue"]}
    _, lines = tasks.describe_classes(np.asarray([1.0, 0.0]), info)
    assert lines[0].split()[0] == r"\x1b[2Jred\n"
    assert all(c.isprintable() for line in lines for c in line)


@pytest.mark.parametrize("names", [None, "abc", {"a": 1}, [1, 2, 3], ["coat", "bag"]])
def test_classes_that_do_not_fit_the_outputs(names, image_file, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    info = {} if names is None else {"classes": names}
    deploy.save(path, make_params(), dataclasses.replace(SPEC, info=info))
    assert predict.main([str(path), image_file(PIXELS)]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert not out and line.startswith(f"error: {path}: info['classes'] is ")


def test_outputs_of_a_task_without_a_description(image_file, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    deploy.save(path, make_params(), dataclasses.replace(SPEC, task="other", info={}))
    image = image_file(PIXELS)
    assert predict.main([str(path), image, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    outputs = np.asarray(deploy.load(path)(PIXELS[None, :, :, None]))
    assert found["image"] == image and found["shape"] == [3]
    assert found["min"] == pytest.approx(outputs.min(), rel=1e-5)
    assert found["max"] == pytest.approx(outputs.max(), rel=1e-5)
    assert predict.main([str(path), image]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("  3 outputs from ")


FORBIDDEN = ("optax", "orbax", "tensorflow_datasets", "grain", "quantnet_jax.training")
CHECK = f"""
import sys
import quantnet_jax
assert "flax" not in sys.modules and "quantnet_jax.deploy" not in sys.modules
from quantnet_jax import predict
assert predict.main(sys.argv[1:]) == 0
found = [x for x in sys.modules if x.startswith({FORBIDDEN!r})]
assert not found, found
"""


def test_no_training_code_is_imported(model, image_file, tmp_path):
    words = [sys.executable, "-c", CHECK, str(model), image_file(PIXELS)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("  ") and not done.stderr
