"""The only file that knows devices: two runners for one pure function."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

PyTree = Any
AXIS = "batch"
FSDP = "fsdp"
RUNNERS = ("pmap", "jit")
REPLICATED, SHARDED, STATE = "replicated", "sharded", "state"
"""Shardings of results: a copy on every device, split along the batch axis, or that of
`place`."""


class Compiled:
    """A function that a runner compiles: call it, or inspect it by `lower`.

    Args:
      choose: `args -> jitted function`.
    """

    def __init__(self, choose: Callable[..., Any]):
        self._choose = choose

    def __call__(self, *args: Any) -> Any:
        return self._choose(*args)(*args)

    def lower(self, *args: Any) -> Any:
        """Returns the lowered computation, for `compile`."""
        return self._choose(*args).lower(*args)


class Runner(NamedTuple):
    """Compiles functions of replicated values and sharded batches.

    Attributes:
      kind: 'pmap' or 'jit'.
      axis_name: what the functions get as `axis_name`: a mapped axis under 'pmap', None
        under 'jit', where one program sees the global batch.
      devices: number of devices over all processes.
      process_index, process_count: of this process.
      compile: `(fn, replicated, out=REPLICATED, donate=False, axis=0) ->
        Compiled`: the first `replicated` arguments of `fn(..., axis_name=...)` are the
        same on all devices, the others are sharded along `axis`. `out` is REPLICATED,
        SHARDED or STATE, or a tuple or other prefix of the result made of them.
        `donate` donates the buffers of the first argument.
      replicate: copies a tree of host arrays to every device.
      place: puts a state, or a part of it, onto the devices: replicated, or sharded by
        `leaf_spec`. Takes host arrays, equal in all processes, and its own results.
      all_gather: in a compiled function: the same values, replicated, for operations
        that mix the output channels of a state.
      shard_batch: in a compiled function: the same values, sharded by example.
      shard: `(batch, axis=0)`: shards the rows that this process holds over its
        devices; axis 1 is for stacked batches.
    """

    kind: str
    axis_name: str | None
    devices: int
    process_index: int
    process_count: int
    compile: Callable[..., Compiled]
    replicate: Callable[[PyTree], PyTree]
    place: Callable[[PyTree], PyTree]
    all_gather: Callable[[PyTree], PyTree]
    shard_batch: Callable[[PyTree], PyTree]
    shard: Callable[..., PyTree]


def make_runner(
    kind: str = "pmap", devices: Sequence | None = None, fsdp: int = 1
) -> Runner:
    """A runner over `devices` (default: all, of every process).

    Args:
      kind: 'pmap' or 'jit'.
      devices: to run on.
      fsdp: number of neighbouring devices that shard the output channels of a state,
        under 'jit'; 1 replicates it.

    Raises:
      ValueError: unknown kind, or `fsdp` does not divide the devices.
    """
    if kind not in RUNNERS:
        raise ValueError(f"runner={kind!r}, expected one of {RUNNERS}")
    devices = list(devices or jax.devices())
    if kind == "jit":
        if fsdp < 1 or len(devices) % fsdp:
            raise ValueError(f"fsdp={fsdp} does not divide the {len(devices)} devices")
        return _jit_runner(devices, fsdp)
    if fsdp != 1:
        raise ValueError(f"fsdp={fsdp} needs runner='jit', not {kind!r}")
    return _pmap_runner(devices)


def leaf_spec(shape: Sequence[int], parts: int) -> PartitionSpec:
    """The sharding of an array of a state over `parts` devices of the axis 'fsdp'.

    Along the last axis, that of the output channels, where its length is a multiple of
    `parts`; else replicated. Weights, the optimizer's moments and parameters of each
    channel have the same last axis, so they are sharded alike, and computations on each
    channel alone need no communication.

    Example:
      >>> tuple(leaf_spec((3, 3, 16, 32), 4))
      (None, None, None, 'fsdp')
      >>> [tuple(leaf_spec(shape, 4)) for shape in ((64, 10), (), (6,))]
      [(), (), ()]
    """
    if parts == 1 or not shape or shape[-1] == 0 or shape[-1] % parts:
        return PartitionSpec()
    return PartitionSpec(*[None] * (len(shape) - 1), FSDP)


def check_batch(name: str, batch_size: int, runner: Runner) -> None:
    """Raises ValueError unless `batch_size` is a positive multiple of the devices."""
    if batch_size < 1 or batch_size % runner.devices:
        raise ValueError(
            f"{name}={batch_size} is not a positive multiple of the "
            f"{runner.devices} devices; choose a multiple of {runner.devices}"
        )


def dividing_devices(*batch_sizes: int) -> list:
    """The first of all devices, as many as divide each batch size."""
    devices = jax.devices()
    counts = range(1, len(devices) + 1)
    return devices[: max(n for n in counts if not any(b % n for b in batch_sizes))]


def _pmap_runner(devices: list) -> Runner:
    local = [d for d in devices if d.process_index == jax.process_index()]
    mesh = jax.make_mesh((len(local),), (AXIS,), (AxisType.Auto,), devices=local)
    replicated = NamedSharding(mesh, PartitionSpec())
    count = len({d.process_index for d in devices})
    mapped_axes = {REPLICATED: None, STATE: None, SHARDED: 0}

    def compile(fn, replicated, out=REPLICATED, donate=False, axis=0):
        def bound(*args):
            return fn(*args, axis_name=AXIS)

        cache = {}

        def choose(*args):
            n = len(args)
            if n == replicated:  # nothing to map over
                cache.setdefault(n, jax.jit(bound))
            if n not in cache:
                cache[n] = jax.pmap(
                    bound,
                    axis_name=AXIS,
                    in_axes=(None,) * replicated + (axis,) * (n - replicated),
                    out_axes=jax.tree.map(mapped_axes.get, out),
                    devices=devices if count == 1 else None,
                    donate_argnums=(0,) if donate else (),
                )
            return cache[n]

        return Compiled(choose)

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
        place=lambda tree: jax.device_put(tree, replicated),
        all_gather=lambda tree: tree,
        shard_batch=lambda tree: tree,
        shard=shard,
    )


def _jit_runner(devices: list, fsdp: int) -> Runner:
    mesh = jax.make_mesh(
        (len(devices) // fsdp, fsdp),
        (AXIS, FSDP),
        (AxisType.Auto, AxisType.Auto),
        devices=devices,
    )
    replicated_ = NamedSharding(mesh, PartitionSpec())
    sharded = NamedSharding(mesh, PartitionSpec((AXIS, FSDP)))

    def placed(tree):
        return jax.tree.map(
            lambda x: NamedSharding(mesh, leaf_spec(x.shape, fsdp)), tree
        )

    def compile(fn, replicated, out=REPLICATED, donate=False, axis=0):
        del replicated, axis  # the arguments bring their own shardings

        def bound(*args):
            return fn(*args, axis_name=None)

        shardings, cache = {REPLICATED: replicated_, SHARDED: sharded}, {}

        def choose(*args):
            n = len(args)
            if n not in cache:  # the shapes of a state stay those of the first call
                cache[n] = jax.jit(
                    bound,
                    out_shardings=jax.tree.map(
                        lambda name, part: shardings.get(name) or placed(part),
                        out,
                        jax.jit(bound).eval_shape(*args),
                    ),
                    donate_argnums=(0,) if donate else (),
                )
            return cache[n]

        return Compiled(choose)

    def shard(batch, axis=0):
        spec = PartitionSpec(*[None] * axis, (AXIS, FSDP))
        place = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(place, np.asarray(x)),
            batch,
        )

    def put(x, sharding):
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        # Each process has the whole array, and copies parts of it to its devices.
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def constrain(sharding):
        if fsdp == 1:  # the compiler finds the same
            return lambda tree: tree
        return lambda tree: jax.lax.with_sharding_constraint(tree, sharding)

    return Runner(
        kind="jit",
        axis_name=None,
        devices=len(devices),
        process_index=jax.process_index(),
        process_count=len({d.process_index for d in devices}),
        compile=compile,
        replicate=lambda tree: jax.tree.map(lambda x: put(x, replicated_), tree),
        place=lambda tree: jax.tree.map(lambda x: put(x, placed(x)), tree),
        all_gather=constrain(replicated_),
        shard_batch=constrain(sharded),
        shard=shard,
    )
