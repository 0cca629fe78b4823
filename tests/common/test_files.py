"""Tests of the ground floor: atomic writes and plain text for people."""

import os

import pytest

from quantnet_jax.common import files
from quantnet_jax.common.files import write_atomic
from quantnet_jax.common.text import duration, table


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomic(path, "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="No space left"):
                write_atomic(path, "new")
        assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]
    write_atomic(path, "näher".encode())
    assert path.read_text(encoding="utf-8") == "näher"
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "absent" / "x", "")


def test_durations_are_short():
    times = [duration(s) for s in (-1, 0.4, 59.6, 187, 7500)]
    assert times == ["0s", "0s", "1m00s", "3m07s", "2h05m"]


def test_table_aligns_and_checks_its_rows():
    rows = [["soft", 91.5], ["hard + BN", None]]
    lines = ["what          %", "---------  ----", "soft       91.5", "hard + BN     -"]
    assert table(rows, ["what", "%"]).splitlines() == lines
    total = table(rows, ["what", "%"], left=2, total=("sum", 1)).splitlines()
    assert total[0] == "what       %" and total[3:] == [
        "hard + BN  -",
        lines[1],
        "sum        1",
    ]
    with pytest.raises(ValueError, match="has 1 cells, expected 2"):
        table([["soft"]], ["what", "%"])


def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    files.check_place(tmp_path / "new" / "folder" / "model.onnx")
    files.check_place(tmp_path)
    for bad in ("/proc/x.json", tmp_path / "file" / "x.json"):
        with pytest.raises(OSError, match="cannot write") as error:
            files.check_place(bad)
        assert str(bad) in str(error.value)
    assert [x.name for x in tmp_path.iterdir()] == ["file"]
