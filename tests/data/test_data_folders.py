"""Images of one's own in folders by class: the list, in memory, streamed, errors."""

import io
import os

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config, train

from quantnet_jax import data
from quantnet_jax.config import check
from quantnet_jax.data.sets import folders
from quantnet_jax.training import experiment, feed

COLORS = {"blue": (10, 20, 230), "red": (240, 30, 20), "white": (250, 250, 240)}


def paint(path, color, size=(12, 10), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


@pytest.fixture
def mine(tmp_path):
    """8 training and 2 test images of each of three classes, of several sizes."""
    for name, color in COLORS.items():
        for i in range(8):
            paint(tmp_path / "train" / name / f"{i}.png", color, (12 + i, 10))
        for i in range(2):
            paint(tmp_path / "test" / name / f"{i}.JPG", color, quality=95)
    (tmp_path / "train" / "red" / "notes.txt").write_text("x")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


def config_of(folder, **changes):
    changes = {"data__train_size": 0, "data__test_size": 0, **changes}
    changes = {"data__image_size": 8, "batch_size": 8, "eval_batch_size": 8, **changes}
    config = tiny_config(data__name="folder", data__folder=str(folder), **changes)
    check(config)
    return config


def made(config):
    return feed.make_feed(config, experiment.Experiment(config).runner)


def test_classes_files_and_pixels(mine):
    found = made(config_of(mine))
    assert found.info == {"classes": ["blue", "red", "white"]}
    assert (found.train_size, found.test_size, found.shape) == (24, 6, (8, 8, 3))
    for part, each in (("train", 8), ("test", 2)):
        held = getattr(found, f"{part}_data")
        np.testing.assert_array_equal(held["label"], np.repeat([0, 1, 2], each))
        wanted = np.repeat(list(COLORS.values()), each, axis=0)[:, None, None]
        assert np.abs(held["image"].astype(int) - wanted).max() <= 4
    exact = found.train_data["image"].reshape(-1, 3) / 255
    np.testing.assert_allclose(found.mean, exact.mean(0), atol=1e-6)


def test_streamed_set_has_the_same_examples_and_trains(mine, monkeypatch):
    held = made(config_of(mine))
    monkeypatch.setattr(folders, "IN_MEMORY", 1000)
    exp = experiment.build(config_of(mine, epochs=1.0, eval_every=1.0))
    assert exp.feed.train_data is None and exp.feed.info == held.info
    batches = list(exp.feed.test())
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in batches])
    images = np.concatenate([b["image"][b["mask"] > 0] for b in batches])
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(labels[order], held.test_data["label"])
    assert np.abs(images[order].astype(int) - held.test_data["image"]).max() <= 4
    state, metrics = train(exp, exp.steps)
    assert np.isfinite(metrics["loss"]) and exp.evaluate(state)[0]["examples"] == 6


def test_sizes_and_splits_go_by_the_list(mine):
    config = config_of(mine, data__train_size=6, data__classes=2, data__test_size=2)
    found = made(config)
    assert (found.train_size, found.test_size) == (6, 2)
    assert found.info == {"classes": ["blue", "red"]}
    found = made(config_of(mine / "train", data__validation_size=3))  # CLASS/FILE
    assert (found.train_size, found.test_size) == (21, 3)
    with pytest.raises(ValueError, match="^data.folder=.*data.validation_size"):
        made(config_of(mine / "train"))


