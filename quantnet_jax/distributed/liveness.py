"""Tells the processes of a run which of them died, so that none waits for ever.

JAX ends a process whose peer is gone only after minutes, or by an abort that does not
say who it was. So each process of a run starts this file as a small process of its own,
a watcher, that outlives it by seconds. Watchers know of each other by files in a folder
that all of them see, one for each process, rewritten at every beat.
"""

import contextlib
import functools
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

BEAT = 1.0
"""Seconds between two looks at the files of up to ten processes."""
STALE = 45
"""Looks without a beat, as of a host without power, that make a process count as dead.
Looks, not seconds: where the file system hangs, nobody looks."""
GRACE = 10.0
"""Seconds for the others to end by themselves, after saying what they have to say."""
RUNNING, DONE, FAILED, KILLED = "running", "done", "failed", "killed"
REMEDY = "this process ends too; start all again with the same --workdir to resume"


@contextlib.contextmanager
def watched(
    folder: str | os.PathLike[str],
    number: int,
    count: int,
    *,
    meet: Callable[[], None],
    orderly: tuple[int, ...] = (),
    suspicious: Callable[[Exception], bool] = lambda error: False,
) -> Iterator[None]:
    """Ends this process with one line and exit code 1 soon after another one died.

    An error that leaves the block ends the process at once: what Python runs at its
    ordinary exit would wait for the others, who may be dead.

    Args:
      folder: that all processes see; made, and removed by the last one.
      number, count: of this process and of all.
      meet: returns when all processes have called it.
      orderly: exit codes that are no failure.
      suspicious: whether an error may come from the death of another process; if so,
        the watchers have time to find it, and the error itself is told only if not.
    """
    identity = f"{socket.gethostname()}, pid {os.getpid()}"
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, number, identity, RUNNING)
    meet()  # now none of the files is of an earlier start
    words = (sys.executable, "-I", "-S", __file__, folder, number, count, identity)
    # A session of its own: Ctrl-C is not for it.
    watcher = subprocess.Popen(
        [str(word) for word in words], stdin=subprocess.PIPE, start_new_session=True
    )
    ended = threading.Event()

    def follow():
        if watcher.wait() == 1:
            os._exit(1)  # the watcher has said why
        ended.set()

    threading.Thread(target=follow, daemon=True).start()

    def tell(word: str) -> None:
        assert watcher.stdin is not None
        with contextlib.suppress(OSError):  # it may have ended
            watcher.stdin.write(word.encode())
            watcher.stdin.close()
        ended.wait(2 * GRACE)

    try:
        yield
    except SystemExit as e:
        if e.code in (None, 0, *orderly):
            tell(DONE)
            raise
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr, flush=True)
        tell(FAILED)
        os._exit(e.code if isinstance(e.code, int) else 1)
    except BaseException as e:
        if isinstance(e, Exception) and suspicious(e):
            ended.wait(_period(count) * STALE + GRACE)
        sys.excepthook(type(e), e, e.__traceback__)
        tell(FAILED)
        os._exit(1)
    tell(DONE)


# The watcher --------------------------------------------------------------------------
def _watch(folder: pathlib.Path, number: int, count: int, identity: str) -> int:
    """Exit code of the watcher: 1 where its process has to end."""
    for name in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a host
        signal.signal(name, signal.SIG_IGN)
    parent = os.getppid()
    others = {k: _Peer(folder, k) for k in range(count) if k != number}

    def wait(seconds: float, until: Callable[[], Any]) -> None:
        stop = time.monotonic() + seconds
        while not until() and time.monotonic() < stop:
            time.sleep(_period(count) / 4)
            for peer in others.values():
                peer.look()

    def nobody_left() -> bool:
        return all(p.state != RUNNING or p.silent for p in others.values())

    def say(fault: str) -> None:
        print(f"error: {fault}; {REMEDY}", file=sys.stderr, flush=True)

    beat = 0
    while True:
        beat += 1
        _write(folder, number, identity, RUNNING, beat=beat)
        for peer in others.values():
            peer.look()
        fault = _fault(others, count)
        if fault:
            say(fault)
            _write(folder, number, identity, FAILED, because=fault)
            if number == 0:  # its end aborts those that have not noticed yet
                wait(GRACE, nobody_left)
            return 1
        word = ""
        if select.select([0], [], [], _period(count))[0]:
            word = os.read(0, 64).decode() or KILLED
        if word == DONE:
            (folder / f"{number}.json").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # until the last one
                folder.rmdir()
            return 0
        if word == FAILED:
            _write(folder, number, identity, FAILED)
            if number == 0:
                wait(GRACE, nobody_left)
            return 0
        if word or os.getppid() != parent:
            # Without a word: killed, or aborted by JAX because another one was.
            died = _write(folder, number, identity, KILLED)
            earlier = functools.partial(_fault, others, count, before=died)
            wait(GRACE, earlier)
            if earlier():
                say(earlier())
            return 0


