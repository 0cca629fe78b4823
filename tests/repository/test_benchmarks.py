"""Programs that time and measure, on tiny settings, not their numbers."""

import io
import math
import zipfile

import jax
import jax.numpy as jnp
import jpegs
import numpy as np
import pytest

from benchmarks import (
    decode,
    first_prediction,
    kernel_gradient,
    latency,
    performance,
    popcount,
    sparse_speed,
    step_time,
    timing,
)
from measurements import bsd100, mismatch, sparse_error
from quantnet_jax import config as config_lib
from quantnet_jax.experiments import results

QUIET = "--max-load=1000"


# Timing -------------------------------------------------------------------------------
def test_calls_are_interleaved_in_every_round():
    calls = []
    names = ("float", "other", "third")
    run = {name: lambda name=name: calls.append(name) for name in names}
    run["own"] = lambda: calls.append("own") or 2.0  # measured by itself
    seconds = timing.interleaved(run, 5, warm_up=2)
    rounds = [calls[i : i + 4] for i in range(0, len(calls), 4)]
    assert len(rounds) == 7 and all(sorted(x) == sorted(run) for x in rounds)
    assert len({tuple(x) for x in rounds}) > 1
    assert {len(x) for x in seconds.values()} == {5} and seconds["own"] == [2.0] * 5
    assert all(x >= 0 for x in seconds["float"])


def test_summary_by_hand():
    rows = timing.summary({"a": [1.0, 2.0, 4.0], "b": [3.0, 2.0, 6.0]}, "a")
    assert rows["a"]["median"] == 2.0 and rows["a"]["over_float_paired"] == 1.0
    assert rows["b"]["over_float"] == 1.5
    assert rows["b"]["over_float_paired"] == 1.5  # of 3, 1, 1.5
    assert (rows["b"]["fastest"], rows["b"]["slowest"]) == (2.0, 6.0)
    assert rows["a"]["quartiles"] == [1.5, 3.0]


