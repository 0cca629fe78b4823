"""Processes that watch each other: who died is named, who ended in order is not."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from quantnet_jax.distributed import liveness

PROCESS = """
import importlib.util, pathlib, sys, time
path, folder, number = sys.argv[1:4]
spec = importlib.util.spec_from_file_location("liveness", path)
liveness = importlib.util.module_from_spec(spec)
spec.loader.exec_module(liveness)

def meet():
    while len(list(pathlib.Path(folder).glob("*.json"))) < 3:
        time.sleep(0.02)

with liveness.watched(folder, int(number), 3, meet=meet, orderly=(75,)):
    print("in", flush=True)
    exec(sys.stdin.readline())
    if number == "0":
        time.sleep(1)  # the last to leave
"""


@pytest.fixture
def three(tmp_path):
    """Three processes that wait for a line to execute; the folder they share."""
    folder = tmp_path / "alive"
    words = [sys.executable, "-c", PROCESS, liveness.__file__, str(folder)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    processes = [
        subprocess.Popen([*words, str(k)], text=True, **pipes) for k in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "in\n"
        yield processes, folder
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@pytest.mark.parametrize("end", ["killed", "failed"])
def test_death_of_one_ends_the_others_by_name(three, end):
    processes, folder = three
    began = time.monotonic()
    if end == "killed":
        processes[1].send_signal(signal.SIGKILL)
    else:
        processes[1].stdin.write("sys.exit('error: no such picture')\n")
        processes[1].stdin.flush()
    for k in (0, 2):
        assert processes[k].wait(120) == 1
        error = processes[k].stderr.read()
        cause = "died" if end == "killed" else "ended with an error"
        assert f"error: process 1 of 3 ({os.uname().nodename}, pid " in error
        assert f"pid {processes[1].pid}) {cause}" in error
        assert "--workdir to resume" in error and error.count("\n") == 1
    assert time.monotonic() - began < 60
    if end == "failed":
        assert processes[1].stderr.read() == "error: no such picture\n"
        assert processes[1].wait(120) == 1


def test_a_host_without_power_is_named_after_many_looks(tmp_path):
    """Its file stays as it is: nobody is left to write into it."""
    beat = lambda number: liveness._write(
        *(tmp_path, 1, "host, pid 9", liveness.RUNNING), beat=number
    )
    peer = liveness._Peer(tmp_path, 1)
    peer.look()  # there is no file yet, however long that takes
    beat(1)
    for _ in range(liveness.STALE):
        peer.look()
    assert liveness._fault({1: peer}, 2) == ""
    beat(2)  # late, but alive
    for _ in range(liveness.STALE + 1):
        peer.look()
    fault = liveness._fault({1: peer}, 2)
    assert fault == "process 1 of 2 (host, pid 9) has not been heard of for 45 s"
    assert liveness.STALE * liveness.BEAT + liveness.GRACE < 120


def test_ordinary_ends_are_no_deaths(three):
    processes, folder = three
    for process, line in zip(
        processes, ("", "sys.exit(0)", "sys.exit(75)"), strict=True
    ):
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    assert [p.wait(120) for p in processes] == [0, 0, 75]
    assert [p.stderr.read() for p in processes] == [""] * 3
    assert not folder.exists()
