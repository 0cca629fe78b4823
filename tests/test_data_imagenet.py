"""Streaming a real TFDS set of JPEGs, packed by the test without TensorFlow."""

import collections
import io
import sys
import zipfile

import numpy as np
import pytest
from absl import flags
from jpegs import make_jpeg
from PIL import Image

from quantnet_jax import data
from quantnet_jax.data import jpeg, train_indices


@pytest.fixture(scope="module")
def source(tiny):
    return data.load_source("tiny_jpegs", "train", tiny[0])


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_source_hands_out_the_original_bytes_without_tensorflow(tiny, source):
    folder, files = tiny
    assert data.class_names(source) == ("a", "b", "c")
    found = {e["file_name"].decode(): e["image"] for e in source}
    assert found == files["train"]
    assert "tensorflow" not in sys.modules


def test_training_batches_follow_the_common_order(source):
    args = dict(batch_size=4, seed=3)
    stream = data.train_stream(source, **args, size=16, threads=2)
    for step in range(6):  # over the border of two epochs
        batch = next(stream)
        plan = train_indices(step, size=11, **args)
        assert batch["image"].shape == (4, 16, 16, 3)
        assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["position"], plan["position"])
        np.testing.assert_array_equal(batch["mask"], plan["mask"])
        for i in range(4):
            example = source[int(plan["index"][i])]
            assert batch["label"][i] == example["label"]
            want = jpeg.decode_train(
                example["image"], 16, seed=3, position=int(plan["position"][i])
            )
            np.testing.assert_array_equal(batch["image"][i], want)


def test_processes_share_each_batch(source):
    args = dict(batch_size=6, seed=1, size=8, threads=1)
    whole = data.train_stream(source, **args)
    parts = [
        data.train_stream(source, **args, process_index=p, process_count=3)
        for p in range(3)
    ]
    for _ in range(3):
        pieces = [next(p) for p in parts]
        joined = {k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]}
        same(next(whole), joined)


def test_resume_by_state_and_by_step(source):
    args = dict(batch_size=4, seed=0, size=8, threads=3)
    stream = data.train_stream(source, **args)
    for _ in range(3):
        next(stream)
    state = stream.get_state()
    rest = [next(stream) for _ in range(3)]
    again = data.train_stream(source, **args)
    again.set_state(state)
    later = data.train_stream(source, **args, start_step=3)
    for batch in rest:
        same(batch, next(again))
        same(batch, next(later))


@pytest.fixture
def parsed_flags():
    """Flags as they are under absl.app.run."""
    before = flags.FLAGS.is_parsed()
    flags.FLAGS.mark_as_parsed()
    yield
    if not before:
        flags.FLAGS.unparse_flags()


def test_worker_processes_change_nothing(source, parsed_flags):
    args = dict(batch_size=4, seed=0, size=8, threads=1)
    stream = data.train_stream(source, **args)
    worked = data.train_stream(source, **args, workers=2)
    for _ in range(5):
        same(next(stream), next(worked))
    del worked


@pytest.mark.parametrize("batch_size, count", [(4, 1), (8, 4), (6, 2), (2, 2)])
def test_evaluation_counts_each_example_once(tiny, batch_size, count):
    folder, files = tiny
    source = data.load_source("tiny_jpegs", "validation", folder)
    want = collections.Counter()
    for example in source:
        want[jpeg.decode_eval(example["image"], 16, 20).tobytes()] += 1
    seen, lengths, labels = collections.Counter(), set(), []
    for p in range(count):
        batches = list(
            data.eval_stream(
                source,
                batch_size=batch_size,
                size=16,
                resize=20,
                process_index=p,
                process_count=count,
                threads=2,
            )
        )
        lengths.add(len(batches))
        for b in batches:
            assert b["image"].shape == (batch_size // count, 16, 16, 3)
            real = b["mask"] == 1
            seen.update(image.tobytes() for image in b["image"][real])
            labels += b["label"][real].tolist()
            assert not b["image"][~real].any() and not b["label"][~real].any()
    assert seen == want and sum(want.values()) == 7
    assert sorted(labels) == sorted(e["label"] for e in source)
    assert lengths == {data.eval_steps(7, batch_size)}


def test_random_boxes_lie_inside_and_have_the_right_shape():
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(2000):
        left, top, w, h = jpeg.random_box(500, 375, rng)
        assert left >= 0 and top >= 0 and left + w <= 500 and top + h <= 375
        assert 0.74 < w / h < 1.35
        areas.append(w * h / (500 * 375))
    assert 0.07 < min(areas) < 0.1 and max(areas) > 0.9
    assert 0.4 < np.mean(areas) < 0.55
    # Too long for any try: the largest centred box.
    assert jpeg.random_box(10_000, 6, rng) == (4996, 0, 8, 6)
    assert jpeg.random_box(1, 1, rng) == (0, 0, 1, 1)


@pytest.mark.parametrize("position", range(6))
def test_scaled_decoding_is_close_to_full_decoding(position):
    """The same box cut from the fully decoded picture and shrunk by averaging."""
    content = make_jpeg(800, 640, position)
    out = jpeg.decode_train(content, 32, seed=5, position=position).astype(float)
    bits = np.random.Philox(
        key=np.array([5, position], np.uint64),
        counter=np.array([0, 0, 0, 1], np.uint64),
    )
    left, top, w, h = jpeg.random_box(800, 640, np.random.Generator(bits))
    full = Image.open(io.BytesIO(content)).crop((left, top, left + w, top + h))
    want = np.asarray(full.resize((32, 32), Image.Resampling.BOX)).astype(float)
    assert abs(out - want).mean() < 2.0
    shifted = np.roll(want, 1, axis=1)
    assert abs(out - shifted).mean() > 2 * abs(out - want).mean()


def test_random_crops_depend_on_seed_and_position():
    content = make_jpeg(64, 48, 0)
    crops = {
        jpeg.decode_train(content, 8, seed=s, position=p).tobytes()
        for s in range(3)
        for p in range(3)
    }
    assert len(crops) == 9


@pytest.mark.parametrize("width, height", [(90, 60), (60, 90), (64, 64), (63, 200)])
def test_centre_crop_of_a_gradient(width, height):
    """On a horizontal and vertical ramp the crop's pixel values tell its place."""
    x = np.linspace(0, 250, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 250, height)[:, None].repeat(width, 1)
    picture = np.stack([x, y, np.full_like(x, 9)], -1).round().astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    out = jpeg.decode_eval(stream.getvalue(), 28, 32).astype(float)
    assert out.shape == (28, 28, 3)
    side = 28 / 32 * min(width, height)  # the crop in pixels of the original
    for channel, length in ((0, width), (1, height)):
        ramp = out[:, :, channel].mean(axis=channel)
        centre = (np.arange(28) + 0.5) / 28 * side + (length - side) / 2 - 0.5
        np.testing.assert_allclose(ramp, centre * 250 / (length - 1), atol=3.5)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_modes_become_rgb(mode):
    content = make_jpeg(40, 40, 0, mode)
    assert jpeg.decode_eval(content, 16, 16).shape == (16, 16, 3)
    assert jpeg.decode_train(content, 16, seed=0, position=0).shape == (16, 16, 3)


def test_real_imagenet_pictures(shared_data):
    path = shared_data / "imagenet-sample" / "imagenet_sample_51.zip"
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith(".JPEG")]
        contents = [archive.read(n) for n in names]
    assert len(contents) == 51
    # A list of examples is a source too: only len and __getitems__ are used.
    source = ListSource([{"image": c, "label": i} for i, c in enumerate(contents)])
    stream = data.eval_stream(source, batch_size=51, size=112, resize=128, threads=1)
    batch = next(stream)
    assert batch["label"].tolist() == list(range(51))
    spread = batch["image"].reshape(51, -1).std(1)
    assert (spread > 5).all()  # no picture came out blank
    train = data.train_stream(source, batch_size=51, seed=0, size=112, threads=1)
    assert sorted(next(train)["label"].tolist()) == list(range(51))


