"""A lease of a workdir in a bucket, where there are no locks."""

import json
import os
import platform
import signal
import sys
import threading
import time
import uuid
from typing import Any

BEAT = 10.0
"""Seconds between two renewals; a lease that is not renewed for three is free."""
HELD: set[str] = set()
"""The leases of this process."""
BUSY = (
    "belongs to a run that is under way in another process; wait for it, stop it, or "
    "give another workdir"
)


class Lease:
    """Holds a file in a bucket, and renews it in a thread until it is closed.

    A lease left by a process that was killed is taken over: at once if that process was
    one of this machine, else after three beats without a renewal. Two processes that
    start within the same second may both get in: the one whose lease is overwritten
    gets SIGTERM at its next beat, and so ends with a checkpoint.

    Args:
      path: of the file.

    Raises:
      ValueError: another process renews it.
    """

    def __init__(self, path: Any):
        self._path, self._ended = path, threading.Event()
        self._own = {
            "host": platform.node(),
            "pid": os.getpid(),
            "id": uuid.uuid4().hex,
        }
        self._beats = 0
        self._wait()
        self._renew()
        HELD.add(self._own["id"])
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _renew(self) -> None:
        self._beats += 1
        self._path.write_text(json.dumps(self._own | {"beat": self._beats}))

    def _wait(self) -> None:
        first = self._read()
        if not first or _dead(first):
            return
        print(
            f"{self._path}: waiting {3 * BEAT:.0f} s to see whether the run that left "
            "it is still alive",
            file=sys.stderr,
        )
        until = time.monotonic() + 3 * BEAT
        while time.monotonic() < until:
            time.sleep(BEAT / 4)
            found = self._read()
            if not found:
                return
            if found != first:
                raise ValueError(f"{self._path.parent} {BUSY}")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                if self._read().get("id", self._own["id"]) != self._own["id"]:
                    print(f"error: {self._path.parent} {BUSY}", file=sys.stderr)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                self._renew()
            except Exception as e:  # of a network; the next beat may get through
                print(f"{self._path}: {e}", file=sys.stderr)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        HELD.discard(self._own["id"])
        if self._read().get("id") == self._own["id"]:
            self._path.unlink()


def _dead(lease: dict[str, Any]) -> bool:
    """Whether a process of this machine held it that is no more."""
    if lease.get("host") != platform.node() or not isinstance(lease.get("pid"), int):
        return False
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    # Its own number: in a container that was started again processes get the same.
    return lease["pid"] == os.getpid() and lease.get("id") not in HELD
