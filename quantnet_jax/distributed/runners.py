"""The only file that computes on several devices: two runners for one pure function."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

PyTree = Any
AXIS = "batch"
FSDP = "fsdp"
RUNNERS = ("pmap", "jit")
SAME, ROWS, STATE = "same", "rows", "state"
"""Where results go: a copy on every device, split along the first axis, or as `place`
places a state."""


class Compiled:
    """A function that a runner compiles: `f(*args)` runs it, `f.lower` gives it away.

    Args:
      choose: `args -> jitted function`.
    """

    def __init__(self, choose: Callable[..., Any]):
        self._choose = choose

    def __call__(self, *args: Any) -> Any:
        return self._choose(*args)(*args)

    def lower(self, *args: Any) -> Any:
        """The lowered program, for `compile` and its text or memory."""
        return self._choose(*args).lower(*args)


class Runner(NamedTuple):
    """Compiles functions of replicated values and sharded batches.

    Attributes:
      kind: 'pmap' or 'jit'.
      axis_name: what the functions get as `axis_name`: a mapped axis under 'pmap', None
        under 'jit', where one program sees the global batch.
      devices: number of devices over all processes.
      process_index, process_count: of this process.
      compile: `(fn, replicated, out=SAME, donate=False, axis=0) -> Compiled`: the first
        `replicated` arguments of `fn(..., axis_name=...)` mean the same on all devices,
        the others are split along `axis`. `out` is SAME, ROWS or STATE, or a tuple or
        other prefix of the result made of them. `donate` gives up the first argument.
      replicate: puts a tree of host arrays on every device.
      place: puts a state, or a part of it, where the runner keeps states: a copy on
        every device, or divided by `leaf_spec`. Takes host arrays, equal in all
        processes, and arrays of `place` itself.
      gather: in a compiled function: the same values, whole on every device, for what
        mixes the channels of a state.
      spread: in a compiled function: the same values, split along their first axis.
      shard: `(batch, axis=0)`: splits the rows that this process holds over its
        devices; axis 1 is for batches stacked in front.
    """

    kind: str
    axis_name: str | None
    devices: int
    process_index: int
    process_count: int
    compile: Callable[..., Compiled]
    replicate: Callable[[PyTree], PyTree]
    place: Callable[[PyTree], PyTree]
    gather: Callable[[PyTree], PyTree]
    spread: Callable[[PyTree], PyTree]
    shard: Callable[..., PyTree]


def make_runner(
    kind: str = "pmap", devices: Sequence | None = None, fsdp: int = 1
) -> Runner:
    """A runner over `devices` (default: all, of every process).

    Args:
      kind: 'pmap' or 'jit'.
      devices: to run on.
      fsdp: how many neighbouring devices share the output channels of a state among
        them, under 'jit'; 1 keeps a copy on each.

    Raises:
      ValueError: unknown kind, or `fsdp` devices cannot be had.
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
    """How `parts` devices of the axis 'fsdp' share an array of a state.

    Along the last axis, that of the output channels, where its length is a multiple of
    `parts`; else each holds all of it. Weights, the optimizer's moments and parameters
    of each channel have the same last axis, so they are divided alike, and whatever is
    computed of each channel by itself stays on its device.

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


def _pmap_runner(devices: list) -> Runner:
    local = [d for d in devices if d.process_index == jax.process_index()]
    mesh = jax.make_mesh((len(local),), (AXIS,), (AxisType.Auto,), devices=local)
    replicated = NamedSharding(mesh, PartitionSpec())
    count = len({d.process_index for d in devices})

    def compile(fn, replicated, out=SAME, donate=False, axis=0):
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
                    out_axes=jax.tree.map({SAME: None, STATE: None, ROWS: 0}.get, out),
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
        gather=lambda tree: tree,
        spread=lambda tree: tree,
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

    def compile(fn, replicated, out=SAME, donate=False, axis=0):
        del replicated, axis  # the arguments bring their own shardings

        def bound(*args):
            return fn(*args, axis_name=None)

        places, cache = {SAME: replicated_, ROWS: sharded}, {}

        def choose(*args):
            n = len(args)
            if n not in cache:  # the shapes of a state stay those of the first call
                cache[n] = jax.jit(
                    bound,
                    out_shardings=jax.tree.map(
                        lambda word, part: places.get(word) or placed(part),
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
        # Each process has the whole array, and gives its devices their parts of it.
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def hold(sharding):
        if fsdp == 1:  # nothing that the compiler would not find by itself
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
        gather=hold(replicated_),
        spread=hold(sharded),
        shard=shard,
    )
