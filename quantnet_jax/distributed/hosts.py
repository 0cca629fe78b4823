"""Processes of a run: joining them, exiting together, their hardware."""

import contextlib
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from quantnet_jax.common import command

HEARTBEAT_TIMEOUT = 60
"""Seconds without a heartbeat after which JAX counts a process as dead."""


def initialize(
    auto: bool = False,
    coordinator: str = "",
    processes: int = 1,
    process: int = 0,
    *,
    heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
) -> None:
    """Joins the processes of a run; must come before any other use of JAX.

    When one of them dies or freezes, JAX terminates the others (SIGABRT) within about
    `heartbeat_timeout` seconds, with a message that names the task.

    Args:
      auto: let JAX find the other processes (TPU pods, Slurm, GKE).
      coordinator: else 'HOST:PORT' of process 0; '' for a run of one process.
      processes: with `coordinator`: their number.
      process: with `coordinator`: the index of this one.
      heartbeat_timeout: seconds, see above.

    Raises:
      ValueError: `process` or `processes` is out of range.
    """
    if auto:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_timeout)
    elif coordinator:
        if not 0 <= process < processes:
            raise ValueError(
                f"process={process}, expected 0 to processes - 1 = {processes - 1}"
            )
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    enable_compilation_cache()
    if jax.process_count() > 1:
        # Connect before compiling: on CPUs the first collective times out after 30 s,
        # less than compile times of processes may differ.
        multihost_utils.sync_global_devices("start")


def enable_compilation_cache() -> None:
    """Caches compiled programs of accelerators on disk, for later and resumed runs.

    In `quantnet_jax` under $XDG_CACHE_HOME or ~/.cache, unless the variable
    JAX_COMPILATION_CACHE_DIR names a folder. A resumed run then executes the same
    programs, whose autotuned algorithms might otherwise differ. Programs for CPUs are
    not cached: they compile fast, and depend on the features of one machine.
    """
    named = jax.config.jax_compilation_cache_dir  # pyright: ignore (made at run time)
    if named or backend() == "cpu":
        return
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(home) / "quantnet_jax"
    jax.config.update("jax_compilation_cache_dir", str(folder))


LOST = (
    "error: a collective failed, probably because another task died; rerun all "
    "processes with the same workdir to resume"
)


@contextlib.contextmanager
def exit_on_error(
    expected: tuple[int, ...] = (), debug: bool = False
) -> Iterator[None]:
    """With several processes, exits at once when the block raises.

    An ordinary exit waits in the shutdown barrier of JAX for the others, which may wait
    in a collective for this one. After it is gone, JAX terminates them.

    Args:
      expected: exit codes that all processes reach together; they exit as usual.
      debug: print the traceback of an error that is one line otherwise.
    """
    try:
        yield
    except BaseException as e:
        code = e.code if isinstance(e, SystemExit) else 1
        if jax.process_count() == 1 or code in (None, 0, *expected):
            raise
        if isinstance(e, command.MENDABLE):
            if debug:
                traceback.print_exc()
            print(f"error: {command.describe(e)}", file=sys.stderr)
        elif not isinstance(e, SystemExit):
            sys.excepthook(type(e), e, e.__traceback__)
            if isinstance(e, jax.errors.JaxRuntimeError):
                print(LOST, file=sys.stderr)
        elif not isinstance(code, int):
            print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def describe_devices() -> str:
    """Number and kind of all devices, such as '4 x cpu'."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"


def phase(text: str) -> contextlib.AbstractContextManager[None]:
    """`common.command.phase`, of the first process alone."""
    return command.phase(text) if process_index() == 0 else contextlib.nullcontext()


def process_index() -> int:
    """Index of this process."""
    return jax.process_index()


def process_count() -> int:
    """Number of processes of the run."""
    return jax.process_count()


def backend() -> str:
    """'cpu', 'gpu' or 'tpu': the platform that programs are compiled for."""
    return jax.default_backend()


def reached_preemption(dispatch: int) -> bool:
    """Whether one of several processes got SIGTERM, and all stop after this dispatch.

    Args:
      dispatch: running number; every process calls this for each one.
    """
    return multihost_utils.reached_preemption_sync_point(dispatch)


def peak_memory() -> int | None:
    """Peak bytes in use on the fullest local device; None if unknown.

    CPU devices report none; their memory is that of this process, all together.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if not peaks and backend() == "cpu":
        with contextlib.suppress(ImportError):  # not on Windows
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peaks = [peak if sys.platform == "darwin" else 1024 * peak]
    return max(peaks, default=None)
