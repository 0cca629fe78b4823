"""The latency benchmark's arithmetic, gate and page on made-up programs."""

import json
import sys

import numpy as np
import pytest
from artifacts import SPEC, make_params

from benchmarks import (
    first_prediction,
    latency,
    latency_engine,
    latency_page,
    latency_rows,
)
from benchmarks.latency_rows import Row
from quantnet_jax import deploy
from quantnet_jax.deploy.predictor import make_predictor

LOGITS = np.asarray([[0.0, 1.0, 3.0], [2.0, 0.0, -1.0], [1.0, 5.0, 0.0]])


def rows(other, name="packed W1A32", reference="hard"):
    """The reference and a program that gives `other`."""
    given = {reference: LOGITS, name: np.asarray(other)}
    return {k: Row(lambda x, v=v: v, reference, "") for k, v in given.items()}


def test_gate_accepts_equal_logits_and_says_how_equal():
    found = latency.agreement("packed W1A32", rows(LOGITS + 1e-5), LOGITS)
    assert found["largest_difference"] == pytest.approx(1e-5)
    assert found["images_that_differ"] == 0 and found["same_class"] == 1.0


@pytest.mark.parametrize("wrong", [LOGITS + 0.01, LOGITS * np.nan, -LOGITS])
def test_gate_stops_a_program_that_gives_other_logits(wrong):
    with pytest.raises(ValueError, match="logits of 3 images are not those of hard"):
        latency.agreement("packed W1A32", rows(wrong), LOGITS)


def test_gate_lets_a_minority_of_signs_flip():
    one = LOGITS.copy()
    one[1] += 0.5
    name = "Larq Compute Engine"
    of_signs = lambda logits: rows(logits, name, "W1A1 as floats")
    assert latency.agreement(name, of_signs(one), LOGITS)["images_that_differ"] == 1
    with pytest.raises(ValueError, match=name):
        latency.agreement(name, of_signs(LOGITS + 0.5), LOGITS)
    with pytest.raises(ValueError, match=name):
        latency.agreement(name, rows(one, name), LOGITS)


def test_programs_take_turns_and_are_compared_with_float(monkeypatch):
    monkeypatch.setattr(latency, "PAUSE", 0.0)
    calls = []
    names = ("float", "packed W1A32", "other")
    runs = {
        name: Row(lambda x, name=name: calls.append(name), None, "") for name in names
    }
    found = latency.take_turns(runs, None, 4)
    turns = [calls[i : i + 6] for i in range(0, len(calls), 6)][-4:]
    assert len(calls) >= 3 * latency.WARM_UP + 4 * 6
    for turn in turns:  # each once untimed, once timed
        assert turn[::2] == turn[1::2] and sorted(turn[::2]) == sorted(names)
    assert found["rows"]["float"]["over_float"] == 1.0
    for row in found["rows"].values():
        low, high = row["quartiles"]
        assert row["fastest"] <= row["median"] and low <= row["median"] <= high


def test_a_program_of_another_process_is_timed_there(monkeypatch):
    monkeypatch.setattr(latency, "PAUSE", 0.0)
    own, other = Row(lambda x: x, None, ""), Row(lambda x: 1 / 0, None, "", lambda: 2.0)
    found = latency.take_turns({"float": own, "other": other}, None, 3)
    assert found["rows"]["other"]["median"] == 2.0


def test_the_network_of_signs_as_arrays(tmp_path):
    spec = SPEC | {"activation": {"name": "sign_ste"}}
    params = {k: v for k, v in make_params().items() if "input" not in k}
    predictor = make_predictor(deploy.pack_tree(params), spec)
    latency_engine.write_signs(str(tmp_path / "net.npz"), predictor)
    found = dict(np.load(tmp_path / "net.npz"))
    assert found["mean"].tolist() == SPEC["input"]["mean"]
    signs, factor = found["conv1/kernel"], found["conv1/factor"]
    assert set(signs.flat) == {-1.0, 1.0} and factor.shape == (4,)
    values = deploy.float_tree(predictor.params)
    np.testing.assert_array_equal(signs * factor, values["conv1"]["kernel"])
    np.testing.assert_array_equal(found["conv2/kernel"], values["conv2"]["kernel"])
    assert "conv2/factor" not in found and "stem_bn/scale" in found
    # This Python has no engine.
    with pytest.raises(ValueError, match="python.*: no answer to 'network'"):
        latency_engine.Engine(sys.executable, predictor, 1)