def test_images_are_upright_on_white_and_of_eight_bits(tmp_path):
    half = Image.new("RGB", (16, 8), (250, 0, 0))
    half.paste((0, 0, 250), (8, 0, 16, 8))  # red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise: red above
    out = io.BytesIO()
    half.save(out, "JPEG", exif=exif, quality=95)
    with Image.open(io.BytesIO(folders.plain(out.getvalue()))) as image:
        assert image.size == (8, 16)
        assert image.getpixel((4, 2))[0] > 200 and image.getpixel((4, 13))[2] > 200

    def pixel(image):
        out = io.BytesIO()
        image.save(out, "PNG")
        with Image.open(io.BytesIO(folders.plain(out.getvalue()))) as image:
            return image.convert("RGB").getpixel((0, 0))

    assert pixel(Image.new("RGBA", (3, 3), (0, 0, 0, 0))) == (255, 255, 255)
    assert pixel(Image.fromarray(np.full((3, 3), 0x8040, np.uint16))) == (128,) * 3
    keyed = Image.fromarray(np.full((3, 3), 0x8040, np.uint16))
    keyed.info["transparency"] = 7
    assert pixel(keyed) == (128,) * 3
    out = io.BytesIO()
    Image.fromarray(np.full((3, 3), 200, np.int32)).save(out, "TIFF")
    with Image.open(io.BytesIO(folders.plain(out.getvalue()))) as image:
        assert image.getpixel((0, 0)) == (200,) * 3
    plain = io.BytesIO()
    half.save(plain, "JPEG")
    assert folders.plain(plain.getvalue()) is plain.getvalue() or (
        folders.plain(plain.getvalue()) == plain.getvalue()
    )


def test_unreadable_images_are_counted_or_named(mine):
    bad = mine / "train" / "red" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(ValueError, match="red/3.png: .*") as error:
        made(config_of(mine))
    assert "\n" not in str(error.value)
    found = made(config_of(mine, data__max_unreadable=1))
    assert found.train_size == 23 and list(np.bincount(found.train_data["label"])) == [
        *(8, 7, 8),
    ]


def test_only_regular_files_are_read(mine, monkeypatch):
    monkeypatch.setattr(folders, "LARGEST", 10_000)
    bad = mine / "train" / "red" / "z.png"
    for make in (
        lambda: os.mkfifo(bad),
        lambda: bad.symlink_to("/dev/zero"),
        lambda: bad.write_bytes(bytes(10_001)),
        bad.mkdir,
    ):
        make()
        with pytest.raises(ValueError, match=r"z.png: OSError: it (is no|has more)"):
            made(config_of(mine))
        bad.rmdir() if bad.is_dir() else bad.unlink()
    bad.symlink_to(mine / "train" / "red" / "0.png")
    assert made(config_of(mine)).train_size == 25
    os.mkfifo(mine / "train" / "blue" / "!.png")
    with pytest.raises(ValueError, match=r"!.png is not an image.*no regular file"):
        made(config_of(mine, data__image_size=0))


def test_names_that_are_not_printable_are_escaped(mine):
    for name in (b"we\nird\x1b.png", b"\xff\xfe.png"):
        path = os.fsencode(mine / "train" / "red") + b"/" + name
        with open(path, "wb") as file:
            file.write(b"junk")
        says = r"(\\x1b|\\udcff).*OSError: no image of a known format;"
        with pytest.raises(ValueError, match=says) as error:
            made(config_of(mine))
        assert str(error.value).isprintable()
        os.unlink(path)


def test_errors_name_the_folder(mine):
    def error(changed=mine, **changes):
        with pytest.raises((ValueError, FileNotFoundError)) as e:
            made(config_of(changed, **changes))
        assert "\n" not in str(e.value) and str(e.value).startswith("data.folder=")
        return str(e.value)

    assert "no such folder" in error(mine / "nowhere")
    assert "no such folder" in error(mine / "train" / "red" / "notes.txt")
    assert "no images, expected CLASS/FILE" in error(mine / "train" / "red")
    assert "pixels, expected 12 x 10 as the first" in error(data__image_size=0)
    (mine / "test" / "green").mkdir()
    assert "test/green: no such class" in error()
    (mine / "train" / "green").mkdir()
    assert "train/green: no images" in error()


def test_too_many_images_of_a_size_of_their_own(mine, monkeypatch):
    monkeypatch.setattr(folders, "IN_MEMORY", 1000)
    with pytest.raises(ValueError, match="^data.folder=.*12 x 10 .*data.image_size"):
        made(config_of(mine, data__image_size=0))
    assert jax.devices()  # nothing was put on them
    assert data.FOLDER == "folder"