class _Peer:
    """What the file of another process says, look by look."""

    def __init__(self, folder: pathlib.Path, number: int):
        self._path = folder / f"{number}.json"
        self._told: dict[str, Any] | None = None
        self._same = 0
        self.number, self.state, self.identity = number, RUNNING, ""
        self.because, self.silent, self.changed = "", False, 0
        self._failed_at = 0.0

    def look(self) -> None:
        if self.state in (DONE, KILLED):
            return
        try:
            changed = self._path.stat().st_mtime_ns
            told = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            if self._told is not None:  # removed as the last thing of an ordinary end
                self.state = DONE
            return
        except (OSError, ValueError):
            told, changed = self._told, self.changed
        if told == self._told:
            self._same += told is not None
            self.silent = self._same >= STALE
            return
        assert told is not None
        if self._told is not None and told["identity"] != self.identity:
            self.state = KILLED  # and started again since
            return
        if told["state"] == FAILED and self.state != FAILED:
            self._failed_at = time.monotonic()
        self._told, self._same, self.silent = told, 0, False
        self.identity, self.state = told["identity"], told["state"]
        self.because, self.changed = told["because"], changed

    def ripe(self) -> bool:
        """Whether a failure is so old that who could end by itself has done so."""
        return self.state == FAILED and time.monotonic() - self._failed_at > GRACE / 2


def _fault(others: dict[int, _Peer], count: int, before: float = float("inf")) -> str:
    """What is wrong with the other processes, '' for nothing.

    Args:
      others: {number: peer}.
      count: of all processes.
      before: only what the file system dates before this.
    """
    peers = [p for p in others.values() if p.changed < before]
    gone = [p for p in peers if p.state == KILLED]
    for peer in sorted(gone, key=lambda p: p.changed):
        return f"process {peer.number} of {count} ({peer.identity}) died"
    for peer in peers:
        if peer.state == RUNNING and peer.silent:
            return (
                f"process {peer.number} of {count} ({peer.identity}) has not been "
                f"heard of for {STALE * _period(count):.0f} s"
            )
        if peer.because:
            return peer.because
        if peer.ripe():
            return (
                f"process {peer.number} of {count} ({peer.identity}) ended with an "
                "error, see its output"
            )
    return ""


def _period(count: int) -> float:
    return BEAT * max(1.0, count / 10)


def _write(
    folder: pathlib.Path,
    number: int,
    identity: str,
    state: str,
    beat: int = 0,
    because: str = "",
) -> float:
    """Replaces the file of a process; returns when, by the clock of the file system."""
    path = folder / f"{number}.json"
    told = {"identity": identity, "state": state, "beat": beat, "because": because}
    try:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(told), "utf-8")
        os.replace(temporary, path)
        return path.stat().st_mtime_ns
    except OSError:  # a full disk, a hanging server: beats go on when it is back
        return time.time_ns()


if __name__ == "__main__":
    _folder, _number, _count, _identity = sys.argv[1:]
    sys.exit(_watch(pathlib.Path(_folder), int(_number), int(_count), _identity))
