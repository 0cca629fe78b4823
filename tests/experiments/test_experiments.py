"""Grid, queue, records and tables of studies, on synthetic results and for real."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from tiny import tiny_config

from quantnet_jax import run as train
from quantnet_jax.checkpoint.manager import Checkpoints
from quantnet_jax.experiments import (
    columns,
    grid,
    lease,
    pieces,
    queue,
    results,
    tables,
)
from quantnet_jax.experiments.__main__ import main
from quantnet_jax.experiments.study import Initialization, Row, Run, Study, scaled
from quantnet_jax.logging.step_log import Diverged
from quantnet_jax.training import experiment
from sweeps import common
from tools import make_zoo

DEVICE = "1 x abacus"
TINY = Study(
    "made up",
    "all but two",
    common.configure,
    tiny_config,
    {
        "float": Row("identity"),
        "quantnet": Row("quantnet"),
        "clipped_ste": Row("clipped_ste"),
        "wide": Row("quantnet", {"quantizer.quantnet.width": 8}, like="quantnet"),
    },
    (
        Initialization("scratch", 0.0, 2.0, 1 / 3),
        Initialization("warm", 1.0, 1.0),
    ),
    (0.1, 0.2),
    search=0.5,
    validation_size=20,
    seeds=(0, 1),
    eval_every=1.0,
)


def made_up(accuracy, **more):
    """What a run of that accuracy gives."""
    scores = {"soft": accuracy + 0.01, "hard": accuracy - 0.01, "hard_bn": accuracy}
    return {**scores, "device": DEVICE, "seconds": 60.0, "layers": {}} | more


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Of a queue in a folder of its own; 'tiny' is a study."""
    load = grid.load
    monkeypatch.setattr(grid, "load", lambda n: TINY if n == "tiny" else load(n))
    return pieces.Options(results=tmp_path / "results", work=tmp_path / "runs")


@pytest.fixture
def calls(monkeypatch):
    """The configurations that were trained, each with a synthetic result."""
    trained = []

    def call(config, workdir):
        trained.append(config)
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        (workdir / "result.json").write_text("{}")
        better = {"identity": 0.2, "quantnet": 0.1}.get(config.quantizer.name, 0.0)
        warm = 0.05 if config.init_from else 0.0
        return made_up(0.5 + better + warm + config.weights.learning_rate / 10)

    monkeypatch.setattr(train, "train", call)
    return trained


def labels(options, start=""):
    found = results.of_study("tiny", TINY, options.results)
    return sorted(x for x in found if x.startswith(start))


def run(options, study=TINY):
    return queue.run("tiny", study, options, here=True)


# The queue ----------------------------------------------------------------------------
def test_queue_from_search_to_finals(options, calls, capsys):
    assert run(options) == 0
    records = results.of_study("tiny", TINY, options.results)
    plan = grid.plan(TINY, records)
    assert sorted(r.label for r in plan) == sorted(records)
    by_label = {r.label: r for r in plan}
    chosen = by_label["final/quantnet-seed1"]
    # The synthetic accuracy rises with the learning rate, and a warm start is better.
    assert (chosen.initialization.name, chosen.learning_rate) == ("warm", 0.2)
    assert by_label["final/wide-seed0"][3:5] == chosen[3:5]
    source = by_label["float/search"]
    assert source[3:] == (Initialization("scratch", 0, 1.0), 0.2, 0, True, 0.5)
    finals = [c for c in calls if c.data.validation_size == 0 and c.init_from]
    assert {c.epochs for c in finals} == {1.0}
    assert all(c.init_from.endswith(f"float/seed{c.seed}") for c in finals)
    saved = records["final/wide-seed1"]
    assert saved["settings"]["init_from"] == "float/seed1"
    assert saved["settings"]["quantizer.quantnet.width"] == 8
    assert (saved["row"], saved["seed"], saved["epochs"]) == ("wide", 1, 1.0)
    assert "data.folder" not in saved["settings"]
    # Checkpoints of the search are of no use any more.
    kept = {p.parent.name for p in options.work.rglob("result.json")}
    assert kept == {r.name for r in plan if r.kind != "search"} | {"search"}

    count = len(calls)
    assert run(options) == 0 and len(calls) == count
    listed = "\n".join(queue.listing("tiny", TINY, options))
    assert listed.count("  done ") == len(plan) and "missing" not in listed


