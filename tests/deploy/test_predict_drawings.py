"""Drawings: what `predict` makes of a file is what the dataset made of it."""

import io
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

import quantnet_jax
from quantnet_jax import data, deploy, predict, summary
from quantnet_jax.data.sets import omniglot

SETS = ("omniglot", "omniglot_drawers")
RNG = np.random.default_rng(0)


def drawing(side):
    """A PNG of two thick lines of ink."""
    ink = np.ones((side, side), bool)
    for image in (ink, ink.T):
        at, width = RNG.integers(side - 9), RNG.integers(1, 9)
        image[at : at + width, RNG.integers(side) :] = False
    out = io.BytesIO()
    Image.fromarray(ink).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both archives, of two characters each with seven drawings."""
    path = tmp_path_factory.mktemp("drawings")
    for name, alphabet in zip(omniglot.SMALL, ("Greek", "Latin"), strict=True):
        with zipfile.ZipFile(path / name, "w") as file:
            for i in range(14):
                name = f"images/{alphabet}/character{i // 7}/{i:02}.png"
                file.writestr(name, drawing((105, 105, 90, 28)[i % 7 % 4]))
    return path


def files(folder, to):
    """{character: paths of its drawings, written into a folder}."""
    found = {}
    for archive in map(zipfile.ZipFile, (folder / name for name in omniglot.SMALL)):
        for name in sorted(x for x in archive.namelist() if x.endswith(".png")):
            _, alphabet, character, last = name.split("/")
            path = to / f"{alphabet}_{character}_{last}"
            if not path.exists():  # some alphabets are in both
                path.write_bytes(archive.read(name))
                found.setdefault(f"{alphabet}/{character}", []).append(path)
    return found


def same_pixels(dataset, drawings, every=1):
    images = np.concatenate([dataset.train_image, dataset.test_image])
    label = np.concatenate([dataset.train_label, dataset.test_label])
    ink = dataset.info["ink"]
    for c in range(0, len(dataset.classes), every):
        paths = drawings[dataset.classes[c]]
        read = [predict.read(path, images.shape[1:], ink)[0] for path in paths]
        np.testing.assert_array_equal(read, images[label == c])
        assert 0 < np.mean(read) < 128


@pytest.mark.parametrize("name", SETS)
def test_pixels_of_generated_drawings(name, folder, tmp_path):
    same_pixels(data.load(name, folder), files(folder, tmp_path))


@pytest.mark.parametrize("name", SETS)
def test_pixels_of_the_originals(name, shared_data, tmp_path):
    folder = shared_data / "omniglot"
    same_pixels(data.load(name, folder), files(folder, tmp_path), every=20)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("task", ["classification", "retrieval"])
@pytest.mark.parametrize("model", ["small", "sparse2d"])
def test_networks_of_drawings_take_the_originals(name, task, model, folder, tmp_path):
    config = tiny_config(
        data__name=name, data__folder=str(folder), data__train_size=0,
        data__test_size=0, task__name=task, model__name=model,
    )  # fmt: skip
    spec = summary.from_config(config)[1]
    network = spec.network()
    x = np.zeros((1, *spec.shape), np.float32)
    params = jax.jit(network.init)(jax.random.key(0), x)["params"]
    deploy.save(path := tmp_path / "model.safetensors", params, spec)
    predictor = quantnet_jax.load(path)
    paths = files(folder, tmp_path)["Latin/character1"]
    found = [*predict.predict(predictor, paths)]
    dataset = data.load(name, folder)
    c = dataset.classes.index("Latin/character1")
    images = np.concatenate([dataset.train_image, dataset.test_image])
    label = np.concatenate([dataset.train_label, dataset.test_label])
    wanted = np.asarray(predictor(images[label == c]))
    np.testing.assert_allclose([y for _, y, _ in found], wanted, rtol=1e-5)
    assert np.ptp(wanted, axis=0).max() > 1e-3
    assert found[0][2] == (
        "105 x 105 pixels, squeezed to 28 x 28, dark ink made white on black"
    )


def test_a_damaged_share_of_ink_is_reported(folder, tmp_path):
    spec = deploy.NetworkSpec(
        model={"name": "small", "width": 4}, outputs=3, shape=(28, 28, 1),
        mean=(0.0,), std=(1.0,), info={"ink": "much"},
    )  # fmt: skip
    x = np.zeros((1, *spec.shape), np.float32)
    params = jax.jit(spec.network().init)(jax.random.key(0), x)["params"]
    deploy.save(path := tmp_path / "model.safetensors", params, spec)
    with pytest.raises(ValueError, match="info.ink='much' is a str, expected a number"):
        next(predict.predict(quantnet_jax.load(path), ["a.png"]))
