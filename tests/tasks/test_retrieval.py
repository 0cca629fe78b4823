"""Retrieval against NumPy: triplet loss, rank-1, average precision, calibration."""

import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import outcome, tiny_config
from util import normal

from quantnet_jax import data
from quantnet_jax.data import zips
from quantnet_jax.data.sets import omniglot
from quantnet_jax.tasks import terms
from quantnet_jax.tasks.base import Source
from quantnet_jax.tasks.retrieval import retrieval

LABEL = np.asarray([0, 1, 0, 2, 1, 0, 3, 0], np.int32)
MASK = np.asarray([1, 1, 1, 1, 1, 1, 1, 0], np.float32)


def distances(x):
    x = x.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.linalg.norm(x[:, None] - x[None], axis=-1)


def made(**options):
    ready = lambda data, batch, *, seed, train: dict(batch)
    return retrieval(Source(ready, (4, 4, 1), (0.0,), (1.0,), {}), **options)


EXAMPLES = {"label": jnp.asarray(LABEL), "mask": jnp.asarray(MASK)}


def test_triplet_loss_of_every_anchor():
    x = normal(0, (8, 5))
    task, d = made(margin=0.3), distances(x)
    real = np.flatnonzero(MASK)
    wanted = np.zeros(8)
    for a in real:
        found = [
            0.3 + d[a, p] - d[a, n]
            for p in real
            for n in real
            if p != a and LABEL[p] == LABEL[a] != LABEL[n]
        ]
        active = [x for x in found if x > 0]
        wanted[a] = np.mean(active) if active else 0
    got = task.loss(jnp.asarray(x), EXAMPLES, train=True)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    assert (wanted[[0, 1, 2]] > 0).any() and wanted[3] == wanted[7] == 0
    total = lambda x: jnp.sum(task.loss(x, EXAMPLES, train=True))
    same = jnp.zeros((8, 5)) + 1.0  # all on one point
    for y in (jnp.asarray(x), same):
        assert np.isfinite(jax.grad(total)(y)).all()


def test_ranks_and_average_precision():
    x = normal(3, (8, 5))
    task, d = made(), distances(x)
    rank1, average = np.zeros(8), np.zeros(8)
    for q in np.flatnonzero(MASK):
        others = [i for i in np.argsort(d[q]) if i != q and MASK[i]]
        hits = [LABEL[i] == LABEL[q] for i in others]
        rank1[q] = hits[0]
        places = np.flatnonzero(hits)
        average[q] = np.mean([(i + 1) / (p + 1) for i, p in enumerate(places)] or [0])
    got = task.metrics(jnp.asarray(x), EXAMPLES)
    np.testing.assert_array_equal(np.asarray(got["rank1"])[MASK > 0], rank1[MASK > 0])
    np.testing.assert_allclose(got["map"], average, rtol=1e-5)
    assert 0 < average.sum() < 5


def test_distance_calibration_against_numpy():
    x, t = normal(0, (8, 5)), normal(1, (8, 3))
    context = terms.Context(*[None] * 8)._replace(
        outputs=jnp.asarray(x), teacher_outputs=jnp.asarray(t), examples=EXAMPLES
    )
    pairs = (LABEL[:, None] != LABEL) & (MASK[:, None] > 0) & (MASK > 0)
    relative = [(d := distances(y))[pairs] / d[pairs].mean() for y in (x, t)]
    term = terms.distance_calibration()
    wanted = np.abs(relative[0] - relative[1]).mean()
    np.testing.assert_allclose(term(context), wanted, rtol=1e-4)
    # Size and turning of the embedding do not matter.
    turned = np.linalg.qr(normal(2, (3, 3)))[0] @ (7 * t.T)
    same = context._replace(outputs=jnp.asarray(turned.T, jnp.float32))
    assert float(term(same)) == pytest.approx(0, abs=1e-4)


def test_a_run():
    config = tiny_config(task__name="retrieval", quantizer__name="binary_ste")
    config.task.retrieval.dimensions = 6
    found = outcome(config, 4)
    assert {"hard", "map_hard", "moved"} <= set(found["scores"])
    assert 0 <= found["scores"]["hard"] <= 1 and found["scores"]["moved"] == 0
    assert found["state"].params["model"]["head"]["kernel"].shape[1] == 6