def test_float_networks_are_trained_for_those_that_begin_from_them(
    options, calls, monkeypatch
):
    original = train.train

    def call(config, workdir):
        made = original(config, workdir)
        return made_up(made["hard_bn"] - 0.2) if config.init_from else made

    monkeypatch.setattr(train, "train", call)
    assert run(options) == 0
    assert labels(options, "float/") == ["float/search"]


def test_lost_pieces_are_trained_again(options, calls):
    run(options)
    count = len(calls)
    for path in options.work.rglob("result.json"):
        path.unlink()
    path = options.results / "tiny.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if "final/clipped_ste-seed1" not in x))
    assert run(options) == 0
    first, second = calls[count:]
    assert (first.quantizer.name, first.seed) == ("identity", 1)
    assert (second.quantizer.name, second.seed) == ("clipped_ste", 1)


def test_records_of_another_choice_count_as_missing(options, calls):
    run(options)
    records = results.of_study("tiny", TINY, options.results)
    better = records["search/clipped_ste-scratch-lr0.1"] | made_up(0.9)
    results.append("tiny", better, options.results)
    records = results.of_study("tiny", TINY, options.results)
    finals = [
        r for r in grid.plan(TINY, records) if r.label == "final/clipped_ste-seed0"
    ]
    assert finals[0].learning_rate == 0.1
    assert grid.record_of(records, finals[0]) is None
    count = len(calls)
    assert run(options) == 0 and len(calls) == count + 2


def test_records_of_other_settings_are_refused(options, calls, capsys):
    run(options)
    count = len(calls)
    other = TINY._replace(validation_size=30)
    assert run(options, other) == 1 and len(calls) == count
    assert "another data.validation_size" in capsys.readouterr().err


def test_changed_settings():
    old = {"settings": {"seed": 0, "quantizer.x.bits": 1}}
    row = Row("x", {"quantizer.x.width": 4})
    same = {"seed": 0, "new": 1}  # what only one has is new, or gone
    assert results.changed(old, same, Row("x")) == []
    assert results.changed(old, {"seed": 1}, row) == ["seed"]
    wanted = {"quantizer.x.width": 4}  # but what the row changes must be there
    assert results.changed(old, wanted, row) == ["quantizer.x.width"]


def test_rows_of_only_and_what_they_need(options, calls):
    assert run(options._replace(only=("clipped_ste",))) == 0
    assert not labels(options, "final/quantnet") + labels(options, "final/float")
    assert len(labels(options, "final/clipped_ste")) == 2
    assert len(labels(options, "float/")) == 3


def test_rows_of_only_and_what_they_start_from(options, calls):
    chain = {
        "first": Row("identity", learning_rates=(0.1,)),
        "second": Row("clipped_ste", like="first", start="first"),
        "third": Row("quantnet", like="first", start="second"),
        "apart": Row("dorefa", like="first"),
    }
    study = TINY._replace(rows=chain, initializations=common.scratch(1.0), seeds=(0,))
    assert run(options._replace(only=("third",)), study) == 0
    finals = [f"final/{name}-seed0" for name in ("first", "second", "third")]
    assert labels(options, "final/") == finals


def test_a_run_that_breaks_stops_only_what_needs_it(
    options, calls, monkeypatch, capsys
):
    original = train.train

    def call(config, workdir):
        if config.quantizer.name == "quantnet" and config.weights.learning_rate == 0.2:
            raise RuntimeError("out of flour")
        if config.quantizer.name == "clipped_ste" and not config.init_from:
            raise Diverged(7, math.nan, "loss", math.nan)
        return original(config, workdir)

    monkeypatch.setattr(train, "train", call)
    assert run(options) == 1
    assert "out of flour" in capsys.readouterr().err
    assert not labels(options, "final/quantnet") + labels(options, "final/wide")
    assert len(labels(options, "final/clipped_ste")) == 2  # the warm start won
    records = results.of_study("tiny", TINY, options.results)
    diverged = records["search/clipped_ste-scratch-lr0.1"]
    assert diverged["diverged"] and grid.rank(diverged) == -math.inf
    error = {"hard": 0.5, "metric": {"name": "error", "higher_is_better": False}}
    assert grid.rank(error) == -0.5 and grid.score(error) == 0.5


