"""A run in a bucket: trained, killed, resumed, evaluated, exported, by an emulator."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from program import (
    ROOT,
    STEPS,
    assert_same_run,
    settings,
)

import quantnet_jax as qn
from quantnet_jax import evaluate, export, report
from quantnet_jax import run as train
from quantnet_jax.checkpoint import lease, manager, storage
from quantnet_jax.common.command import MENDABLE
from quantnet_jax.common.files import as_path, write_atomic
from quantnet_jax.data.files import read_members

pytestmark = [
    pytest.mark.usefixtures("compile_once"),
    # Of the connections of gcsfs, when they are collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
KILLED = """
import os, signal, sys
import pytest
from program import replaced, settings
from quantnet_jax import run as train
from quantnet_jax.common.files import as_path

def build(config, made=train.experiment.build):
    exp, taken = made(config), []
    def train_step(*args):
        taken.append(1)
        if len(taken) == 10:  # the checkpoint of step 4 is whole, that of 8 may not be
            os.kill(os.getpid(), signal.SIGKILL)
        return exp.train_step(*args)
    return replaced(exp, train_step=train_step)

train.experiment.build = build
train.train(settings(), as_path(sys.argv[1]))
"""


def kill(workdir):
    """A process that trains the run, and is killed in it."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(workdir)],
        cwd=ROOT / "tests",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def test_a_run_is_killed_resumed_evaluated_and_exported(
    bucket,
    whole,
    tmp_path,
    capsys,
):
    workdir = bucket / "runs" / "one"
    kill(workdir)
    assert (workdir / ".lock").exists()  # of a process that is no more
    result = train.train(settings(), workdir)
    assert "resuming at step " in capsys.readouterr().err
    assert not (workdir / ".lock").exists()
    assert_same_run(whole[0], workdir)
    exp, state, step = evaluate.restore(str(workdir))
    scores = exp.evaluate(state)[0]
    assert (step, scores["hard"]) == (STEPS, result["hard"])
    made = export.export_state(exp, state, workdir / "export")
    assert made["folder"] == f"{workdir}/export" and not made["differ"]
    local = tmp_path / "model.safetensors"
    local.write_bytes((workdir / "export" / local.name).read_bytes())
    assert qn.load(local).spec.shape == (8, 8, 3)
    page = report.write_report([workdir])
    assert page == f"{workdir}/report.html" and as_path(page).read_text()
    other = settings(seed=1)
    with pytest.raises(MENDABLE, match="^gs://mine/.*created with seed=0"):
        train.train(other, workdir)


def test_damaged_checkpoint_falls_back(bucket):
    state = {"step": np.int32(0), "params": np.arange(3.0, dtype=np.float32)}
    state["step"] = np.asarray(state["step"])
    with manager.Checkpoints(bucket / "other") as saved:
        for step in (1, 2):
            saved.save(step, state | {"params": state["params"] + step})
        saved.wait()
    for path in (bucket / "other" / manager.FOLDER / "00000002" / "extra").iterdir():
        path.write_text("{")
    with manager.Checkpoints(bucket / "other") as saved:
        with pytest.warns(UserWarning, match="falling back to step 1"):
            out = saved.restore(state)
        assert saved.steps() == [1]
    np.testing.assert_array_equal(out.state["params"], state["params"] + 1)


def test_a_lease_is_held_renewed_and_taken_over(bucket, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.2)
    folder = bucket / "leased"
    with storage.claim(folder):
        with pytest.raises(ValueError, match="gs://mine/leased belongs to a run"):
            storage.claim(folder)
        time.sleep(0.5)
        assert json.loads((folder / ".lock").read_text())["beat"] > 1
    assert not (folder / ".lock").exists()
    (folder / ".lock").write_text('{"host": "elsewhere", "pid": 1, "id": "x"}')
    with storage.claim(folder):  # nobody renews that one
        assert json.loads((folder / ".lock").read_text())["id"] != "x"


def test_files_and_refusals(bucket):
    write_atomic(bucket / "a" / "b.txt", "one")
    write_atomic(bucket / "a" / "b.txt", b"two")
    found = read_members(bucket / "a", {"b.txt": 3})
    assert found["b.txt"].content == b"two"
    with pytest.raises(storage.StorageError, match="cannot write 'gs://nobodys") as e:
        storage.check_writable("gs://nobodys/run")
    assert "\n" not in str(e.value)


def test_other_schemes_are_refused():
    with pytest.raises(ValueError, match="s3://b/run: expected a folder or gs://"):
        as_path("s3://b/run")
