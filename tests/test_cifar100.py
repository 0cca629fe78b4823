"""The queue of the CIFAR protocols on made-up results, and once for real; its page."""

import json
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
from tiny_protocol import TINY, result

from benchmarks import (
    cifar100,
    cifar100_plan,
    make_zoo,
    runs,
)
from benchmarks.protocol_rows import Row
from benchmarks.protocols import PROTOCOLS, Start
from quantnet_jax.checkpoint.manager import Checkpoints
from quantnet_jax.training import experiment

pytestmark = pytest.mark.cheap


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
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
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
    finals = [c for c in calls if c.data.validation_size == 0 and c.init_from]
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


def test_float_networks_are_trained_for_those_that_begin_from_them(
    args, calls, monkeypatch
):
    original = runs.train.train

    def train(config, workdir):
        made = original(config, workdir)
        return result(made["hard_bn"] - 0.2) if config.init_from else made

    monkeypatch.setattr(runs.train, "train", train)
    assert cifar100.run_here("tiny", args) == 0
    assert found(args, "float/*") == ["float/search.json"]


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


def test_a_queue_that_is_told_to_stop_passes_it_on(tmp_path):
    started = tmp_path / "started"
    code = (
        f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(60)"
    )
    waiting = [(str(i), [sys.executable, "-c", code]) for i in range(2)]
    old = signal.getsignal(signal.SIGTERM)

    def stop():
        while not started.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    take = lambda codes, running: waiting.pop(0) if waiting else None
    with pytest.raises(SystemExit) as error:
        runs.run_processes(take, 1, os.environ)
    assert error.value.code == runs.STOPPED
    assert len(waiting) == 1, "another one was started"
    assert signal.getsignal(signal.SIGTERM) is old


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


def test_a_real_warm_start(args, tmp_path, monkeypatch):
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
    # What the queue leaves is what the zoo takes, of one run or of many.
    many = ["protocol", "tiny", "--rows", "lsq", "float", "--data=synthetic"]
    many += [f"--results={args.results}", f"--work={args.work}"]
    monkeypatch.setitem(PROTOCOLS, "tiny", small._replace(seeds=(1,)))
    networks = make_zoo.of_protocol(make_zoo.parse(many))
    assert list(networks) == ["synthetic-tiny-lsq", "synthetic-tiny-float"]
    (tmp_path / "zoo").mkdir()
    for name in ("first", "second"):
        entry = make_zoo.add(
            name, networks["synthetic-tiny-lsq"], folder=tmp_path / "zoo"
        )
        assert (entry["bits"], entry["accuracy"]) == (2, saved["hard"])
    assert len(json.loads((tmp_path / "zoo" / "index.json").read_text())) == 2

    for name in ("conv1", "conv2"):
        step = arrays[f"params/quant/{name}/kernel/value"]
        kernel = np.abs(state.params["model"][name]["kernel"])
        np.testing.assert_allclose(step, 2 * kernel.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("device", "words", "dtype"),
    [("gpu", [], "bfloat16"), ("gpu", ["--dtype=float32"], "float32"), ("cpu", [], "")],
)
def test_the_network_computes_in_what_the_device_is_fast_at(
    device, words, dtype, args, calls, monkeypatch
):
    monkeypatch.setattr(cifar100, "backend", lambda: device)
    begun = []

    def run_all(name, args):
        begun.append(cifar100.command(name, cifar100.wanted(name, args)[0], args))
        return 0

    monkeypatch.setattr(cifar100, "run_all", run_all)
    folders = [f"--{k}={getattr(args, k)}" for k in ("results", "work", "page")]
    assert cifar100.main(["run", "--protocol", "tiny", *folders, *words]) == 0
    (command,) = begun
    assert f"--dtype={dtype}" in command
    cifar100.main(command[2:])
    (trained,) = calls
    assert trained.dtype == (dtype or "float32")


WITHOUT = """
import importlib.machinery as machinery
import sys

class Finder(machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in sys.argv[2:]:
            return machinery.PathFinder.find_spec(name, path, target)

sys.meta_path = [Finder if x is machinery.PathFinder else x for x in sys.meta_path]
sys.path.insert(0, sys.argv[1])
from benchmarks import cifar100
from quantnet_jax import data
assert cifar100.main(["list", "--protocol", "small"]) == 0
data.load("bundled")
"""


def test_the_queue_needs_few_packages():
    absent = ["grain", "tensorflow", "tensorflow_datasets", "array_record", "PIL"]
    absent += ["tensorboardX", "tqdm", "chex", "onnx", "onnxruntime", "simplejpeg"]
    root = str(pathlib.Path(__file__).parent.parent)
    command = [sys.executable, "-c", WITHOUT, root, *absent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "search/float-scratch" in done.stdout