def test_processes_take_the_same_pieces(options, calls, monkeypatch):
    """Each piece is a command; here the commands are calls."""
    monkeypatch.setattr(grid, "names", lambda: ["tiny"])
    seen = []

    class Process:
        def __init__(self, command, env):
            seen.append(command[-4])
            self.returncode = main(command[3:])

        def poll(self):
            return self.returncode

    monkeypatch.setattr(queue, "LOOK", 0.0)
    monkeypatch.setattr(queue.subprocess, "Popen", Process)
    assert queue.run("tiny", TINY, options) == 0
    assert len(seen) == len(labels(options)) == len(calls)
    first = ["search/float-scratch-lr0.1", "search/float-scratch-lr0.2", "float/search"]
    assert seen[:3] == [f"--run={x}" for x in first]


# The budget ---------------------------------------------------------------------------
def test_estimates_come_from_finished_pieces_of_the_device():
    names = ("row", "epochs", "seconds")
    record = lambda *x, **more: dict(zip(names, x, strict=True), device=DEVICE) | more
    records = {
        "a": record("quantnet", 1.0, 30.0, wall=50.0),
        "b": record("quantnet", 1.0, 40.0),
        "c": record("float", 2.0, 20.0),
        "d": record("float", 2.0, 900.0, device="1 x other"),
        "e": record("float", 2.0, 900.0, diverged=True),
    }
    piece = lambda row, epochs: Run(
        "final", row, "", Initialization("scratch", 0, epochs), 0.1, 0, False
    )
    guess = lambda *x: pieces.estimate(records, piece(*x), DEVICE)
    assert guess("quantnet", 1.0) == 50.0  # the longest of the same
    assert guess("quantnet", 3.0) == 150.0
    assert guess("float", 1.0) == 10.0
    assert guess("clipped_ste", 1.0) == 40.0  # the median epoch
    assert pieces.estimate(records, piece("float", 1.0), "1 x third") is None


def test_nothing_is_begun_that_cannot_end_in_time(options, calls, monkeypatch, capsys):
    """A clock that only training moves: 60 s an epoch."""
    clock = [0.0]
    original = train.train

    def call(config, workdir):
        clock[0] += 60 * config.epochs
        return original(config, workdir) | {"seconds": 60 * config.epochs}

    monkeypatch.setattr(train, "train", call)
    for module in (queue.time, pieces.time):
        monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    limited = options._replace(seconds=200.0, device=DEVICE)
    planned = queue.listing("tiny", TINY, limited)[-1]
    assert planned == "in 200 s: search/float-scratch-lr0.1"
    assert run(limited) == 1 and clock[0] <= 200
    assert "runs are left, in the time given" in capsys.readouterr().err
    # Of what begins now the float network (30 s) fits, a search from scratch does not.
    planned = queue.listing("tiny", TINY, options._replace(seconds=59.0))[-1]
    assert "scratch" not in planned and "warm" in planned
    assert run(options._replace(seconds=1e9)) == 0


def test_a_loan_of_ten_minutes(tmp_path):
    """Six runs of 60 s and the checks fit, most valuable first, and not a seventh more
    than the seconds allow."""
    lines = lease.plan(pieces.Options(seconds=600.0, results=tmp_path), 60.0)
    fits = [line for line in lines if "later" not in line]
    rows = [line.split("b200: final/")[1] for line in fits if "b200" in line]
    assert rows[:5] == [
        f"{row}-seed0" for row in ("float", "quantnet", "irnet", "tanh_sign", "dorefa")
    ]
    seconds = sum(float(line.split(" s ")[0].split()[-1]) for line in fits)
    assert len(rows) >= 6 and 540 < seconds <= 600 - lease.RESERVE
    assert lease.plan(pieces.Options(seconds=900.0, results=tmp_path), 60.0) != lines