class ListSource(list):
    """A sequence with the batched read of TFDS sources."""

    def __getitems__(self, rows):
        return [self[r] for r in rows]


def test_small_set_by_name(tiny):
    ds = data.load_tfds("tiny_pngs", tiny[0])
    assert ds.classes == ("x", "y") and ds.name == "tiny_pngs"
    assert ds.train_image.shape == (6, 5, 4, 3) and ds.test_image.shape == (3, 5, 4, 3)
    for part in ("train", "test"):
        image, label = data.split(ds, part).values()
        value = image[:, 0, 0, 0]
        assert sorted(value) == list(range(0, 10 * len(value), 10))
        assert (image == value[:, None, None, None]).all()
        np.testing.assert_array_equal(label, value // 10 % 2)


def test_pictures_of_many_sizes_are_not_for_memory(tiny):
    with pytest.raises(ValueError, match="images of 11 sizes"):
        data.load_tfds("tiny_jpegs", tiny[0], splits=("train", "validation"))


def test_missing_sets(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="tfds build imagenet2012") as error:
        data.load_source("imagenet2012", "train", tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="TFDS knows no such set") as error:
        data.load_source("no_such_set", "train", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="Unknown split 'test'"):
        data.load_source("tiny_jpegs", "test", tiny[0])
    with pytest.raises(FileNotFoundError, match="original files"):
        data.load("cifar10", tfds_dir=tmp_path)


@pytest.mark.parametrize("package", ["tensorflow_datasets", "grain"])
def test_missing_packages_are_named(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install"):
        if package == "grain":
            source = ListSource([{"image": b"", "label": 0}])
            data.train_stream(source, batch_size=1, seed=0)
        else:
            data.load("mnist", tfds_dir=tmp_path)


def test_broken_picture_is_named():
    source = ListSource([{"image": b"no picture", "label": 0}])
    stream = data.eval_stream(source, batch_size=1, size=8, resize=8, threads=1)
    with pytest.raises(ValueError, match="example 0: found 10 bytes"):
        next(stream)
    good = make_jpeg(60, 60, 0)
    source = ListSource([{"image": good[: len(good) // 2], "label": 0}])
    stream = data.train_stream(source, batch_size=1, seed=0, size=8, threads=1)
    with pytest.raises(ValueError, match="no readable image"):
        next(stream)


def test_workers_need_flags(source):
    if flags.FLAGS.is_parsed():
        pytest.skip("something has parsed the flags of this process")
    with pytest.raises(ValueError, match="workers=1 needs parsed flags"):
        data.train_stream(source, batch_size=4, seed=0, workers=1)


def test_bad_arguments(source):
    with pytest.raises(ValueError, match="not divisible"):
        data.train_stream(source, batch_size=5, seed=0, process_count=2)
    with pytest.raises(ValueError, match="not divisible"):
        data.eval_stream(source, batch_size=5, process_count=2)
    with pytest.raises(ValueError, match="size=64, resize=32"):
        data.eval_stream(source, batch_size=5, size=64, resize=32)
    with pytest.raises(ValueError, match="threads=0"):
        data.train_stream(source, batch_size=4, seed=0, threads=0)
