"""The only file that knows devices and processes: two runners for one pure function."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from quantnet_jax.training import liveness

PyTree = Any
AXIS = "batch"
RUNNERS = ("pmap", "jit")


class Runner(NamedTuple):
    """Compiles functions of replicated values and sharded batches.

    Attributes:
      kind: 'pmap' or 'jit'.
      axis_name: what the functions get as `axis_name`: a mapped axis under 'pmap', None
        under 'jit', where one program sees the global batch.
      devices: number of devices over all processes.
      process_index, process_count: of this process.
      compile: `(fn, replicated, sharded_out=False, donate=False, axis=0) -> callable`:
        the first `replicated` arguments of `fn(..., axis_name=...)` are equal on all
        devices, the others are split along `axis`; so is the result, along its first,
        if `sharded_out`, else it is replicated. `donate` gives up the first argument.
      replicate: puts a tree of host arrays on every device.
      shard: `(batch, axis=0)`: splits the rows that this process holds over its
        devices; axis 1 is for batches stacked in front.
    """

    kind: str
    axis_name: str | None
    devices: int
    process_index: int
    process_count: int
    compile: Callable[..., Callable]
    replicate: Callable[[PyTree], PyTree]
    shard: Callable[..., PyTree]


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
    if jax.process_count() > 1:
        # Connected while all are in step: on a CPU the first collective waits for half
        # a minute only, less than processes may differ in compiling.
        multihost_utils.sync_global_devices("start")


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
    """Most bytes in use at any time on the fullest local device; None if unknown."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return max(peaks, default=None)


def make_runner(kind: str = "pmap", devices: Sequence | None = None) -> Runner:
    """A runner over `devices` (default: all, of every process).

    Raises:
      ValueError: unknown kind.
    """
    if kind not in RUNNERS:
        raise ValueError(f"runner={kind!r}, expected one of {RUNNERS}")
    devices = list(devices or jax.devices())
    return {"pmap": _pmap_runner, "jit": _jit_runner}[kind](devices)


def check_batch(name: str, batch_size: int, runner: Runner) -> None:
    """Raises ValueError unless `batch_size` is a positive multiple of the devices."""
    if batch_size < 1 or batch_size % runner.devices:
        raise ValueError(
            f"{name}={batch_size} is not a positive multiple of the "
            f"{runner.devices} devices; choose a multiple of {runner.devices}"
        )


def _pmap_runner(devices: list) -> Runner:
    local = [d for d in devices if d.process_index == jax.process_index()]
    mesh = jax.make_mesh((len(local),), (AXIS,), (AxisType.Auto,), devices=local)
    replicated = NamedSharding(mesh, PartitionSpec())
    count = len({d.process_index for d in devices})

    def compile(fn, replicated, sharded_out=False, donate=False, axis=0):
        def bound(*args):
            return fn(*args, axis_name=AXIS)

        cache = {}

        def call(*args):
            n = len(args)
            if n == replicated:  # nothing to map over
                cache.setdefault(n, jax.jit(bound))
            if n not in cache:
                cache[n] = jax.pmap(
                    bound,
                    axis_name=AXIS,
                    in_axes=(None,) * replicated + (axis,) * (n - replicated),
                    out_axes=0 if sharded_out else None,
                    devices=devices if count == 1 else None,
                    donate_argnums=(0,) if donate else (),
                )
            return cache[n](*args)

        return call

    def shard(batch, axis=0):
        def split(x):
            return x.reshape(*x.shape[:axis], len(local), -1, *x.shape[axis + 1 :])

        return jax.tree.map(split, batch)

    return Runner(
        kind="pmap",
        axis_name=AXIS,
        devices=len(devices),
        process_index=jax.process_index(),
        process_count=count,
        compile=compile,
        replicate=lambda tree: jax.device_put(tree, replicated),
        shard=shard,
    )


def _jit_runner(devices: list) -> Runner:
    mesh = jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)
    replicated_ = NamedSharding(mesh, PartitionSpec())
    sharded = NamedSharding(mesh, PartitionSpec(AXIS))

    def compile(fn, replicated, sharded_out=False, donate=False, axis=0):
        del replicated, axis  # the arguments bring their own shardings

        def bound(*args):
            return fn(*args, axis_name=None)

        return jax.jit(
            bound,
            out_shardings=sharded if sharded_out else replicated_,
            donate_argnums=(0,) if donate else (),
        )

    def shard(batch, axis=0):
        spec = PartitionSpec(*[None] * axis, AXIS)
        place = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(place, np.asarray(x)),
            batch,
        )

    def replicate(tree):
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(
                replicated_, np.asarray(x)
            ),
            tree,
        )

    return Runner(
        kind="jit",
        axis_name=None,
        devices=len(devices),
        process_index=jax.process_index(),
        process_count=len({d.process_index for d in devices}),
        compile=compile,
        replicate=replicate,
        shard=shard,
    )