def test_a_loan_begins_with_the_checks(options, monkeypatch, capsys):
    given = []
    check = lambda name, code: lease.Check(name, ("timeit", "-n1", code), ("x",), 30.0)
    checks = check("good", "pass"), check("broken", "assert 0")
    monkeypatch.setattr(lease, "CHECKS", checks)
    monkeypatch.setattr(lease, "STUDIES", ("tiny",))
    monkeypatch.setattr(lease.subprocess, "run", lambda words, timeout: (
        given.append((words[2:], timeout)) or subprocess.CompletedProcess(
            words, int("assert 0" in words))))  # fmt: skip
    monkeypatch.setattr(
        lease.queue, "run", lambda name, study, o: given.append((name, o.seconds))
    )
    assert lease.run(options._replace(seconds=100.0), "gpu") == 1
    assert "error: broken: exit status 1" in capsys.readouterr().err
    (good, limit), (broken, _), (name, left) = given
    assert good[-1] == "pass" and broken[-1] == "assert 0" and limit == 30.0
    assert name == "tiny" and 70.0 < left <= 100.0 - lease.RESERVE


def test_rehearsals_are_no_results(options, capsys):
    with pytest.raises(SystemExit):
        main(["run", "tiny", "--scale=0.5", "--results", str(results.FOLDER)])
    assert "another --results" in capsys.readouterr().err
    short = scaled(TINY, 0.5)
    assert [x.epochs for x in short.initializations] == [1.0, 0.5]
    assert short.initializations[1].float_epochs == 0.5 and short.eval_every == 0.5


def stopping(options, monkeypatch, tmp_path, **more):
    """Runs a queue whose pieces are processes that sleep; what they left and raised."""
    started, saved = tmp_path / "started", tmp_path / "saved"
    code = (
        "import pathlib, signal, sys, time\n"
        f"def stop(*_): pathlib.Path({str(saved)!r}).touch(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(started)!r}).touch(); time.sleep(60)"
    )
    monkeypatch.setattr(queue, "command", lambda *_: [sys.executable, "-c", code])
    return started, saved


def test_sigterm_is_passed_on_and_nothing_else_begun(options, monkeypatch, tmp_path):
    started, saved = stopping(options, monkeypatch, tmp_path)
    old = signal.getsignal(signal.SIGTERM)

    def stop():
        while not started.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(SystemExit) as error:
        queue.run("tiny", TINY, options)
    assert error.value.code == 75 and saved.exists()
    assert signal.getsignal(signal.SIGTERM) is old


def test_what_runs_at_the_deadline_saves_its_state(
    options, monkeypatch, tmp_path, capsys
):
    _, saved = stopping(options, monkeypatch, tmp_path)
    assert queue.run("tiny", TINY, options._replace(seconds=2.0)) == 1
    assert saved.exists() and "in the time given" in capsys.readouterr().err


# Records ------------------------------------------------------------------------------
def test_records_survive_a_torn_line(tmp_path):
    results.append("x", {"a": 1}, tmp_path)
    with open(tmp_path / "x.jsonl", "a") as file:
        file.write('{"a": ')
    assert results.read("x", tmp_path) == [{"a": 1}]
    results.append("x", {"a": float("nan")}, tmp_path)
    assert results.read("x", tmp_path) == [{"a": 1}, {"a": None}]
    (tmp_path / "x.jsonl").write_text('{"a": 1}\nbread\n{"a": 2}\n')
    with pytest.raises(ValueError, match="x.jsonl line 2"):
        results.read("x", tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "bread"],
        ["run", "small", "--only", "bread"],
        ["run", "small", "--jobs=-1"],
        ["run", "small", "--seconds=0"],
        ["one", "small", "--run=final/float-seed0"],
    ],
)
def test_wrong_arguments_are_refused(words, capsys):
    with pytest.raises(SystemExit) as error:
        main([*words, "--results=nowhere"])
    assert error.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backend", "words", "dtype"),
    [("gpu", [], "bfloat16"), ("gpu", ["--dtype=float32"], "float32"), ("cpu", [], "")],
)
def test_the_network_computes_in_what_the_device_is_fast_at(
    backend, words, dtype, monkeypatch
):
    begun = []
    monkeypatch.setattr(pieces, "machine", lambda: (backend, DEVICE))
    monkeypatch.setattr(queue, "run", lambda *given: begun.append(given[2]) or 0)
    assert main(["run", "small", *words]) == 0
    assert begun[0].dtype == dtype and begun[0].device == DEVICE
    made = common.configure(TINY, grid.plan(TINY, {})[0], dtype=dtype)
    assert made.dtype == (dtype or "float32")


