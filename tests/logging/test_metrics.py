"""Tests of run records: strict JSON, resumed files, events, progress, tables."""

import io
import json
import math
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest

from quantnet_jax.logging import meter, records
from quantnet_jax.logging.progress import Progress, summary
from quantnet_jax.logging.scores import PLAIN, show, unit_of
from quantnet_jax.report import load_run

PERCENT = unit_of({"name": "accuracy", "unit": "%"})
PSNR = {"name": "psnr", "unit": " dB", "higher_is_better": True}


def refuse(token):
    raise AssertionError(f"{token} is not JSON")


def read_lines(folder):
    with open(folder / "metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line, parse_constant=refuse) for line in file]


class Terminal(io.StringIO):
    def isatty(self):
        return True


LAYERS = {
    "conv/kernel": {
        "shape": (3, 3, 1, 4),
        "bits": 1,
        "distance": 0.25,
        "histogram": {"edges": np.array([-1.0, 0.0, 1.0]), "counts": np.array([1, 3])},
    }
}


def write_steps(writer, first, last):
    for step in range(first, last + 1):
        writer.write("train", step, {"loss": 1 / step, "epoch": step / 3})
        if step % 2 == 0:
            writer.write("eval", step, {"soft": np.float32(0.1) * step, "hard": 0.0})
            writer.write("layers", step, {"layers": LAYERS})


def test_records_read_back_with_equal_floats(tmp_path):
    values = [0.1, 1 / 3, 1e-310, 5e300, float(np.nextafter(1.0, 2.0))]
    with records.Writer(tmp_path, tensorboard=False) as writer:
        for step, value in enumerate(values):
            writer.write("train", step, {"loss": value})
        writer.write("train", 9, {"loss": jnp.float32(0.1), "n": np.int64(3)})
        # A reader sees every line at once: the run may be killed at any time.
        lines = read_lines(tmp_path)
    assert [line["loss"] for line in lines[:-1]] == values
    assert np.float32(lines[-1]["loss"]) == np.float32(0.1)
    assert lines[-1] == {"step": 9, "kind": "train", "loss": lines[-1]["loss"], "n": 3}


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 3000, b'{"step": 3, "kind"', b"\xff\xfe\n", b"[" * 99999, b"\0\n[]\n3\n"],
)
def test_spoiled_end_is_dropped_and_a_spoiled_middle_named(tmp_path, tail):
    with records.Writer(tmp_path, tensorboard=False) as writer:
        write_steps(writer, 1, 3)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    records.Writer(tmp_path, tensorboard=False, resume_step=3).close()
    assert path.read_bytes() == whole
    path.write_bytes(tail + b"\n" + whole)
    with pytest.raises(ValueError, match=r"metrics.jsonl' line 1 is not .*") as error:
        records.Writer(tmp_path, tensorboard=False, resume_step=3)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    load_run(tmp_path)  # the report leaves it out


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_a_number_becomes_null(tmp_path, bad):
    with records.Writer(tmp_path, tensorboard=True) as writer:
        writer.write("train", 1, {"loss": bad, "all": jnp.array([1.0, bad])})
    assert read_lines(tmp_path)[0]["loss"] is None
    assert read_lines(tmp_path)[0]["all"] == [1.0, None]


