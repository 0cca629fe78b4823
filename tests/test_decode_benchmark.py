"""The benchmark of decoding on small pictures, with a stand-in for TensorFlow."""

import json
import zipfile

import jpegs
import pytest

from benchmarks import decode


@pytest.fixture
def archive(tmp_path):
    """A zip file of small JPEGs."""
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as pictures:
        for i in range(5):
            pictures.writestr(f"{i}.JPEG", jpegs.make_jpeg(40 + i, 30, i))
    return path


# Stands in for TensorFlow: takes as long as it is told.
OTHER = """#!/bin/sh
read task
echo '{"tensorflow": "0"}'
while read boxes; do echo '[0.5, 0.25]'; done
"""


def test_decode_measures_and_writes(archive, tmp_path, capsys):
    out, other = tmp_path / "results" / "decode.json", tmp_path / "python"
    other.write_text(OTHER)
    other.chmod(0o755)
    options = [f"--images={archive}", f"--out={out}", "--size=8", "--repeats=2"]
    assert decode.main(options) == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    rates = result["images_per_second_per_core"]
    assert rates.keys() == {"pillow", "ours", "tensorflow"}
    assert rates["tensorflow"] is None and "tensorflow" not in printed
    assert rates["pillow"] > 0 and f"{rates['ours']:.0f}" in printed
    assert result["images"] == 5 and result["ours_over"].keys() == {"pillow"}
    assert result["distance_to_pillow"]["worst_image"] < 10
    assert {"versions", "device", "commit", "cores", "load", "note"} <= result.keys()
    assert result["threads"]["images_per_second"].keys() == {"1", "2"}
    assert decode.main([*options, f"--tensorflow={other}"]) == 0
    result = json.loads(out.read_text())
    assert result["images_per_second_per_core"]["tensorflow"] == 5 / 0.5
    assert result["images_per_second_of_wall_time"]["tensorflow"] == 5 / 0.25
    assert result["versions"]["tensorflow"] == "0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images=no.zip"], "no.zip"),
        (["--repeats=1"], "--repeats=1"),
        (["--size=0"], "--size=0"),
        (["--tensorflow=false"], "ended without an answer"),
    ],
)
def test_decode_refuses_what_it_cannot_time(archive, capsys, options, message):
    assert decode.main([f"--images={archive}", "--out=no.json", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