def archive(path, alphabets):
    with zipfile.ZipFile(path, "w") as file:
        for alphabet, characters in alphabets.items():
            for c in range(characters):
                for i in range(2):
                    drawing = np.full((105, 105), 255, np.uint8)
                    drawing[: 15 * (c + 1), :30] = 0
                    content = io.BytesIO()
                    Image.fromarray(drawing).convert("1").save(content, "PNG")
                    name = f"images/{alphabet}/character{c:02}/{c}_{i}.png"
                    file.writestr(name, content.getvalue())


def test_alphabets_are_held_out(tmp_path):
    for name, alphabets in zip(
        omniglot.SMALL, ({"Greek": 2, "Latin": 1}, {"Latin": 1, "Tagalog": 3}),
        strict=True,
    ):  # fmt: skip
        archive(tmp_path / name, alphabets)
    found = data.load("omniglot", tmp_path)
    assert found.train_image.shape == (6, 28, 28, 1)
    assert found.test_image.shape == (6, 28, 28, 1)
    assert found.classes[:3] == tuple(
        f"{a}/character{c}"
        for a, c in (("Greek", "00"), ("Greek", "01"), ("Latin", "00"))
    )
    assert found.train_label.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.test_label.tolist() == [3, 3, 4, 4, 5, 5]
    assert set(np.unique(found.train_image)) == {0, 255}
    np.testing.assert_array_equal(found.train_image[2, :, :, 0] > 0, np.outer(
        np.arange(28) < 8, np.arange(28) < 8
    ))  # fmt: skip
    (tmp_path / omniglot.SMALL[1]).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="small2.zip.*expected drawings"):
        data.load("omniglot", tmp_path)
    (tmp_path / omniglot.SMALL[1]).unlink()
    with pytest.raises(FileNotFoundError, match="small2.zip not found"):
        data.load("omniglot", tmp_path)


def test_parts_without_drawings(tmp_path):
    for name in omniglot.SMALL:
        archive(tmp_path / name, {"Greek": 2})
    with pytest.raises(ValueError, match="omniglot: test_image is .* non-empty"):
        data.load("omniglot", tmp_path)
    with pytest.raises(ValueError, match="omniglot_drawers: train_image is .*non-empt"):
        data.load("omniglot_drawers", tmp_path)


def png(width, height=8):
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


def marked(content, at, value):
    """A zip archive whose headers all have another byte at a place."""
    content = bytearray(content)
    for magic, place in ((b"PK\x01\x02", at + 2), (b"PK\x03\x04", at)):
        start = -1
        while (start := content.find(magic, start + 1)) >= 0:
            content[start + place] = value
    return bytes(content)


@pytest.mark.parametrize(
    "says, change",
    [
        ("encrypted", lambda content: marked(content, 6, 1)),
        ("compression method is not", lambda content: marked(content, 8, 99)),
        ("error: Error -3", lambda content: content[:46] + b"\xff" * 8 + content[54:]),
    ],
)
def test_damaged_archives_of_drawings(says, change, tmp_path):
    path = tmp_path / omniglot.SMALL[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images/A/c/1.png", png(9))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path}:images/A/c/1.png: .*{says}"):
        data.load("omniglot", tmp_path)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a/A/c/1.png", b"junk", "no image of PNG or JPEG; expected drawings"),
        ("a/A/c/1.png", png(1025), "1025 x 8 pixels, at most 1024 a side"),
        ("a/A/c/1.png", png(105)[:40], "expected drawings"),
        ("a/A/c/1.png", bytes(zips.LARGEST + 1), "67108865 bytes, more than"),
        ("A/c/1.png", png(105), "expected drawings as PNG files in"),
        ("a/\n/c/1.png", b"junk", "no image"),
    ],
)
def test_what_is_no_drawing(name, content, says, tmp_path):
    path = tmp_path / omniglot.SMALL[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr(name, content)
    with pytest.raises(ValueError, match=says) as error:
        data.load("omniglot", tmp_path)
    assert str(error.value).isprintable() and str(path) in str(error.value)


def test_pixels_of_all_images_are_bounded():
    read = zips.image_reader(10, 100)
    assert read(io.BytesIO(png(9))).size == (9, 8)
    with pytest.raises(ValueError, match="9 x 8 pixels, .* 100 in all"):
        read(io.BytesIO(png(9)))


def test_real_drawings(shared_data):
    found = data.load("omniglot", shared_data / "omniglot")
    alphabets = [
        {found.classes[i].split("/")[0] for i in np.unique(labels)}
        for labels in (found.train_label, found.test_label)
    ]
    assert [len(x) for x in alphabets] == [5, 3] and not alphabets[0] & alphabets[1]
    assert 0.05 < np.mean(found.train_image > 0) < 0.3