def test_a_real_warm_start(options, monkeypatch):
    """Through train.py: LSQ, whose steps begin from the float weights."""
    changes = {"quantizer.lsq.bits": 2, "meta.learning_rate": 0.0}
    rows = {"float": Row("identity"), "lsq": Row("lsq", changes)}
    study = TINY._replace(
        rows=rows,
        initializations=(
            Initialization("scratch", 0.0, 0.8, 1 / 3),
            Initialization("warm", 0.4, 0.4),
        ),
    )
    for row in rows:
        for piece in grid.search_runs(study, row):
            start = piece.initialization.name
            about = {"label": piece.label, "row": row, "initialization": start}
            about |= {"learning_rate": piece.learning_rate, "kind": "search"}
            accuracy = 0.6 if start == "warm" else 0.5
            results.append("tiny", about | made_up(accuracy), options.results)
    records = results.of_study("tiny", study, options.results)
    plan = {r.label: r for r in grid.plan(study, records)}
    # A float network that no initialization gives.
    source = plan["float/seed1"]
    exp = experiment.build(study.configure(study, source))
    like = jax.device_get(exp.state)
    state = like._replace(params=jax.tree.map(lambda x: 3 * x + 0.01, like.params))
    with Checkpoints(pieces.workdir("tiny", source, options)) as checkpoints:
        checkpoints.save(1, state, {"hard": 0.5})

    piece = plan["final/lsq-seed1"]
    assert pieces.train_piece("tiny", study, piece, options)
    saved = results.of_study("tiny", study, options.results)[piece.label]
    assert saved["initialization"] == "warm" and saved["learning_rate"] == 0.1
    assert saved["epochs"] == pytest.approx(0.4) and "curve" not in saved
    assert {"versions", "commit", "wall", "command"} <= saved.keys()
    folder = pieces.workdir("tiny", piece, options)
    with Checkpoints(folder) as checkpoints:
        arrays = checkpoints.load_arrays().state
    for name in ("conv1", "conv2"):
        step = arrays[f"params/quant/{name}/kernel/value"]
        kernel = np.abs(state.params["model"][name]["kernel"])
        np.testing.assert_allclose(step, 2 * kernel.mean(), rtol=1e-5)
    # What the queue leaves is what the zoo takes.
    monkeypatch.setattr(grid, "load", lambda _: study._replace(seeds=(1,)))
    monkeypatch.setattr(grid, "names", lambda: ["tiny"])
    words = ["study", "tiny", "--rows", "lsq", f"--results={options.results}"]
    found = make_zoo.of_study(make_zoo.parse([*words, f"--work={options.work}"]))
    assert found == {"tiny-lsq": folder}
    kept = json.loads((folder / "result.json").read_text())
    assert kept["hard"] == saved["hard"] and (folder / "config.json").exists()


WITHOUT = """
import importlib.machinery as machinery
import sys

class Finder(machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in sys.argv[1:]:
            return machinery.PathFinder.find_spec(name, path, target)

sys.meta_path = [Finder if x is machinery.PathFinder else x for x in sys.meta_path]
sys.path.insert(0, ".")
from quantnet_jax import data
from quantnet_jax.experiments.__main__ import main
assert main(["run", "small", "--plan", "--results=nowhere"]) == 0
data.load("bundled")
"""


def test_the_queue_needs_few_packages():
    absent = ["grain", "tensorflow", "tensorflow_datasets", "array_record", "PIL"]
    absent += ["tensorboardX", "tqdm", "chex", "onnx", "onnxruntime", "cykooz_resizer"]
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", WITHOUT, *absent]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "search/float-scratch" in done.stdout


# Tables -------------------------------------------------------------------------------
def cells(text, start):
    line = next(x for x in text.splitlines() if x.startswith(f"| {start} |"))
    return [x.strip() for x in line.split("|")[1:-1]]


