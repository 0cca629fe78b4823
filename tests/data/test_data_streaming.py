"""Streaming a real TFDS dataset of JPEGs, packed by the test without TensorFlow."""

import collections
import sys

import numpy as np
import pytest
from absl import flags
from jpegs import Damaged, ListSource

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
    assert data.source_info(source) == {"classes": ["a", "b", "c"]}
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


def test_resume_by_step(source):
    args = dict(batch_size=4, seed=0, size=8, threads=3)
    stream = data.train_stream(source, **args)
    for _ in range(3):
        next(stream)
    later = data.train_stream(source, **args, start_step=3)
    for _ in range(3):
        same(next(stream), next(later))


@pytest.fixture
def parsed_flags():
    """Flags as they are under absl.app.run."""
    before = flags.FLAGS.is_parsed()
    flags.FLAGS.mark_as_parsed()
    yield
    if not before:
        flags.FLAGS.unparse_flags()


def test_worker_processes_change_nothing(source, parsed_flags):
    """Nor do they hide unreadable examples, which are counted here."""
    source = Damaged(source, {2: b"", 7: None})
    args = dict(batch_size=4, seed=0, size=8, threads=1)
    here, there = data.Unreadable(2), data.Unreadable(2)
    stream = data.train_stream(source, **args, unreadable=here)
    worked = data.train_stream(source, **args, workers=2, unreadable=there)
    for _ in range(5):
        same(next(stream), next(worked))
        assert here.count == there.count
    assert there.count == 2
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


def test_real_images_are_seen_once_per_epoch_by_two_processes(real):
    """Each has a label of its own."""
    folder, files = real
    source = data.load_source("many_labels", "train", folder)
    assert {e["image"] for e in source} == set(files["train"].values())
    args = dict(batch_size=8, seed=5, size=112, threads=1, process_count=2)
    streams = [data.train_stream(source, **args, process_index=p) for p in range(2)]
    for epoch in range(2):
        seen = []
        for step in range(40 // 8):
            for p, stream in enumerate(streams):
                batch = next(stream)
                first = (5 * epoch + step) * 8 + 4 * p
                assert batch["position"].tolist() == list(range(first, first + 4))
                assert (batch["mask"] == 1).all()
                assert (batch["image"].reshape(4, -1).std(1) > 5).all()  # none blank
                seen += batch["label"].tolist()
        assert sorted(seen) == list(range(40))
    source = data.load_source("many_labels", "validation", folder)
    seen, black = [], 0
    for p in range(2):
        stream = data.eval_stream(
            *[source], batch_size=4, size=112, resize=128, process_count=2,
            process_index=p, threads=1,
        )  # fmt: skip
        for batch in stream:
            real = batch["mask"] == 1
            seen += batch["label"][real].tolist()
            assert (batch["image"][real].reshape(real.sum(), -1).std(1) > 5).all()
            black += (~real).sum()
    assert sorted(seen) == list(range(11)) and black == 1


def test_small_dataset_by_name(tiny):
    ds = data.load_tfds("tiny_pngs", tiny[0])
    assert ds.classes == ("x", "y") and ds.name == "tiny_pngs"
    assert ds.train_image.shape == (6, 5, 4, 3) and ds.test_image.shape == (3, 5, 4, 3)
    for part in ("train", "test"):
        image, label = data.split(ds, part).values()
        value = image[:, 0, 0, 0]
        assert sorted(value) == list(range(0, 10 * len(value), 10))
        assert (image == value[:, None, None, None]).all()
        np.testing.assert_array_equal(label, value // 10 % 2)


def test_images_of_many_sizes_are_not_for_memory(tiny):
    with pytest.raises(ValueError, match="images of 11 sizes"):
        data.load_tfds("tiny_jpegs", tiny[0])


def test_missing_datasets(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="tfds build imagenet2012") as error:
        data.load_source("imagenet2012", "train", tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="TFDS has no such dataset") as error:
        data.load_source("no_such_set", "train", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="Unknown split 'test'"):
        data.load_source("tiny_jpegs", "test", tiny[0])
    with pytest.raises(FileNotFoundError, match="original files"):
        data.load_tfds("cifar10", tmp_path)


@pytest.mark.parametrize("package", ["tensorflow_datasets", "grain"])
def test_missing_packages_are_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install"):
        if package == "grain":
            source = ListSource([{"image": b"", "label": 0}])
            data.train_stream(source, batch_size=1, seed=0)
        else:
            data.load("mnist")


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