@pytest.mark.parametrize("resume", [0, 2, 3, 7])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path, resume):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with records.Writer(whole, tensorboard=False) as writer:
        write_steps(writer, 1, 7)
    with records.Writer(cut, tensorboard=False) as writer:
        write_steps(writer, 1, min(resume + 3, 7))
    with open(cut / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 6, "kind": "tr')  # killed within a line
    with records.Writer(cut, tensorboard=False, resume_step=resume) as writer:
        write_steps(writer, resume + 1, 7)
    names = ("whole", "cut")
    texts = [(tmp_path / n / "metrics.jsonl").read_bytes() for n in names]
    assert texts[0] == texts[1]
    assert os.listdir(cut) == ["metrics.jsonl"]


def test_a_fresh_run_starts_an_empty_file_and_damage_is_named(tmp_path):
    with records.Writer(tmp_path, tensorboard=False) as writer:
        write_steps(writer, 1, 3)
    records.Writer(tmp_path, tensorboard=False).close()
    assert read_lines(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('nonsense\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl' line 1 is not a record"):
        records.Writer(tmp_path, tensorboard=False, resume_step=1)


def test_other_processes_write_nothing(tmp_path):
    stream = Terminal()
    with records.Writer(tmp_path / "run", active=False) as writer:
        write_steps(writer, 1, 4)
        writer.flush()
    with Progress(4, stream=stream, active=False) as progress:
        progress.update(1, {"loss": 1.0})
        progress.write("hello")
    assert not (tmp_path / "run").exists()
    assert stream.getvalue() == ""


def test_events_hold_scalars_and_histograms(tmp_path):
    pytest.importorskip("tensorboardX")
    with records.Writer(tmp_path) as writer:
        write_steps(writer, 1, 4)
    files = list((tmp_path / "tensorboard").iterdir())
    assert len(files) == 1
    record = pytest.importorskip("tensorboardX.record_writer")
    assert record is not None
    from tensorboardX.proto.event_pb2 import Event

    events, data = [], files[0].read_bytes()
    while data:  # TFRecord: length, its checksum, payload, its checksum
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    values = [(e.step, v) for e in events for v in e.summary.value]
    losses = {s: v.simple_value for s, v in values if v.tag == "train/loss"}
    assert losses == {s: np.float32(1 / s) for s in (1, 2, 3, 4)}
    soft = {s: v.simple_value for s, v in values if v.tag == "eval/soft"}
    assert soft == {s: np.float32(np.float32(0.1) * s) for s in (2, 4)}
    histograms = [v.histo for _, v in values if v.tag == "weights/conv/kernel"]
    assert len(histograms) == 2 and histograms[0].num == 4
    assert histograms[0].sum == 1 * -0.5 + 3 * 0.5
    assert list(histograms[0].bucket) == [1, 3]


def test_without_tensorboardx_only_the_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with records.Writer(tmp_path) as writer:
        write_steps(writer, 1, 2)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_write_json_is_strict_and_atomic(tmp_path):
    path = tmp_path / "result.json"
    records.write_json(path, {"soft": np.float64(1 / 3), "bad": math.nan, "t": (1, 2)})
    text = path.read_text()
    expected = {"soft": 1 / 3, "bad": None, "t": [1, 2]}
    assert json.loads(text, parse_constant=refuse) == expected
    with pytest.raises(ValueError, match="cannot write set"):
        records.write_json(path, {"soft": {1, 2}})
    assert path.read_text() == text
    assert os.listdir(tmp_path) == ["result.json"]
    records.write_json(path, {"b": jnp.bfloat16(1.5), "k": jnp.arange(2), "s": True})
    assert json.loads(path.read_text()) == {"b": 1.5, "k": [0, 1], "s": True}


def test_progress_prints_one_line_per_record_without_a_terminal():
    stream = io.StringIO()
    with Progress(200, unit=PERCENT, stream=stream, start=50) as progress:
        for step in range(51, 101):
            progress.update(step, {"loss": 0.5} if step % 25 == 0 else None)
        progress.update(100, {"soft": 0.91, "hard": 0.905, "gap": 0.005})
        progress.write("saved")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4 and lines[-1] == "saved"
    assert lines[0].startswith("step 75/200 | loss 0.5 | ")
    wanted = r"soft 91.00% hard 90.50% gap \+0.50pt \| \d+s done, \d+s left$"
    assert re.search(wanted, lines[2])


def test_progress_is_a_bar_on_a_terminal():
    stream = Terminal()
    with Progress(10, unit=unit_of(PSNR), stream=stream, start=2) as progress:
        progress.update(4, {"soft": 30.5, "hard": 30.75, "gap": -0.25})
        progress.write("a line")
        progress.update(10)
    text = stream.getvalue()
    assert "\r" in text and "10/10" in text and "a line\n" in text
    assert "soft 30.50 dB hard 30.75 dB gap -0.25 dB" in text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 1.23456, "1.235"), ("loss", math.nan, "nan"), ("hard", None, "-"),
        ("hard_bn", 1, "100.00%"), ("gap", 0.0, "+0.00pt"), ("epoch", 3.0, "3"),
        ("soft", -math.inf, "-inf"), ("note", "text", "text"),
    ],
)  # fmt: skip
def test_numbers_for_people(name, value, text):
    assert show(name, value, PERCENT) == text


def test_units_follow_the_metric():
    error = unit_of({"name": "error", "unit": "%", "higher_is_better": False})
    assert error.gap(0.1, 0.25) == 0.15 and PERCENT.gap(0.75, 0.5) == 0.25
    assert PLAIN == unit_of(None) == unit_of({})
    assert (PLAIN.value(31.23456), PLAIN.difference(-0.1)) == ("31.23", "-0.1")


@pytest.mark.parametrize("metric", [PSNR, {**PSNR, "higher_is_better": False}, None])
def test_summary_shows_any_metric(metric):
    result = {"method": "quantnet", "examples": 50, "layers": {}, "gap": 0.25}
    result |= {"float": 32.125, "soft": 31.5, "hard": 31.25, "psnr_soft": 9.0}
    unit, name = (" dB", " psnr") if metric else ("", "")
    if metric:
        result["metric"] = metric
    gap = "hard - soft" if metric and not metric["higher_is_better"] else "soft - hard"
    digits = ("32.12", "31.50", "31.25") if metric else ("32.12", "31.5", "31.25")
    rows = [
        (f"quantnet{name}", "50 examples"),
        *(
            (k, x + unit)
            for k, x in zip(("float", "soft", "hard"), digits, strict=True)
        ),
        (gap, f"+0.25{unit}"),
    ]
    lines = summary(result).strip().splitlines()
    assert [tuple(re.split("  +", x)) for x in lines if "---" not in x] == rows


def test_meter_counts_no_compilation(monkeypatch):
    """On a clock that only these functions move."""
    now = [0.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    took = iter([30.0, 1.0, 1.0, 20.0, 2.0, 40.0, 3.0])

    def fn(x):
        now[0] += next(took)
        return x

    clock = meter.Meter()
    one, many = map(clock.compiled, (fn, fn))
    assert [one(1), one(2), one(3)] == [1, 2, 3]
    assert clock.read(2, 10)["step_time"] == 1.0
    clock.restart()
    many(4), many(5)
    assert clock.read(1, 10)["examples_per_second"] == 5.0
    clock.restart()
    one(np.zeros(5)), one(np.zeros(5))  # another program
    assert clock.read(1, 10)["step_time"] == 3.0
