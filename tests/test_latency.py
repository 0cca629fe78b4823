"""The latency benchmark's arithmetic, gate and page on made-up programs."""

import numpy as np
import pytest

from benchmarks import latency, latency_page
from benchmarks.latency_rows import Row

LOGITS = np.asarray([[0.0, 1.0, 3.0], [2.0, 0.0, -1.0], [1.0, 5.0, 0.0]])


def rows(other, name="packed W1A32"):
    """The reference and a program that gives `other`."""
    given = {"hard": LOGITS, name: np.asarray(other)}
    return {k: Row(lambda x, v=v: v, "hard", "") for k, v in given.items()}


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
    found = latency.agreement("packed W1A1", rows(one, "packed W1A1"), LOGITS)
    assert found["images_that_differ"] == 1
    with pytest.raises(ValueError, match="packed W1A1"):
        latency.agreement("packed W1A1", rows(LOGITS + 0.5, "packed W1A1"), LOGITS)


def test_programs_take_turns_and_are_compared_with_float(monkeypatch):
    monkeypatch.setattr(latency, "PAUSE", 0.0)
    calls = []
    names = ("float", "packed W1A32", "other")
    runs = {name: lambda x, name=name: calls.append(name) for name in names}
    found = latency.take_turns(runs, None, 4)
    turns = [calls[i : i + 6] for i in range(3 * latency.WARM_UP, len(calls), 6)]
    assert len(turns) == 4
    for turn in turns:  # each once untimed, once timed
        assert turn[::2] == turn[1::2] and sorted(turn[::2]) == sorted(names)
    assert found["rows"]["float"]["over_float"] == 1.0
    for row in found["rows"].values():
        low, high = row["quartiles"]
        assert row["fastest"] <= row["median"] and low <= row["median"] <= high


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--network=bread", "--network=bread"),
        ("--threads 99", "there are 1 to"),
        ("--repeats=1", "--repeats"),
        ("--max-load=-1", "the machine is busy"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, capsys, options, message):
    out = tmp_path / "no.json"
    assert latency.main([*options.split(), f"--out={out}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not out.exists()
