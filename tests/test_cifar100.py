"""The queue of the CIFAR protocols on made-up results, and once for real; its page."""

import json
import pathlib
import sys
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from tiny import tiny_config

from benchmarks import (
    cifar100,
    cifar100_charts,
    cifar100_page,
    cifar100_plan,
    curves,
    runs,
)
from benchmarks.protocol_rows import Row
from benchmarks.protocols import PROTOCOLS, Protocol, Start
from quantnet_jax.training import experiment
from quantnet_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent
STARTS = (Start("scratch", 0.0, 2.0, 1 / 3), Start("warm", 1.0, 1.0))
ROWS = {
    "float": Row("identity"),
    "quantnet": Row("quantnet"),
    "clipped_ste": Row("clipped_ste"),
    "wide": Row("quantnet", {"quantizer.quantnet.width": 8}, like="quantnet"),
}


TINY = Protocol(
    "made up",
    tiny_config,
    "all but two",
    STARTS,
    (0.1, 0.2),
    ROWS,
    search=0.5,
    hold_out=20,
    seeds=(0, 1),
    eval_every=1.0,
)


def result(accuracy, epochs=2.0, **more):
    """What a run of that accuracy leaves."""
    scores = {"soft": accuracy + 0.01, "hard": accuracy - 0.01, "hard_bn": accuracy}
    record = {"epoch": 1.0} | scores
    return {
        **scores,
        "device": "1 x cpu",
        "cores": 1,
        "wall": 60.0,
        "settings": {"epochs": epochs},
        "curve": [record, record | {"epoch": 2.0}],
        "layers": {},
    } | more


@pytest.fixture
def args(tmp_path, monkeypatch):
    """Arguments of the queue on the tiny protocol, in a folder of its own."""
    monkeypatch.setitem(PROTOCOLS, "tiny", TINY)
    words = ["row", "--protocol", "tiny", f"--results={tmp_path / 'results'}"]
    words += [f"--work={tmp_path / 'runs'}", f"--page={tmp_path / 'docs/results.md'}"]
    return cifar100.parse(words)


@pytest.fixture
def calls(monkeypatch):
    """The configurations that were trained, each with a made-up result."""
    trained = []

    def train(config, workdir):
        trained.append(config)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "result.json").write_text("{}")
        better = {"identity": 0.2, "quantnet": 0.1}.get(config.quantizer.name, 0.0)
        warm = 0.05 if config.init_from else 0.0
        return result(0.5 + better + warm + config.weights.learning_rate / 10)

    monkeypatch.setattr(runs.train, "train", train)
    return trained


def found(args, pattern="*/*.json"):
    folder = cifar100.results_of("tiny", args)
    return sorted(str(p.relative_to(folder)) for p in folder.glob(pattern))


# The queue ----------------------------------------------------------------------------
def test_queue_from_search_to_finals(args, calls, capsys):
    assert cifar100.run_here("tiny", args) == 0
    names = [p.removesuffix(".json") for p in found(args)]
    plan = cifar100_plan.plan(TINY, cifar100.results_of("tiny", args))
    assert sorted(r.label for r in plan) == names
    by_label = {r.label: r for r in plan}
    chosen = by_label["final/quantnet-seed1"]
    # The made-up accuracy rises with the rate, and a warm start is better.
    assert (chosen.start.name, chosen.rate, chosen.seed) == ("warm", 0.2, 1)
    assert by_label["final/wide-seed0"][3:5] == chosen[3:5]
    assert by_label["float/search"][3:] == (Start("scratch", 0, 1.0), 0.2, 0, True, 0.5)
    finals = [c for c in calls if c.data.hold_out == 0 and c.init_from]
    assert {c.epochs for c in finals} == {1.0}
    for c in finals:
        assert c.init_from.endswith(f"float/seed{c.seed}")
    saved = runs.read(cifar100.results_of("tiny", args) / "final/wide-seed1.json")
    assert saved["settings"]["init_from"] == "float/seed1" and saved["start"] == "warm"
    assert saved["settings"]["quantizer.quantnet.width"] == 8
    # Checkpoints of the search are of no use any more.
    kept = {p.parent.name for p in args.work.rglob("result.json")}
    assert kept == {r.name for r in plan if r.kind != "search"} | {"search"}

    count = len(calls)
    assert cifar100.run_here("tiny", args) == 0 and len(calls) == count
    listed = "\n".join(cifar100.listing("tiny", args))
    assert listed.count("done") == len(plan) and "missing" not in listed


def test_lost_float_networks_are_trained_again(args, calls):
    cifar100.run_here("tiny", args)
    count = len(calls)
    for path in args.work.rglob("result.json"):
        path.unlink()
    (cifar100.results_of("tiny", args) / "final/clipped_ste-seed1.json").unlink()
    assert cifar100.run_here("tiny", args) == 0
    first, second = calls[count:]
    assert (first.quantizer.name, first.seed) == ("identity", 1)
    assert (second.quantizer.name, second.seed) == ("clipped_ste", 1)


def test_rows_of_only_and_what_they_need(args, calls):
    args.only = ["clipped_ste"]
    assert cifar100.run_here("tiny", args) == 0
    assert not found(args, "final/quantnet*") and not found(args, "final/float*")
    assert len(found(args, "final/clipped_ste*")) == 2
    assert len(found(args, "float/*")) == 3


