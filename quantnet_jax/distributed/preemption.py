"""Notices that the machine is to be taken away (SIGTERM), between two dispatches."""

import signal
import threading

from quantnet_jax.distributed import hosts

RESUME_ME = 75
"""Exit code of a run that saved its state and wants to be started again: EX_TEMPFAIL
of sysexits.h, which no other ending of the program uses."""


class Preemption:
    """Says when to save and stop; a context manager around all that a run does.

    One process remembers the signal. Several agree, through the coordinator of
    `jax.distributed`, on the next dispatch that none of them has begun: all save the
    same step, whichever of them got the signal. What comes before the first step counts
    too: the run stops after that one.
    """

    def __init__(self):
        self._several = hosts.process_count() > 1
        self._asked = False
        self._dispatches = 0
        self._before = None

    def __enter__(self) -> "Preemption":
        # With several processes the signal belongs to jax.distributed, and outside the
        # main thread Python hands out no signals.
        main = threading.current_thread() is threading.main_thread()
        if main and not self._several:
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _remember(self, *_: object) -> None:
        self._asked = True

    def reached(self) -> bool:
        """Whether to stop here; call it once after each dispatch, on every process."""
        if not self._several:
            return self._asked
        # A count of its own: the coordinator wants each number, and a chunk skips some.
        self._dispatches += 1
        return hosts.all_told_to_stop(self._dispatches)
