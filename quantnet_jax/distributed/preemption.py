"""Preemption handling: polls for SIGTERM or SIGINT between two dispatches."""

import os
import signal
import threading

from quantnet_jax.distributed import hosts

RESUME_ME = 75
"""Exit code of a preempted run that saved its state: EX_TEMPFAIL of sysexits.h, which
no other exit of the program uses."""
NOTE = b"\nstopping after this step, with a checkpoint; again to stop at once\n"


class Preemption:
    """Reports when to save and stop; a context manager around the whole run.

    A single process remembers the signal. Several processes agree, through the
    coordinator of `jax.distributed`, on the next dispatch that none of them has begun:
    all save the same step, whichever of them got the signal. A signal before the first
    step stops the run after that step. Ctrl-C counts as SIGTERM; the second one
    interrupts.

    Attributes:
      signalled: whether the run was to stop at any time until now.
      signal: name of the signal.
    """

    def __init__(self):
        self._several = hosts.process_count() > 1
        self._dispatches = 0
        self._previous = {}
        self.signalled, self.signal = False, "SIGTERM"

    def __enter__(self) -> "Preemption":
        # Python delivers signals to the main thread alone.
        if threading.current_thread() is threading.main_thread():
            # With several processes SIGTERM belongs to jax.distributed.
            for number in (
                signal.SIGINT,
                *(() if self._several else (signal.SIGTERM,)),
            ):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _remember(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])
            os.write(2, NOTE)  # print is not for signal handlers
            if self._several:
                os.kill(os.getpid(), signal.SIGTERM)
                return
        self.signalled, self.signal = True, signal.Signals(number).name

    def reached(self) -> bool:
        """Whether to stop here; call it once after each dispatch, on every process."""
        if self._several:
            # The coordinator needs every number, and a chunk skips steps.
            self._dispatches += 1
            self.signalled |= hosts.reached_preemption(self._dispatches)
        return self.signalled