@pytest.mark.parametrize(
    ("main", "options", "message"),
    [
        (popcount, "--repeats=1", "--repeats=1"),
        (popcount, "--max-load=-1", "the machine is busy"),
        (popcount, "--shapes 3", "--shapes 3"),
        (popcount, "--shapes 0x4", "--shapes 0x4"),
        (sparse_speed, "--cases 8x8:0.1", "--cases 8x8:0.1"),
        (sparse_speed, "--cases 8x8x2:2", "--cases 8x8x2:2"),
        (sparse_error, "", "no record of 'sparse'"),
        (step_time, "--devices=99", "--devices=99"),
        (step_time, "--model=bread", "model.name='bread'"),
        (step_time, "--batch=0", "batch_size=0"),
        (step_time, "--torch=/bin/false", "cannot run torch_step.py"),
        (latency, "--threads 99", "there are 1 to"),
        (latency, "--batches 0", "--batches [0]"),
        (decode, "--images=no.zip", "no.zip"),
        (decode, "--images=x --size=0", "--size=0"),
        (mismatch, "--directions=3", "--directions=3"),
        (bsd100, "--rows=bread", "--rows='bread'"),
        (bsd100, "--runs=nowhere", "holds no run"),
        (performance, "", "no accelerator here"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    main, options, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(performance.hosts, "enable_compilation_cache", lambda: None)
    words = [QUIET, *options.split(), f"--results={tmp_path}"]
    assert main.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not list(tmp_path.iterdir())


# Programs -----------------------------------------------------------------------------
def run(main, tmp_path, *options):
    """The record that a benchmark appends."""
    words = [QUIET, "--repeats=2", f"--results={tmp_path}", *options]
    assert main.main(words) == 0
    (path,) = tmp_path.glob("*.jsonl")
    record = results.read(path.stem, tmp_path)[-1]
    assert {"versions", "device", "commit", "cores", "load", "cpu"} <= record.keys()
    assert record["command"].startswith(f"python -m benchmarks.{path.stem} ")
    return record


def test_step_time(tmp_path, monkeypatch):
    taken = {}

    class Made:
        state, train_data = 0, None

        def __init__(self, config, devices):
            self.name = config.quantizer.name

        def train_batches(self, first):
            return iter(range(first, 100))

        def train_step(self, state, data, batch):
            taken.setdefault(self.name, []).append((state, batch))
            return state + 1, {}

    monkeypatch.setattr(step_time.experiment, "build", Made)
    record = run(step_time, tmp_path, "--model=small", "--methods", "quantnet")
    assert list(record["methods"]) == ["identity", "quantnet"]
    assert record["methods"]["identity"]["over_float_paired"] == 1.0
    # Each step goes on from the last one's state, on one of a few batches.
    assert taken["quantnet"] == taken["identity"]
    assert taken["identity"] == [(i, i % 4) for i in range(timing.WARM_UP + 2)]


def test_step_times_differ_in_the_method_alone():
    args = type("Args", (), {"batch": 8, "model": "small", "image_size": 8})
    a, b = (step_time.settings(m, args).to_dict() for m in ("identity", "quantnet"))
    assert a["quantizer"].pop("name") != b["quantizer"].pop("name")
    assert a == b
    rows = step_time.of_study("gap_table")
    assert next(iter(rows)) == "identity" and len(rows) > 40


def test_kernel_gradient(tmp_path, monkeypatch):
    args = ("--model=small", "--image-size=8", "--batch=8", "--profile")
    made, scans = [], []

    def built(args):
        made.append(kernel_gradient.cpu_conv.grouped_gradient)

    monkeypatch.setattr(kernel_gradient, "built", built)
    monkeypatch.setattr(kernel_gradient.step_time, "start", lambda exp: lambda: None)
    monkeypatch.setattr(
        kernel_gradient, "scan", lambda args, unroll: lambda: scans.append(unroll)
    )
    monkeypatch.setenv("XLA_FLAGS", "")
    record = run(kernel_gradient, tmp_path, *args)
    ours = kernel_gradient.cpu_conv.grouped_gradient
    assert made == [kernel_gradient.plain, kernel_gradient.slices, ours]
    assert list(record["forms"]) == list(record["profile"])
    assert set(scans) == {True, False} and record["scans"]["steps"] == 4


def test_kernel_gradients_by_any_form_are_the_same():
    x, ct = (
        jax.random.normal(jax.random.key(i), (64, 6, 5, c)) for i, c in ((0, 2), (1, 3))
    )
    given = (x, jnp.zeros((3, 3, 2, 3)), ct, (1, 1), ((1, 1), (1, 1)), 1, "highest")
    xla = kernel_gradient.plain(*given)
    for form in (kernel_gradient.slices, kernel_gradient.cpu_conv.grouped_gradient):
        np.testing.assert_allclose(form(*given), xla, rtol=1e-4, atol=1e-4)


def test_popcount(tmp_path):
    record = run(popcount, tmp_path, "--shapes", "3x4", "2x33")
    one, two = (row["speedup"] for row in record["shapes"].values())
    row = record["shapes"]["3x4"]
    assert one == pytest.approx(row["float"]["median"] / row["binary"]["median"])
    assert record["geometric_mean"] == pytest.approx((one * two) ** 0.5)


def test_sparse_speed(tmp_path):
    record = run(sparse_speed, tmp_path, "--cases", "8x8x4:0.1", "4x4x4x4:0.1")
    for row in record["cases"].values():
        assert row["sites"] == 6 and min(row["bytes"].values()) > 0
        assert row["times"]["dense"]["over_float"] == 1.0


def test_decode(tmp_path):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as images:
        for i in range(5):
            images.writestr(f"{i}.JPEG", jpegs.make_jpeg(40 + i, 30, i))
    record = run(decode, tmp_path, f"--images={archive}", "--size=8")
    assert record["images_per_second_per_core"].keys() == {"pillow", "ours"}
    assert record["images"] == 5 and record["distance_to_pillow"]["worst_image"] < 10
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    (tmp_path / "empty.zip").write_bytes(empty.getvalue())
    with pytest.raises(ValueError, match="no .jpeg"):
        decode.read(tmp_path / "empty.zip")


@pytest.fixture
def small(monkeypatch):
    given = {"shape": (8, 8, 3), "outputs": 4}
    monkeypatch.setitem(latency.NETWORKS, "small", given)


def test_first_prediction(small, tmp_path, monkeypatch):
    networks = {"tiny W1A1": ("small", {"activation": "sign_ste", "width": 4})}
    monkeypatch.setattr(first_prediction, "NETWORKS", networks)
    row = run(first_prediction, tmp_path)["networks"]["tiny W1A1"]
    assert set(row["parts"]) == {"import", "load", "predict"}
    assert sum(row["parts"].values()) < row["slowest"]


def test_our_programs_agree_in_pairs(small, monkeypatch):
    signs = {"activation": "sign_ste", "act": "hardtanh"}
    monkeypatch.setattr(latency, "SIGNS", signs)
    rows, predictor = latency.ours("small")
    x = np.random.default_rng(0).integers(0, 256, (2, *predictor.spec.shape), np.uint8)
    for name in rows:
        found = latency.agreement(name, rows, x)
        assert found["images_that_differ"] == 0 or rows[name].reference is None
    assert latency.agreement("float", rows, x)["largest_difference"] > 0.01


LOGITS = np.asarray([[0.0, 1.0, 3.0], [2.0, 0.0, -1.0], [1.0, 5.0, 0.0]])


@pytest.mark.parametrize("wrong", [LOGITS + 0.01, LOGITS * np.nan, -LOGITS])
def test_gate_stops_a_program_that_gives_other_logits(wrong):
    given = {"hard": LOGITS, "packed": LOGITS + 1e-5, "wrong": wrong}
    rows = {k: latency.Row(lambda x, v=v: v, "hard", "") for k, v in given.items()}
    found = latency.agreement("packed", rows, LOGITS)
    assert found["largest_difference"] == pytest.approx(1e-5)
    assert found["images_that_differ"] == 0 and found["same_class"] == 1.0
    with pytest.raises(ValueError, match="logits of 3 images are not those of hard"):
        latency.agreement("wrong", rows, LOGITS)


# The accelerator ----------------------------------------------------------------------
def test_floor_of_memory_counts_what_convolutions_read_and_write():
    # ResNet-8: the stem, two 3x3 convolutions at each of three sizes, and the head.
    outputs = 3 * 16 * 32 * 32 + 2 * 32 * 16 * 16 + 2 * 64 * 8 * 8
    outputs += performance.CLASSES
    assert performance.floor_bytes("resnet8", 32, batch=2) == 2 * outputs * 8 * 2


def test_a_point_is_timed_and_weighed():
    row = performance.timed("small", 8, 8, 8, repeats=2, chunk=2)
    for method in performance.METHODS:
        found = row[method]
        assert found["seconds"] > 0 and found["launches"] > 50
        assert found["memory"] > 10_000
    assert row["quantnet"]["launches"] > row["identity"]["launches"]
    assert row["quantnet"]["memory"] > row["identity"]["memory"]
    assert math.isfinite(row["over_float"])


def test_time_of_an_epoch_is_without_what_each_run_does_once(monkeypatch):
    clock, lengths = [0.0], []

    def train(config, workdir):
        lengths.append((config.epochs, config.quantizer.name, config.dtype))
        clock[0] += 100.0 + 0.25 * config.epochs

    monkeypatch.setattr(performance.train, "train", train)
    monkeypatch.setattr(performance.time, "perf_counter", lambda: clock[0])
    assert performance.run_seconds("quantnet") == pytest.approx(0.25)
    assert lengths == [(10.0, "quantnet", "bfloat16"), (30.0, "quantnet", "bfloat16")]


@pytest.mark.parametrize("name", mismatch.METHODS)
def test_configurations_of_the_mismatch_are_valid(name):
    config_lib.check(mismatch.configuration(name, 1.0))
