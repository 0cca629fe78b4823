"""The hosts of a run: joining their processes, watching them, what they run on."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from quantnet_jax.distributed import liveness


def initialize(
    auto: bool = False, coordinator: str = "", processes: int = 1, process: int = 0
) -> None:
    """Joins the processes of a run; must come before any other use of JAX.

    Args:
      auto: let JAX find the other processes (TPU pods, Slurm, GKE).
      coordinator: else 'HOST:PORT' of process 0; '' for a run of one process.
      processes: with `coordinator`: how many there are.
      process: with `coordinator`: which one this is.

    Raises:
      ValueError: `process` or `processes` is out of range.
    """
    if auto:
        jax.distributed.initialize()
    elif coordinator:
        if not 0 <= process < processes:
            raise ValueError(
                f"process={process}, expected 0 to processes - 1 = {processes - 1}"
            )
        jax.distributed.initialize(coordinator, processes, process)
    keep_programs()
    if jax.process_count() > 1:
        # Connected while all are in step: on a CPU the first collective waits for half
        # a minute only, less than processes may differ in compiling.
        multihost_utils.sync_global_devices("start")


def keep_programs() -> None:
    """Has JAX keep what it compiles for accelerators, for later and resumed runs.

    In `quantnet_jax` under $XDG_CACHE_HOME or ~/.cache, unless the variable
    JAX_COMPILATION_CACHE_DIR names a folder. A resumed run then computes with the very
    programs of before, whose choice of algorithms may else differ. Programs for CPUs
    are not kept: they are fast to make, and bound to the features of one machine.
    """
    named = jax.config.jax_compilation_cache_dir  # pyright: ignore
    if named or backend() == "cpu":
        return
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(home) / "quantnet_jax"
    jax.config.update("jax_compilation_cache_dir", str(folder))


@contextlib.contextmanager
def watched(
    workdir: str | os.PathLike[str], orderly: tuple[int, ...] = ()
) -> Iterator[None]:
    """Around a run: with several processes, each ends soon after another one died.

    Args:
      workdir: that all processes see; the folder `alive` in it is for this.
      orderly: exit codes that are no failure.
    """
    if jax.process_count() == 1:
        yield
        return
    with liveness.watched(
        pathlib.Path(workdir) / "alive",
        jax.process_index(),
        jax.process_count(),
        meet=lambda: multihost_utils.sync_global_devices("watched"),
        orderly=orderly,
        # The type with which a collective fails depends on the version of JAX.
        suspicious=lambda e: (
            isinstance(e, jax.errors.JaxRuntimeError) or "Gloo" in str(e)
        ),
    ):
        yield


def describe_devices() -> str:
    """Number and kind of all devices, such as '4 x cpu'."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"


def process_count() -> int:
    """How many processes the run has."""
    return jax.process_count()


def backend() -> str:
    """'cpu', 'gpu' or 'tpu': what programs are compiled for."""
    return jax.default_backend()


def all_told_to_stop(dispatch: int) -> bool:
    """Whether one of several processes got SIGTERM, and all stop after this dispatch.

    Args:
      dispatch: running number; every process asks for each one.
    """
    return multihost_utils.reached_preemption_sync_point(dispatch)


def peak_memory() -> int | None:
    """Most bytes in use at any time on the fullest local device; None if unknown.

    Devices of a CPU do not tell. Their memory is that of this process, all together.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if not peaks and backend() == "cpu":
        with contextlib.suppress(ImportError):  # not on Windows
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peaks = [peak if sys.platform == "darwin" else 1024 * peak]
    return max(peaks, default=None)
