"""The page of the CIFAR protocols and its charts, from made-up results."""

import json
import pathlib
from xml.etree import ElementTree

import pytest
from tiny_protocol import TINY, result

from benchmarks import cifar100_charts, cifar100_page, cifar100_plan, curves, runs
from benchmarks.protocols import PROTOCOLS

ROOT = pathlib.Path(__file__).parent.parent


def cells(text, start):
    (line,) = [x for x in text.splitlines() if x.startswith(f"| {start} |")][:1]
    return [x.strip() for x in line.split("|")[1:-1]]


def test_page(tmp_path, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "tiny", TINY)
    folder = tmp_path / "cifar100" / "tiny"
    undecided = lambda: [
        run
        for run in cifar100_plan.plan(TINY, folder)
        if run.start and not cifar100_plan.path(folder, run).exists()
    ]
    while found := undecided():  # a search decides what comes after it
        for run in found:
            best = "warm-lr0.2" in run.name
            accuracy = {"float": 0.77, "quantnet": 0.67}.get(run.row, 0.57) + best / 100
            path = cifar100_plan.path(folder, run)
            path.parent.mkdir(parents=True, exist_ok=True)
            about = {"start": run.start.name, "rate": run.rate}
            path.write_text(json.dumps(result(accuracy) | about))
    for seed, accuracy in enumerate((0.70, 0.72)):
        path = folder / f"final/quantnet-seed{seed}.json"
        path.write_text(json.dumps(runs.read(path) | result(accuracy)))
    (folder / "final/wide-seed1.json").unlink()
    text = "\n".join(cifar100_page.section("tiny", TINY, folder))
    wanted = ["quantnet", "warm", "0.2 (edge)", "72.00 ± 1.41", "70.00 ± 1.41"]
    wanted += ["71.00 ± 1.41", "1.00 ± 0.00", "", "1.0"]
    assert cells(text, "quantnet") == wanted
    assert cells(text, "clipped_ste")[7] == "+14.00 ± 1.00"
    assert cells(text, "float")[5] == "77.00 ± 0.00"
    assert "(1 of 2 seeds)" in cells(text, "wide")[3]
    assert "**holds**" in text and "QuantNet minus tuned STE: **+14.00**" in text
    assert "QuantNet minus float: -6.00" in text
    tenth = TINY._replace(last=2)
    curve = [{"epoch": e, "hard_bn": 0.1 * e} for e in (1, 2, 3)]
    saved = result(0.9) | {"curve": curve}
    assert cifar100_page.accuracy(saved, "hard_bn", tenth.last) == pytest.approx(25)
    assert cifar100_page.accuracy(saved, "hard_bn", 1) == 90

    target = tmp_path / "docs" / "results.md"
    written = cifar100_page.write(tmp_path, target)
    page = target.read_text()
    assert "## tiny" in page and page.count("not run") == 0
    svgs = [p for p in written if p.suffix == ".svg"]
    assert len(svgs) == 2
    for svg in svgs:
        ElementTree.fromstring(svg.read_text())
        assert f"results/{svg.name}" in page


def test_results_of_another_choice_are_no_results(tmp_path):
    run = cifar100_plan.Run(
        "final", "quantnet", "quantnet-seed0", TINY.starts[0], 0.2, 0, False, 1.0
    )
    path = cifar100_plan.path(tmp_path, run)
    path.parent.mkdir(parents=True)
    saved = result(0.5) | {"start": TINY.starts[0].name, "rate": 0.2}
    path.write_text(json.dumps(saved))
    assert cifar100_plan.result(tmp_path, run) == saved
    for other in (run._replace(rate=0.4), run._replace(start=TINY.starts[1])):
        assert cifar100_plan.result(tmp_path, other) is None


def test_page_without_results(tmp_path):
    text = cifar100_page.text(tmp_path)
    for name in PROTOCOLS:
        assert f"- `{name}`: " in text.split("## Not run")[1]
    assert "| row |" not in text


def test_page_is_up_to_date():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert text == cifar100_page.text(ROOT / "results")
    drawn = cifar100_charts.charts(ROOT / "results")
    kept = {p.name: p.read_text() for p in (ROOT / "docs/results").glob("cifar*.svg")}
    assert kept == drawn


def test_ticks_and_empty_charts():
    assert curves.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert curves.ticks(61.3, 62.1) == [61.4, 61.6, 61.8, 62.0]
    with pytest.raises(ValueError, match="no points"):
        curves.chart("nothing", [curves.Line("a", [(0.0, float("nan"))])])
