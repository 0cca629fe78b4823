"""Preemption handling: polls for SIGTERM between two dispatches."""

import signal
import threading

from quantnet_jax.distributed import hosts

RESUME_ME = 75
"""Exit code of a preempted run that saved its state: EX_TEMPFAIL of sysexits.h, which
no other exit of the program uses."""


class Preemption:
    """Reports when to save and stop; a context manager around the whole run.

    A single process remembers the signal. Several processes agree, through the
    coordinator of `jax.distributed`, on the next dispatch that none of them has begun:
    all save the same step, whichever of them got the signal. A signal before the first
    step stops the run after that step.
    """

    def __init__(self):
        self._several = hosts.process_count() > 1
        self._signalled = False
        self._dispatches = 0
        self._previous = None

    def __enter__(self) -> "Preemption":
        # With several processes the signal belongs to jax.distributed, and Python
        # delivers signals to the main thread alone.
        main = threading.current_thread() is threading.main_thread()
        if main and not self._several:
            self._previous = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _remember(self, *_: object) -> None:
        self._signalled = True

    def reached(self) -> bool:
        """Whether to stop here; call it once after each dispatch, on every process."""
        if not self._several:
            return self._signalled
        # Its own count: the coordinator needs every number, and a chunk skips steps.
        self._dispatches += 1
        return hosts.reached_preemption(self._dispatches)
