"""A disk that is full, or the wrong place; a state that must not be saved."""

import errno
import io
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from program import (
    assert_same_run,
    preempted,
    replaced,
    settings,
)

from quantnet_jax import run as train
from quantnet_jax.checkpoint import manager, storage
from quantnet_jax.common.command import MENDABLE
from quantnet_jax.logging import records

pytestmark = pytest.mark.usefixtures("compile_once")

# Disks --------------------------------------------------------------------------------


def test_full_disk_is_reported_in_one_line_and_costs_nothing(
    whole,
    tmp_path,
    monkeypatch,
):
    workdir = tmp_path / "run"
    usage = storage.shutil.disk_usage

    def full(folder):
        done = (workdir / manager.FOLDER / "00000004").exists()
        return usage(folder)._replace(free=1000) if done else usage(folder)

    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "disk_usage", full)
        with pytest.raises(MENDABLE, match="^cannot write .*no space") as e:
            train.train(settings(), workdir)
    text = str(e.value)
    assert "\n" not in text and f"{workdir}/{manager.FOLDER}" in text
    assert "0.0 MB are free" in text and "existing checkpoints are intact" in text
    with manager.Checkpoints(workdir, read_only=True) as saved:
        assert saved.steps() == [4]
    train.train(settings(), workdir)  # there is room again
    assert_same_run(whole[0], workdir)


HOLDER = """
import sys
from quantnet_jax.checkpoint import storage
file = storage.claim(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_share_a_workdir(tmp_path):
    workdir = tmp_path / "run"
    words = [sys.executable, "-c", HOLDER, str(workdir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MENDABLE, match="^.* under way in another") as e:
            train.train(settings(), workdir)
        assert "\n" not in str(e.value)
        assert [x.name for x in workdir.iterdir()] == [".lock"]
        with pytest.raises(MENDABLE, match="^.* under way in another"):
            train.train(
                settings(float_baseline=True), workdir
            )  # not the float run only
        assert [x.name for x in workdir.iterdir()] == [".lock"]
        holder.kill()
    with storage.claim(workdir):  # the dead hold nothing
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_save_that_fails_in_the_background_is_reported_at_the_next(tmp_path):
    def state(value):
        return {"step": np.int32(0), "params": np.full(1 << 18, value, np.float32)}

    arrays = [{k: np.asarray(v) for k, v in state(i).items()} for i in range(4)]
    arrays = [a | {"params": a["params"] + np.random.rand(1 << 18)} for a in arrays]
    arrays = [{k: v.astype(np.float32) for k, v in a.items()} for a in arrays]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with manager.Checkpoints(tmp_path) as saved:
        saved.save(1, arrays[1])
        saved.wait()
        try:  # no file above 64 KiB: found out in the middle of writing
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
            with pytest.raises(storage.StorageError, match="File too large") as e:
                saved.save(2, arrays[2])
                saved.save(3, arrays[3])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value)
    with manager.Checkpoints(tmp_path) as saved:
        assert saved.steps() == [1]
        out = saved.restore(arrays[1])
        np.testing.assert_array_equal(out.state["params"], arrays[1]["params"])
        saved.save(2, arrays[2])
    with manager.Checkpoints(tmp_path, read_only=True) as saved:
        assert saved.steps() == [1, 2]


def test_workdir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(MENDABLE, match="^cannot write .*Not a dir") as e:
        train.train(settings(), tmp_path / "run")
    assert "\n" not in str(e.value) and f"'{tmp_path / 'run'}" in str(e.value)
    assert (tmp_path / "run").read_text() == "mine"


def test_read_only_workdir(compile_once, monkeypatch):
    compile_once(settings())  # the compiler keeps its results where root may write
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0
        if root:  # who may write everywhere
            os.seteuid(65534)
        try:
            with pytest.raises(MENDABLE, match="^cannot write .*Permiss") as e:
                train.train(settings(), pathlib.Path(folder) / "run")
        finally:
            if root:
                os.seteuid(0)
        assert "\n" not in str(e.value) and f"'{folder}/run" in str(e.value)
        assert not os.listdir(folder)


def test_records_name_the_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(storage.StorageError, match="file/result.json' .Not a directo"):
        records.write_json(tmp_path / "file" / "result.json", {})

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    writer = records.Writer(tmp_path, tensorboard=False)
    writer.close()
    writer._file = Full()
    with pytest.raises(storage.StorageError, match="metrics.jsonl' .No space left"):
        writer.write("train", 1, {"loss": 0.0})


def test_events_on_a_full_disk_are_an_error_of_the_run(tmp_path):
    """Of the thread that trains: it must not wait for another one that died of it."""
    pytest.importorskip("tensorboardX")
    writer = records.Writer(tmp_path, resume_step=None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a record is smaller than its events, so these meet the limit first
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
        with pytest.raises(storage.StorageError, match="tensorboard' .File too larg"):
            for step in range(60):
                writer.write("train", step, {"loss": 0.0, "a": 1.0, "b": 2.0})
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.close()
    lines = (tmp_path / records.METRICS_FILE).read_text().splitlines()
    assert 10 < len(lines) < 61


# A state that is not finite -----------------------------------------------------------


def test_preemption_with_a_bad_state_saves_nothing(
    tmp_path,
    monkeypatch,
    compile_once,
):
    def sick(config):
        exp = compile_once(config)
        return replaced(exp, is_finite=lambda state: int(state.step) < 5)

    preempted(monkeypatch, sick, 6)  # between two checkpoints
    with pytest.raises(MENDABLE, match="^diverged at step 6") as e:
        train.train(settings(checkpoint_every=4), tmp_path / "run")
    assert "last good checkpoint: step 4" in str(e.value)
    with manager.Checkpoints(tmp_path / "run", read_only=True) as saved:
        assert saved.steps() == [4]