def test_a_run_that_breaks_stops_only_what_needs_it(args, calls, monkeypatch, capsys):
    original = runs.train.train

    def train(config, workdir):
        if config.quantizer.name == "quantnet" and config.weights.learning_rate == 0.2:
            raise RuntimeError("out of flour")
        if config.quantizer.name == "clipped_ste" and not config.init_from:
            raise SystemExit("error: diverged at step 7: loss nan")
        return original(config, workdir)

    monkeypatch.setattr(runs.train, "train", train)
    assert cifar100.run_here("tiny", args) == 1
    assert "out of flour" in capsys.readouterr().err
    assert not found(args, "final/quantnet*") and not found(args, "final/wide*")
    assert len(found(args, "final/clipped_ste*")) == 2  # the warm start won
    diverged = runs.read(
        cifar100.results_of("tiny", args) / "search/clipped_ste-scratch-lr0.1.json"
    )
    assert diverged["diverged"] and cifar100_plan.score(diverged) == 0.0


def test_processes_take_the_same_runs(args, calls, monkeypatch):
    """`run` gives each run to a process; here the processes are calls."""
    seen = []

    def run_processes(take, jobs, environment):
        codes = {}
        assert "XLA_FLAGS" not in environment or TINY.xla_flags == ""
        while task := take(codes, set()):
            label, command = task
            seen.append(label)
            assert command[0] == sys.executable
            codes[label] = cifar100.main(command[2:])
        return codes

    monkeypatch.setattr(runs, "run_processes", run_processes)
    assert cifar100.run_all("tiny", args) == 0
    assert len(seen) == len(found(args)) == len(calls)
    assert seen[:3] == [
        "search/float-scratch-lr0.1",
        "search/float-scratch-lr0.2",
        "float/search",
    ]


def test_commands_run_side_by_side_on_their_cores(tmp_path):
    code = "import os, sys; print(len(os.sched_getaffinity(0))); sys.exit({})"
    waiting = [(f"run{i}", [sys.executable, "-c", code.format(i)]) for i in range(3)]
    take = lambda codes, running: waiting.pop(0) if waiting else None
    codes = runs.run_processes(take, 2, runs.environment(tmp_path, "--flag"))
    assert codes == {"run0": 0, "run1": 1, "run2": 2}
    assert runs.environment(tmp_path, "--a")["JAX_COMPILATION_CACHE_DIR"]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--protocol", "bread"],
        ["run", "--protocol", "small", "--only", "bread"],
        ["run", "--protocol", "small", "--jobs=0"],
        ["run", "--protocol", "small", "--scale=0"],
    ],
)
def test_wrong_arguments_are_refused(words, capsys):
    with pytest.raises(SystemExit) as error:
        cifar100.parse(words)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_real_warm_start(args, monkeypatch):
    """Through train.py: LSQ, whose steps begin from the float weights."""
    changes = {"quantizer.lsq.bits": 2, "meta.learning_rate": 0.0}
    rows = {"float": Row("identity"), "lsq": Row("lsq", changes)}
    small = TINY._replace(rows=rows)
    monkeypatch.setitem(PROTOCOLS, "tiny", small)
    args.data, args.scale = "synthetic", 0.4
    folder = cifar100.results_of("tiny", args)
    for row in small.rows:
        for run in cifar100_plan.search_runs(small, row):
            path = cifar100_plan.path(folder, run)
            path.parent.mkdir(parents=True, exist_ok=True)
            accuracy = 0.6 if run.start.name == "warm" else 0.5
            path.write_text(json.dumps(result(accuracy)))
    plan = {r.label: r for r in cifar100_plan.plan(small, folder)}
    # A float network that no initialization gives.
    source = plan["float/seed1"]
    exp = experiment.build(cifar100.settled(small, source, args))
    like = jax.device_get(exp.state)
    state = like._replace(params=jax.tree.map(lambda x: 3 * x + 0.01, like.params))
    with Checkpoints(cifar100.work_of("tiny", source, args)) as checkpoints:
        checkpoints.save(1, state, {"hard": 0.5})

    run = plan["final/lsq-seed1"]
    assert cifar100.run_one("tiny", run, args) == 0
    saved = runs.read(folder / "final/lsq-seed1.json")
    assert saved["start"] == "warm" and saved["rate"] == 0.1 and "curve" not in saved
    assert saved["settings"]["epochs"] == pytest.approx(0.4)
    with Checkpoints(cifar100.work_of("tiny", run, args)) as checkpoints:
        arrays = checkpoints.load_arrays().state
    for name in ("conv1", "conv2"):
        step = arrays[f"params/quant/{name}/kernel/value"]
        kernel = np.abs(state.params["model"][name]["kernel"])
        np.testing.assert_allclose(step, 2 * kernel.mean(), rtol=1e-5)


# The page -----------------------------------------------------------------------------
def cells(text, start):
    (line,) = [x for x in text.splitlines() if x.startswith(f"| {start} |")][:1]
    return [x.strip() for x in line.split("|")[1:-1]]


def test_page(args, calls):
    cifar100.run_here("tiny", args)
    folder = cifar100.results_of("tiny", args)
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

    written = cifar100_page.write(args.results, args.page)
    page = args.page.read_text()
    assert "## tiny" in page and page.count("not run") == 0
    svgs = [p for p in written if p.suffix == ".svg"]
    assert len(svgs) == 2
    for svg in svgs:
        ElementTree.fromstring(svg.read_text())
        assert f"results/{svg.name}" in page


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
