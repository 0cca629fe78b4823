"""Tests of two processes over jax.distributed: equal to one process of four devices."""

import functools
import json
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny import outcome, tiny_config, train
from two_process import STEPS

from quantnet_jax import run as training
from quantnet_jax.checkpoint import manager
from quantnet_jax.distributed import hosts, runners
from quantnet_jax.distributed.preemption import RESUME_ME
from quantnet_jax.training import experiment

HERE = pathlib.Path(__file__).parents[1]
ROOT = HERE.parent
TIMEOUT = 300  # seconds, of a few seconds' work: slow machines fail late, none hangs
COUNTS = ("soft", "hard", "hard_bn", "gap", "gap_bn", "examples")
LOSSES = ("loss_soft", "loss_hard", "kl")


def start_two(*command, blow=None, victim=1, codes=(0, 0)):
    """Runs a command in two processes of two devices each.

    Args:
      *command: arguments of Python; {address}, {count} and {number} are filled in.
      blow: (file, signal): the victim gets the signal once the file exists; a stopped
        one is killed at the end.
      victim: number of a process.
      codes: the exit codes to expect, of each process one or several.

    Returns:
      [(standard output, standard error) of each process].
    """
    with socket.socket() as s:  # a port that is free now
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"]  # the last of two values counts
        + " --xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    # Only the first process would write to the cache: the other one, compiling all by
    # itself, could be late by more than the patience of the collectives.
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    processes = [
        subprocess.Popen(
            [sys.executable]
            + [word.format(address=address, count=2, number=i) for word in command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    deadline = time.monotonic() + TIMEOUT
    try:
        if blow:
            while not blow[0].exists() and processes[victim].poll() is None:
                assert time.monotonic() < deadline, f"no {blow[0]}"
                time.sleep(0.01)
            processes[victim].send_signal(blow[1])
            if blow[1] == signal.SIGSTOP:
                processes[1 - victim].wait(TIMEOUT)
                processes[victim].kill()
        outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (out, err), code in zip(processes, outputs, codes, strict=True):
        allowed = code if isinstance(code, tuple) else (code,)
        assert process.returncode in allowed, f"{out}\n{err[-4000:]}"
    return outputs


def assert_states_close(got, wanted):
    assert len(jax.tree.leaves(got)) == len(jax.tree.leaves(wanted))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=name)


def assert_scores_agree(got, wanted):
    """Counts to the last example, losses to rounding."""
    for name in COUNTS:
        assert got[name] == wanted[name], name
    for name in LOSSES:
        assert got[name] == pytest.approx(wanted[name], rel=1e-5), name


# The library --------------------------------------------------------------------------
@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """[{runner: outcome} of process 0, of process 1], and their folder."""
    folder = tmp_path_factory.mktemp("two")
    script = str(HERE / "two_process.py")
    start_two(script, str(folder), "{address}", "{count}", "{number}")
    paths = [folder / f"process{i}.pickle" for i in range(2)]
    return [pickle.loads(path.read_bytes()) for path in paths], folder


@functools.cache
def of_one_process(runner):
    return outcome(tiny_config(runner=runner), STEPS)


@pytest.mark.parametrize("runner", runners.RUNNERS)
def test_two_processes_equal_one(outcomes, runner):
    wanted = of_one_process(runner)
    assert wanted["devices"] == (4, 4)
    assert wanted["scores"]["examples"] == 50
    for process in outcomes[0]:
        got = process[runner]
        assert got["devices"] == (2, 4)
        assert_states_close(got["state"], wanted["state"])
        assert_scores_agree(got["scores"], wanted["scores"])
        for name, value in got["metrics"].items():
            assert value == pytest.approx(wanted["metrics"][name], rel=2e-6), name
        assert got["layers"].keys() == wanted["layers"].keys()
        for path, codes in got["codes"].items():
            assert np.mean(codes != wanted["codes"][path]) < 0.01, path


@pytest.mark.parametrize("runner", runners.RUNNERS)
def test_both_processes_hold_the_same(outcomes, runner):
    first, second = (process[runner] for process in outcomes[0])
    for a, b in zip(
        jax.tree.leaves(first["state"]), jax.tree.leaves(second["state"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert first["scores"] == second["scores"]
    assert first["metrics"] == second["metrics"]


def test_a_state_sharded_over_two_processes_is_that_of_one(outcomes):
    """Metrics and codes in both, and what they saved, as another process reads it."""
    processes, folder = outcomes
    wanted = of_one_process("jit")
    for process in processes:
        got = process["fsdp"]
        for name, value in got["metrics"].items():
            assert value == pytest.approx(wanted["metrics"][name], rel=2e-6), name
        for path, codes in got["codes"].items():
            assert np.mean(codes != wanted["codes"][path]) < 0.01, path
    with manager.Checkpoints(folder / "fsdp", read_only=True) as checkpoints:
        restored = checkpoints.restore(wanted["state"])
    assert_states_close(restored.state, wanted["state"])


# The program --------------------------------------------------------------------------
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_config


def get_config(variant=""):
    return tiny_config(runner=variant, keep_latest=5)
"""


def run_program(folder, workdir, runner, *words, **options):
    """Runs train.py in two processes; returns their outputs."""
    config = folder / "two_process_config.py"
    config.write_text(CONFIG.format(tests=str(HERE)))
    return start_two(
        str(ROOT / "train.py"),
        f"--config={config}:{runner}",
        f"--workdir={workdir}",
        "--coordinator={address}",
        "--processes={count}",
        "--process={number}",
        *words,
        **options,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory, bucket):
    """(workdir of a whole run under jit, of its second half under pmap, outputs).

    The second half is run in a bucket. One of its processes got SIGTERM, and one
    process of four devices went on with what the two saved. Resuming hands any runner
    the same arrays.
    """
    folder = tmp_path_factory.mktemp("program")
    whole, resumed = folder / "whole", bucket / "resumed"
    first = run_program(folder, whole, "jit")
    later = ("config.json", "result.json", "report.html", "00000004", "00000006")
    for path in whole.rglob("*"):  # as if the run had been stopped after step 2
        name = path.relative_to(whole)
        if path.is_file() and not set(later) & set(name.parts):
            (resumed / name).parent.mkdir(parents=True, exist_ok=True)
            (resumed / name).write_bytes(path.read_bytes())
    second = run_program(
        folder,
        resumed,
        "pmap",
        blow=(resumed / "config.json", signal.SIGTERM),
        codes=(RESUME_ME, RESUME_ME),
    )
    with manager.Checkpoints(resumed, read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] in (3, 4, 5)
    training.train(tiny_config(keep_latest=5), resumed)
    return whole, resumed, (first, second)


@pytest.fixture(scope="module")
def one_process():
    """(state on the host, scores) after a whole run in this process."""
    exp = experiment.build(tiny_config())
    state, _ = train(exp, exp.steps)
    scores, _, _ = exp.evaluate(state)
    return jax.tree.map(np.array, jax.device_get(state)), scores


@pytest.mark.parametrize("which", ["whole", "resumed"])
def test_program_in_two_processes_equals_one(program, one_process, which):
    workdir = dict(zip(("whole", "resumed"), program[:2], strict=True))[which]
    state, scores = one_process
    result = json.loads((workdir / "result.json").read_text())
    assert (result["steps"], result["device"]) == (6, "4 x cpu")
    assert_scores_agree(result, scores)
    with manager.Checkpoints(workdir, read_only=True) as checkpoints:
        assert {2, 4, 6} <= set(checkpoints.steps()) <= {2, 3, 4, 5, 6}
        restored = checkpoints.restore(state)
    assert restored.step == 6
    assert_states_close(restored.state, state)


def test_only_the_first_process_prints_and_writes(program):
    whole, resumed, outputs = program
    for (_, err), (other_out, other_err) in outputs:
        assert "step " in err and "error" not in err + other_err
        assert "soft - hard" not in other_out and "step " not in other_err
    assert "soft - hard" in outputs[0][0][0] and "step 6/6" in outputs[0][0][1]
    assert "resuming" not in outputs[0][0][1] and "at step 2" in outputs[1][0][1]
    assert "received SIGTERM: checkpoint saved at step" in outputs[1][0][1]
    for workdir in (whole, resumed):
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        evals = [r["step"] for r in records if r["kind"] == "eval"]
        assert evals == [2, 4, 6]
        assert (workdir / "report.html").is_file()


# A dead process -----------------------------------------------------------------------
ENDLESS = """
import sys, time, jax
from quantnet_jax.distributed import hosts
folder, address, count, number, end = sys.argv[1:]
hosts.initialize(False, address, int(count), int(number), heartbeat_timeout=5)
with hosts.exit_on_error(expected=(75,)):
    mean = jax.pmap(lambda x: jax.lax.pmean(x, "i"), axis_name="i")
    x = jax.numpy.ones(jax.local_device_count())
    for step in range(10**9):
        jax.block_until_ready(mean(x))
        open(folder + "/began" + number, "w").close()
        if step == 50 and end == "together":
            time.sleep(7 * int(number))  # longer than a heartbeat may be missing
            sys.exit(75)
        if step == 50 and end == "failed" and number == "1":
            sys.exit("error: no such image")
"""


def run_endless(folder, end, **options):
    words = ("{address}", "{count}", "{number}", end)
    return start_two("-c", ENDLESS, str(folder), *words, **options)


@pytest.mark.parametrize("end", ["killed", "frozen", "failed"])
def test_death_of_a_process_terminates_the_other(tmp_path, end):
    """By JAX, which names the task; a process that fails does not wait for others."""
    began = time.monotonic()
    sent = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}.get(end)
    (_, err), (_, other) = run_endless(
        *(tmp_path, end),
        blow=sent and (tmp_path / "began1", sent),
        codes=((-signal.SIGABRT, 1), 1 if end == "failed" else -signal.SIGKILL),
    )
    # The heartbeats notice it, unless a collective does so before.
    noticed = "tasks are unhealthy (stopped sending heartbeats):\n1\n" in err
    assert noticed or err.splitlines()[-1] == hosts.LOST
    assert "another task died" in err and time.monotonic() - began < 120
    if end == "failed":
        assert other.splitlines()[-1] == "error: no such image"


def test_processes_that_end_apart_are_no_deaths(tmp_path):
    outputs = run_endless(tmp_path, "together", codes=(RESUME_ME, RESUME_ME))
    assert [err for _, err in outputs] == ["", ""]


LONG = {"epochs": 9.6, "eval_every": 0.64}  # 60 steps, saved every 4


def test_training_goes_on_after_the_death_of_a_process(tmp_path):
    """One is killed while both train; one process alone then ends the run."""
    workdir, config = tmp_path / "run", tiny_config(keep_latest=5, **LONG)
    began = time.monotonic()
    run_program(
        *(tmp_path, workdir, "pmap"),
        *(f"--config.{key}={value}" for key, value in LONG.items()),
        blow=(workdir / "checkpoints" / "00000004", signal.SIGKILL),
        victim=0,  # whose death the other one notices without a timeout
        codes=(-signal.SIGKILL, (1, -signal.SIGABRT)),
    )
    assert time.monotonic() - began < TIMEOUT
    with manager.Checkpoints(workdir, read_only=True) as checkpoints:
        assert 4 <= checkpoints.steps()[-1] < 60
    training.train(config, workdir)
    exp = experiment.build(config)
    wanted, _ = train(exp, exp.steps)
    with manager.Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore(exp.state)
    assert restored.step == 60
    for a, b in zip(
        jax.tree.leaves(jax.device_get(restored.state)),
        jax.tree.leaves(jax.device_get(wanted)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    result = json.loads((workdir / "result.json").read_text())
    assert (result["steps"], result["examples"]) == (60, 50)
