"""Checkpoints: save, keep latest and best, restore on any devices (Orbax).

The only file that knows Orbax. A state is written as flat `{path: array}` items, so the
file format does not depend on container types (NamedTuples, empty tuples, optax nodes,
keys that hold a `/`): structure always comes from the state the caller has built.
"""

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from quantnet_jax.checkpoint.storage import (
    StorageError,
    check_room,
    check_writable,
    without_warning,
)
from quantnet_jax.checkpoint.warm_start import WarmStart, check_fits, warm_start
from quantnet_jax.core.paths import flatten

__all__ = [
    "FOLDER", "Checkpoints", "Restored", "StorageError", "WarmStart", "flatten",
    "warm_start",
]  # fmt: skip

FOLDER = "checkpoints"
# 'weights' is all that evaluation and warm starts read; the optimizer may be larger.
_WEIGHTS, _REST, _EXTRA, _BESIDE = "weights", "optimizer", "extra", "beside"
_OF_WEIGHTS = ("params", "batch_stats", "ema")
_DELETED = "deleted"  # where a checkpoint waits, out of sight, to be deleted


class Restored(NamedTuple):
    """What a restore returns."""

    step: int
    state: Any
    extra: dict[str, Any]
    beside: dict[str, np.ndarray]


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints`; a context manager.

    Args:
      workdir: folder of the run; must exist when `read_only`.
      keep_latest: how many of the newest checkpoints to keep, >= 1.
      metric: key of `save(metrics=...)` by which the best checkpoint is also kept.
      asynchronous: write in the background; `wait` or leaving the block finishes it.
      read_only: never create, delete or rename anything.
      processes: of the run; several could disagree on which checkpoint is readable, so
        only a run of one process falls back from a damaged checkpoint by itself.
      deletes: whether this process deletes checkpoints that are no longer kept; one
        process of a run.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep_latest: int = 2,
        metric: str = "hard",
        asynchronous: bool = True,
        read_only: bool = False,
        processes: int = 1,
        deletes: bool = True,
    ):
        if keep_latest < 1:
            raise ValueError(f"keep_latest={keep_latest} must be at least 1")
        self.directory = os.path.abspath(os.path.join(workdir, FOLDER))
        self._read_only = read_only
        self._processes = processes
        self._deletes = deletes and not read_only
        self._metric = metric
        if not read_only:
            check_writable(self.directory)
        elif not os.path.isdir(self.directory):
            raise FileNotFoundError(
                f"no checkpoints in workdir {os.fspath(workdir)!r} (expected the folder"
                f" {self.directory!r}); give the folder of a run that saved one"
            )
        # `best_fn` with `max_to_keep` would delete the newest checkpoint whenever it is
        # not among the best; a union of policies keeps both. `best_fn` itself is needed
        # all the same: without it Orbax does not write the metrics to disk.
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep_latest),
                policies.BestN(
                    get_metric_fn=lambda m: m[metric],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda m: m[metric],
            best_mode="max",
            preservation_policy=keep,
            step_format_fixed_length=8,
            # Out of the way first: a kill in the middle of a deletion must not leave
            # something that looks like a checkpoint.
            todelete_subdir=None if read_only else _DELETED,
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=asynchronous and not read_only,
            read_only=read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=options,
                item_handlers={
                    _WEIGHTS: ocp.StandardCheckpointHandler(),
                    _REST: ocp.StandardCheckpointHandler(),
                    _EXTRA: ocp.JsonCheckpointHandler(),
                    _BESIDE: ocp.StandardCheckpointHandler(),
                },
            )
        except Exception as error:
            raise ValueError(
                f"cannot open the checkpoints in {self.directory!r} ({_short(error)});"
                " move the damaged step folder away, or use another workdir"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # Of two errors the first one is told.
        with contextlib.suppress(*((StorageError,) if kind else ())):
            self.close()

    def steps(self) -> list[int]:
        """Returns the saved steps, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Returns the step with the highest metric, or None where none has one."""
        return self._manager.best_step()

    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
        beside: Mapping[str, np.ndarray] | None = None,
    ) -> bool:
        """Starts saving `state`; returns False where this step is saved already.

        Args:
          step: number of finished steps; above every saved step.
          state: pytree of JAX or NumPy arrays whose top holds `params`, `batch_stats`
            (what `restore_params` reads) and others, such as `step`, `opt_state`.
          metrics: `{'hard': primary metric}`; absent or not finite = never the best.
          extra: JSON values restored beside the state.
          beside: arrays restored beside the state, by `restore` alone.

        Raises:
          ValueError: a leaf is no array, a part is missing, `step` is too low.
          StorageError: this or the save before cannot be written; all saves before
            that one are complete.
        """
        latest = self.latest()
        if latest is not None and step < latest:
            raise ValueError(
                f"step={step} is below the latest saved step {latest} in"
                f" {self.directory!r}; resume from it, or use another workdir"
            )
        if step == latest:
            return False
        flat = flatten(state)
        for name, leaf in flat.items():
            if not isinstance(leaf, jax.Array | np.ndarray):
                raise ValueError(
                    f"state leaf {name!r} is {type(leaf).__name__}, expected a JAX or"
                    " NumPy array"
                )
        if self._processes > 1:
            flat = {name: _savable(leaf) for name, leaf in flat.items()}
        items: dict[str, Any] = {_EXTRA: ocp.args.JsonSave(dict(extra or {}))}
        if beside:
            items[_BESIDE] = ocp.args.StandardSave(dict(beside))
        for item, arrays in _split(flat).items():
            if not arrays:
                raise ValueError(
                    f"state has no arrays for the item {item!r} (first leaf:"
                    f" {next(iter(flat), '-')!r}); expected fields 'params' and 'step'"
                )
            items[item] = ocp.args.StandardSave(arrays)
        scores = {k: float(v) for k, v in (metrics or {}).items()}
        ranked = np.isfinite(scores.get(self._metric, np.nan))
        self.wait()
        check_room(self.directory, sum(leaf.nbytes for leaf in flat.values()))
        with self._storage(), without_warning("did not provide metrics"):
            return self._manager.save(
                step,
                args=ocp.args.Composite(**items),
                metrics=scores if ranked else None,
            )

    def restore(
        self,
        like: Any,
        step: int | str = "latest",
        *,
        sharding: jax.sharding.Sharding | None = None,
    ) -> Restored:
        """Restores a whole state.

        Args:
          like: the state the config builds: arrays or `jax.ShapeDtypeStruct`s.
          step: 'latest', 'best' or a number. With 'latest', a damaged checkpoint is
            renamed to `<step>.damaged` and the one before it is used, with a warning.
          sharding: where every leaf goes (any device count); by default the leaf's own
            sharding, else the default device.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it belongs to another architecture, or it is damaged.
        """
        return self._restore(like, step, sharding, (_WEIGHTS, _REST, _BESIDE))

    def restore_params(
        self,
        like: Any,
        step: int | str = "latest",
        *,
        sharding: jax.sharding.Sharding | None = None,
    ) -> Restored:
        """Like `restore`, of `{'params', 'batch_stats', 'ema'}`: reads no optimizer."""
        return self._restore(like, step, sharding, (_WEIGHTS,))

    def load_arrays(self, step: int | str = "latest") -> Restored:
        """Loads params and batch_stats as `{'/'-joined path: NumPy array}`.

        Where the run kept averaged ones (`ema`), it is those.
        """
        number = self._resolve(step)
        saved = self._metadata(number, (_WEIGHTS,))[_WEIGHTS]
        like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in saved.items()}
        restored = self._read(number, like, None, (_WEIGHTS,))
        arrays = {k: np.asarray(v) for k, v in restored.state.items()}
        ema = "ema/"
        averaged = {k[len(ema) :]: v for k, v in arrays.items() if k.startswith(ema)}
        return restored._replace(state=averaged or arrays)

    def wait(self) -> None:
        """Blocks until every started save is on disk.

        Raises:
          StorageError: one of them could not be written.
        """
        with self._storage():
            self._manager.wait_until_finished()
        if self._deletes:
            shutil.rmtree(os.path.join(self.directory, _DELETED), ignore_errors=True)

    def close(self) -> None:
        """Finishes the saves and releases the folder."""
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            cause = re.search(r"[^:\[\]]*\[os_error_code='\d+'\]", str(error))
            raise StorageError(
                f"cannot write a checkpoint into {self.directory!r} "
                f"({cause[0].strip() if cause else _short(error)})"
            ) from error

    def _folder(self, step: int) -> str:
        return os.path.join(self.directory, f"{step:08d}")

    def _resolve(self, step: int | str) -> int:
        self.wait()  # a step still being written counts as saved, but cannot be read
        steps = self.steps()
        if step not in ("latest", "best") and not isinstance(step, int):
            raise ValueError(f"step={step!r} must be 'latest', 'best' or a number")
        if not isinstance(step, str) and step in steps:
            return step
        number = {"latest": self.latest, "best": self.best}.get(str(step), lambda: None)
        found = number()
        if found is None:
            raise FileNotFoundError(
                f"no checkpoint for step={step!r} in {self.directory!r}; saved steps:"
                f" {steps if steps else 'none'}"
            )
        return found

    def _restore(
        self,
        like: Any,
        step: int | str,
        sharding: jax.sharding.Sharding | None,
        items: tuple[str, ...],
    ) -> Restored:
        while True:
            number = self._resolve(step)
            try:
                return self._read(number, like, sharding, items)
            except _Damaged as error:
                older = [s for s in self.steps() if s < number]
                if step != "latest" or not older or self._processes > 1:
                    raise
                if self._read_only:
                    step, moved = older[-1], ""
                else:
                    os.rename(self._folder(number), self._folder(number) + ".damaged")
                    self._manager.reload()
                    moved = " (renamed to .damaged)"
                warnings.warn(
                    f"{error}; falling back to step {older[-1]}{moved}", stacklevel=3
                )

    def _metadata(self, step: int, items: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        try:
            metadata = self._manager.item_metadata(step)
            found = [item for item in items if item != _BESIDE or item in metadata]
            return {item: dict(metadata[item]) for item in found}
        except Exception as error:
            raise _Damaged(self._folder(step), error) from error

    def _read(
        self,
        step: int,
        like: Any,
        sharding: jax.sharding.Sharding | None,
        items: tuple[str, ...],
    ) -> Restored:
        flat = flatten(like)
        metadata = self._metadata(step, items)
        beside = {
            k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=jnp.zeros(()).sharding)
            for k, v in metadata.pop(_BESIDE, {}).items()
        }
        saved = {k: v for part in metadata.values() for k, v in part.items()}
        stored = {k: v for part in _split(flat).values() for k, v in part.items()}
        check_fits(saved, stored, self._folder(step))
        targets = {
            item: {k: _target(v, sharding) for k, v in arrays.items()}
            for item, arrays in _split(flat).items()
            if arrays
        }
        restores: dict[str, Any] = {
            item: ocp.args.StandardRestore(arrays) for item, arrays in targets.items()
        }
        restores[_EXTRA] = ocp.args.JsonRestore()
        if beside:
            restores[_BESIDE] = ocp.args.StandardRestore(beside)
        try:
            out = self._manager.restore(step, args=ocp.args.Composite(**restores))
        except Exception as error:
            raise _Damaged(self._folder(step), error) from error
        arrays = {k: v for item in targets for k, v in out[item].items()}
        leaves = [
            arrays[k] if k in arrays else jnp.zeros(v.shape, v.dtype)
            for k, v in flat.items()
        ]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        arrays = {k: np.asarray(v) for k, v in (out[_BESIDE] if beside else {}).items()}
        return Restored(step, state, out[_EXTRA], arrays)


class _Damaged(ValueError):
    """A checkpoint folder that cannot be read."""

    def __init__(self, folder: str, error: Exception):
        super().__init__(
            f"checkpoint {folder!r} is damaged or incomplete ({_short(error)})"
        )


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:120]}"


def _split(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sorts leaves into items; leaves without elements are rebuilt, not stored."""
    items: dict[str, dict[str, Any]] = {_WEIGHTS: {}, _REST: {}}
    for name, leaf in flat.items():
        top = name.split("/", 1)[0]
        if np.prod(leaf.shape, dtype=np.int64) > 0:
            items[_WEIGHTS if top in _OF_WEIGHTS else _REST][name] = leaf
    return items


def _savable(leaf: Any) -> Any:
    """What Orbax takes from several processes.

    It saves an array over all processes, each writing its own part, but refuses one
    that a single process addresses, as those of pmap. These are equal everywhere:
    copied to the host, the first process saves them.
    """
    return np.array(leaf) if getattr(leaf, "is_fully_addressable", True) else leaf


def _target(leaf: Any, sharding: jax.sharding.Sharding | None) -> jax.ShapeDtypeStruct:
    # A new scalar lives on the default device, whichever the user made that.
    place = sharding or getattr(leaf, "sharding", None) or jnp.zeros(()).sharding
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