def test_tables(options):
    records = {}
    undecided = lambda: [
        r
        for r in grid.plan(TINY, records)
        if r.initialization and r.label not in records
    ]
    while found := undecided():  # a search decides what comes after it
        for piece in found:
            best = "warm-lr0.2" in piece.name
            accuracy = {"float": 0.77, "quantnet": 0.67}.get(piece.row, 0.57)
            about = {"initialization": piece.initialization.name, "epochs": 1.0}
            about |= {"learning_rate": piece.learning_rate, "cores": 1}
            records[piece.label] = made_up(accuracy + best / 100) | about
    for seed, accuracy in enumerate((0.70, 0.72)):
        records[f"final/quantnet-seed{seed}"] |= made_up(accuracy)
    del records["final/wide-seed1"]
    records["final/clipped_ste-seed0"]["diverged"] = True
    text = tables.section("tiny", TINY, records)
    wanted = ["quantnet", "warm", "0.2 (edge)", "72.00 ± 1.41", "70.00 ± 1.41"]
    wanted += ["71.00 ± 1.41", "1.00 ± 0.00", "", "1.0"]
    assert cells(text, "quantnet") == wanted
    assert cells(text, "clipped_ste")[3] == "58.00 (1 diverged)"
    assert cells(text, "clipped_ste")[7] == "+14.00"
    assert cells(text, "float")[5] == "77.00 ± 0.00"
    assert "(1 of 2 seeds)" in cells(text, "wide")[3]
    assert "**holds**" in text and "QuantNet minus tuned STE: **+14.00**" in text
    assert "QuantNet minus float: -6.00 ± 1.00" in text
    assert "0.1: 57.00, 0.2: 58.00" in text  # of the search
    for row in TINY.rows:
        assert cells(tables.table(TINY, {}), row)[3] == "not run"
    assert tables.verdict(TINY, {}) == "Order: not yet complete."
    signless = TINY._replace(rows={k: TINY.rows[k] for k in ("float", "quantnet")})
    assert tables.verdict(signless, {}) == ""
    lasting = TINY._replace(last=2)
    curve = [{"hard_bn": 0.1 * e} for e in (1, 2, 3)]
    saved = [made_up(0.9) | {"curve": curve}]
    assert columns.values(lasting, saved, "hard_bn") == [pytest.approx(25)]
    assert columns.values(TINY, saved, "hard_bn") == [90]


def test_choice_is_the_first_of_equals_and_needs_the_whole_search():
    runs = list(grid.search_runs(TINY, "quantnet"))
    records = {r.label: made_up(0.7) for r in runs}
    assert grid.choice(TINY, records, "quantnet") == (TINY.initializations[0], 0.1)
    records[runs[0].label] = {"diverged": True}
    assert grid.choice(TINY, records, "quantnet") == (TINY.initializations[0], 0.2)
    assert grid.choice(TINY, records, "wide") == (TINY.initializations[0], 0.2)
    del records[runs[-1].label]
    assert grid.choice(TINY, records, "quantnet") is None


def test_flips_are_those_of_the_last_evaluation():
    curves = [[None, 0.5, last] for last in (0.01, 0.03)]
    found = [
        {"layers": {"a": {}}, "curve": [{"flips": f} for f in flips]}
        for flips in curves
    ]
    cell = columns.Cell(TINY, {}, "quantnet", found, {})
    assert columns.COLUMNS["flips"](cell) == "2.00 ± 1.41"
    floats = columns.Cell(TINY, {}, "float", [found[0] | {"layers": {}}], {})
    assert columns.COLUMNS["flips"](floats) == ""


def test_packed_bytes_by_hand():
    layers = {
        "a": {"shape": [3, 3, 2, 5], "bits": 1, "floats": [2, 5]},
        "b": {"shape": [1, 1, 5, 1], "bits": 2, "floats": [4, 1]},
    }
    # a: 90 codes of 1 bit in 12 bytes; b: 5 codes of 2 bits in 2; 7 and 5 floats.
    assert columns.packed_bytes(layers) == 12 + 4 * 7 + 2 + 4 * 5 == 62
