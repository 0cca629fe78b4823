"""Examples that cannot be read: replaced or masked out, counted, named, refused."""

import io
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jpegs import Damaged, ListSource, make_jpeg
from PIL import Image
from tiny import tiny_config

from quantnet_jax import config as config_lib
from quantnet_jax import data
from quantnet_jax.data import jpeg, streaming, train_indices
from quantnet_jax.distributed import runners
from quantnet_jax.training import feed

ARGS = dict(batch_size=4, seed=3, size=8, threads=1)
BAD = {2: b"", 5: make_jpeg(50, 40, 0)[:300], 6: None}


@pytest.fixture(scope="module")
def good():
    """Eleven images, each with its row as the label."""
    rows = [{"image": make_jpeg(50 + i, 40, i), "label": i} for i in range(11)]
    return ListSource(rows)


@pytest.fixture(scope="module")
def damaged(good):
    return Damaged(good, BAD)


@pytest.fixture
def warnings(monkeypatch):
    """What is logged, one line each."""
    lines = []
    log = lambda message, *args: lines.append(message % args)
    monkeypatch.setattr(streaming.logging, "warning", log)
    return lines


@pytest.mark.parametrize(
    ("size", "says"), [((65500, 1), "16768000 x 256"), ((9000, 9000), "9000 x 9000")]
)
def test_images_that_would_take_much_memory_are_unreadable(size, says, good, warnings):
    content = io.BytesIO()
    Image.new("L", size).save(content, "JPEG")
    with pytest.raises(OSError, match=f"{says} pixels, expected at most 67108864"):
        jpeg.decode_eval(content.getvalue(), 224, 256)
    met = data.Unreadable(1)
    args = dict(batch_size=4, size=224, resize=256, threads=1, unreadable=met)
    stream = data.eval_stream(Damaged(good, {3: content.getvalue()}), **args)
    assert sum(batch["mask"].sum() for batch in stream) == 10
    assert met.count == 1 and says in warnings[0]
    if size == (9000, 9000):
        with pytest.raises(OSError, match=says):
            jpeg.decode_train(content.getvalue(), 8, seed=0, position=0)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def test_training_takes_the_next_readable_example(good, damaged, warnings):
    met = data.Unreadable(3)
    stream = data.train_stream(damaged, **ARGS, unreadable=met)
    usual = data.train_stream(good, **ARGS)
    order = np.concatenate(
        [train_indices(s, size=11, batch_size=4, seed=3)["index"] for s in range(13)]
    )
    seen = set()
    for step in range(11):  # four epochs
        batch, want = next(stream), next(usual)
        assert batch.keys() == want.keys() and (batch["mask"] == 1).all()
        np.testing.assert_array_equal(batch["position"], want["position"])
        for i in range(4):
            place = 4 * step + i
            row = next(r for r in order[place:] if r not in BAD)
            seen |= {int(order[place])} & BAD.keys()
            assert batch["label"][i] == row
            np.testing.assert_array_equal(
                batch["image"][i],
                jpeg.decode_train(good[row]["image"], 8, seed=3, position=place),
            )
        assert met.count >= len(seen)
    # Each is counted and named once, however often it is met.
    assert met.count == 3 and len(warnings) == 3
    text = "\n".join(warnings)
    assert len(text.splitlines()) == 3
    for row in BAD:
        assert f": example {row}: " in text
    assert "unreadable (1 of at most 3)" in warnings[0]
    assert "found 0 bytes that are no readable image" in text
    assert "RuntimeError: data hash mismatch" in text


def test_replacements_are_a_function_of_the_step(damaged, warnings):
    args = ARGS | {"unreadable": data.Unreadable(3)}
    whole = take(data.train_stream(damaged, **args), 6)
    for first in (1, 4):
        batch = next(data.train_stream(damaged, **args, start_step=first))
        for key in batch:
            np.testing.assert_array_equal(batch[key], whole[first][key])
    parts = [
        data.train_stream(damaged, **args, process_index=p, process_count=2)
        for p in range(2)
    ]
    for batch in whole:
        halves = [next(part) for part in parts]
        for key in batch:
            joined = np.concatenate([half[key] for half in halves])
            np.testing.assert_array_equal(joined, batch[key])


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_over_the_limit_training_stops_with_one_line(damaged, warnings, limit):
    met = data.Unreadable(limit)
    stream = data.train_stream(damaged, **ARGS, unreadable=met)
    with pytest.raises(ValueError, match=f"max_unreadable={limit}: example") as error:
        take(stream, 4)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{met.count} unreadable example")
    assert limit < met.count <= 3 and len(warnings) == limit