def made_up(packed):
    """A result in which the packed network takes `packed` of float."""
    logits = {
        "reference": "hard",
        "largest_difference": 0.0,
        "images_that_differ": 0,
        "same_class": 1.0,
    }
    times = {
        "float": 0.010,
        "packed W1A32": 0.010 * packed,
        "W1A1 as floats": 0.008,
        "packed W1A1": 0.002,
        "onnxruntime": 0.005,
        "PyTorch": 0.020,
        "Larq Compute Engine": 0.005,
    }
    batch = {
        "rows": {
            name: {
                "median": t,
                "quartiles": [t, t],
                "over_float": t / 0.010,
                "logits": logits,
            }
            for name, t in times.items()
        },
        "share_of_other_processes": 0.03,
    }
    return {
        "benchmark": "seconds",
        "command": "python benchmarks/latency.py",
        "network": "resnet20",
        "repeats": 30,
        "bar": 1.15,
        "versions": {"jax": "1"},
        "cpu": "",
        "cores": 2,
        "rows": dict.fromkeys(times, "about"),
        "runs": [
            {"threads": 1, "batches": {"1": batch}, "missing": {"LCE": "not run"}}
        ],
    }


@pytest.mark.parametrize(("packed", "word"), [(1.10, "meets"), (1.20, "misses")])
def test_page_says_whether_the_bar_is_met_and_where_we_lose(packed, word):
    page = latency_page.table(made_up(packed))
    assert f"{packed:.2f} of our float program: {word} the bar of 1.15" in page
    assert f"Faster than it: onnxruntime ({2 * packed:.2f}x)." in page
    assert f"Slower than it: PyTorch ({packed / 2:.2f}x)." in page
    assert "Bit counts take 0.25 of" in page and "| LCE | not run | | |" in page
    assert "The Larq Compute Engine takes 2.5 times as long" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--network=bread", "--network=bread"),
        ("--threads 99", "there are 1 to"),
        ("--repeats=1", "--repeats"),
        ("--max-load=-1", "the machine is busy"),
        ("--lce-python=no", "--lce-python=no is no program"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, capsys, options, message):
    out = tmp_path / "no.json"
    assert latency.main([*options.split(), f"--out={out}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not out.exists()


def test_first_predictions_are_timed_in_new_processes(tmp_path, capsys, monkeypatch):
    images = {"shape": (8, 8, 3), "classes": 4}
    monkeypatch.setitem(latency_rows.NETWORKS, "small", images)
    small = {"tiny W1A1": ("small", {"activation": "sign_ste", "width": 4})}
    monkeypatch.setattr(first_prediction, "NETWORKS", small)
    out = tmp_path / "out.json"
    options = ["--repeats=2", "--max-load=1000", f"--out={out}"]
    assert first_prediction.main(options) == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    row = result["networks"]["tiny W1A1"]
    assert 0 < row["median"] <= row["slowest"]
    assert set(row["parts"]) == {"import", "load", "predict"}
    assert sum(row["parts"].values()) < row["slowest"]
    assert "tiny W1A1" in printed and "the bar of 5 s" in printed
    assert {"versions", "device", "commit", "cores", "load"} <= result.keys()


@pytest.mark.parametrize(
    ("option", "message"),
    [("--repeats=1", "--repeats=1, at least 2"), ("--max-load=-1", "machine is busy")],
)
def test_first_predictions_that_cannot_be_timed(tmp_path, capsys, option, message):
    out = tmp_path / "no.json"
    assert first_prediction.main([option, f"--out={out}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not out.exists()