def test_without_a_counter_none_is_allowed():
    source = ListSource([{"image": b"no image", "label": 0}])
    stream = data.eval_stream(source, batch_size=1, size=8, resize=8, threads=1)
    with pytest.raises(ValueError, match="1 unreadable .* example 0: found 8 bytes"):
        next(stream)
    source = ListSource([{"image": make_jpeg(60, 60, 0)[:400], "label": 0}])
    stream = data.train_stream(source, batch_size=1, seed=0, size=8, threads=1)
    with pytest.raises(ValueError, match="no readable image .*expected an image"):
        next(stream)


def test_datasets_without_a_readable_example_end(warnings):
    source = ListSource([{"image": b"", "label": 1}] * 3)
    with pytest.raises(ValueError, match="3 unreadable examples"):
        take(data.train_stream(source, **ARGS, unreadable=data.Unreadable(2)), 1)
    # As many as are allowed: nothing to put there, so it does not count as an example.
    batch = next(data.train_stream(source, **ARGS, unreadable=data.Unreadable(3)))
    assert not batch["mask"].any() and not batch["image"].any()


def test_evaluation_masks_them_out(good, damaged, warnings):
    met = data.Unreadable(3)
    args = dict(batch_size=4, size=8, resize=10, threads=1)
    usual = list(data.eval_stream(good, **args))
    found = list(data.eval_stream(damaged, **args, unreadable=met))
    assert len(found) == len(usual) == 3
    labels = []
    for batch, want in zip(found, usual, strict=True):
        real = batch["mask"] == 1
        np.testing.assert_array_equal(batch["image"][real], want["image"][real])
        assert not batch["image"][~real].any() and not batch["label"][~real].any()
        labels += batch["label"][real].tolist()
    assert labels == [row for row in range(11) if row not in BAD]
    assert met.count == 3 == len(warnings)
    with pytest.raises(ValueError, match="3 unreadable examples, .*=2: example 2"):
        list(data.eval_stream(damaged, **args, unreadable=data.Unreadable(2)))


def test_many_of_them_are_summed_up(warnings):
    source = ListSource([{"image": b"", "label": 0}] * 8)
    met = data.Unreadable(6)
    met.add(source, range(6))
    with pytest.raises(ValueError, match="example 2: .*; and 4 more; fix") as error:
        met.add(source, [0, 6])
    assert "example 3" not in str(error.value)
    with pytest.raises(ValueError, match="max_unreadable=-1"):
        data.Unreadable(-1)


@pytest.fixture
def broken_set(tiny, tmp_path):
    """The tiny dataset with a damaged record."""
    folder = tmp_path / "data"
    shutil.copytree(tiny[0], folder)
    (path,) = pathlib.Path(folder).glob("tiny_jpegs/*/*train*record*")
    content = bytearray(path.read_bytes())
    content[9000:9100] = b"\xa5" * 100  # the checksum of a chunk
    path.write_bytes(content)
    return folder


def test_damaged_file_of_a_set_is_named(broken_set, warnings):
    source = data.load_source("tiny_jpegs", "train", broken_set)
    met = data.Unreadable(1)
    stream = data.train_stream(source, **ARGS, unreadable=met)
    for batch in take(stream, 3):  # an epoch
        assert (batch["mask"] == 1).all()
    assert met.count == 1
    assert "of 'train' (record 3 of tiny_jpegs-train.array_record-00000" in warnings[0]
    assert "Corrupted" in warnings[0]


def test_a_run_counts_them(broken_set, warnings):
    config = tiny_config(
        data__name="tfds:tiny_jpegs", data__folder=str(broken_set), data__train_size=0,
        data__test_size=0, data__image_size=8, data__max_unreadable=1, batch_size=4,
    )  # fmt: skip
    config_lib.check(config)
    runner = runners.make_runner("jit", jax.devices()[:1])
    found = feed.make_feed(config, runner)
    assert found.unreadable() == 0
    found.sample()  # the whole dataset
    assert found.unreadable() == 1
    take(found.train(0), 3)
    assert found.unreadable() == 1 == len(warnings)
    config.data.max_unreadable = 0
    found = feed.make_feed(config, runner)
    with pytest.raises(ValueError, match="data.max_unreadable=0: example 3 of 'train'"):
        take(found.train(0), 3)


def test_datasets_in_memory_have_none():
    runner = runners.make_runner("jit", jax.devices()[:1])
    config = tiny_config()
    assert feed.make_feed(config, runner).unreadable() == 0
    config.data.max_unreadable = 2
    with pytest.raises(ValueError, match="data.max_unreadable=2.*held in memory"):
        config_lib.check(config)
