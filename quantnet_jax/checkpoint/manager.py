"""Checkpoints: save, keep latest and best, restore on any devices (Orbax).

The only file that knows Orbax. A state is written as flat `{path: array}` items, so the
file format does not depend on container types (NamedTuples, empty tuples, optax nodes,
keys that hold a `/`): the structure is that of the caller's state.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from quantnet_jax.checkpoint import layout, storage
from quantnet_jax.checkpoint.layout import REST, WEIGHTS, Damaged, Restored, short
from quantnet_jax.checkpoint.storage import StorageError, saving, without_warning
from quantnet_jax.common.files import as_path, in_bucket, move

FOLDER = "checkpoints"
EXPECTED = ("did not provide metrics", "Waiting for previous save")
"""Warnings of Orbax that say nothing to a user."""
_EXTRA, _AUX = "extra", "aux"
_DELETED = "deleted"  # where checkpoints wait, out of sight, to be deleted


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints`; a context manager.

    Args:
      workdir: folder of the run; must exist when `read_only`.
      keep_latest: how many of the newest checkpoints to keep, >= 1.
      metric: key of `save(metrics=...)` by which the best checkpoint is also kept.
      higher_is_better: whether the best has the highest or the lowest metric.
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
        higher_is_better: bool = True,
        read_only: bool = False,
        processes: int = 1,
        deletes: bool = True,
    ):
        if keep_latest < 1:
            raise ValueError(f"keep_latest={keep_latest} must be at least 1")
        self._path = as_path(workdir) / FOLDER
        if not (bucket := in_bucket(workdir)):
            self._path = self._path.absolute()
        self.directory = os.fspath(self._path)
        self._read_only = read_only
        self._processes = processes
        self._deletes = deletes and not read_only
        self._metric = metric
        if not read_only:
            storage.check_writable(self.directory)
        elif not self._path.is_dir():
            raise FileNotFoundError(
                f"no checkpoints in workdir {os.fspath(workdir)!r} (expected the folder"
                f" {self.directory!r}); give the folder of a run that saved one"
            )
        if not read_only and processes == 1:
            # Orbax would refuse the whole folder for the metrics of one step.
            storage.set_aside_damaged(self._path)
        # `best_fn` with `max_to_keep` would delete a newest checkpoint that is not the
        # best; without `best_fn` Orbax does not write the metrics to disk.
        best = policies.BestN(
            get_metric_fn=lambda m: m[metric],
            reverse=not higher_is_better,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        keep = policies.AnyPreservationPolicy([policies.LatestN(keep_latest), best])
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda m: m[metric],
            best_mode="max" if higher_is_better else "min",
            preservation_policy=keep,
            step_format_fixed_length=8,
            # Moved first: a kill in the middle of a deletion must not leave something
            # that looks like a checkpoint.
            todelete_subdir=None if read_only or bucket else _DELETED,
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=not read_only,
            read_only=read_only,
        )
        arrays = (WEIGHTS, REST, _AUX)
        handlers: dict[str, Any] = {
            item: ocp.StandardCheckpointHandler() for item in arrays
        }
        handlers[_EXTRA] = ocp.JsonCheckpointHandler()
        try:
            with without_warning("directory is read only"):
                self._manager = ocp.CheckpointManager(
                    self.directory, options=options, item_handlers=handlers
                )
        except Exception as error:
            raise ValueError(
                f"cannot open the checkpoints in {self.directory!r} ({short(error)});"
                " move the damaged step folder away, or use another workdir"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # If both fail, the error of the block is raised.
        with contextlib.suppress(*((StorageError,) if kind else ())):
            self.wait()
            self._manager.close()

    def steps(self) -> list[int]:
        """Returns the saved steps, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Returns the step with the best metric, or None where none has one."""
        return self._manager.best_step()

    def wait(self) -> None:
        """Blocks until every started save is on disk.

        Raises:
          StorageError: one of them could not be written.
        """
        with saving(self.directory):
            self._manager.wait_until_finished()
        if self._deletes and not in_bucket(self._path):
            shutil.rmtree(self._path / _DELETED, ignore_errors=True)

    # Saving ---------------------------------------------------------------------------
    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
        aux: Mapping[str, np.ndarray] | None = None,
    ) -> bool:
        """Starts saving `state`; returns False where this step is saved already.

        Args:
          step: number of finished steps; above every saved step.
          state: pytree of JAX or NumPy arrays whose top holds `params`, `batch_stats`
            (weights) and others, such as `step`, `opt_state`.
          metrics: {name: value}; without a finite `metric` the step is never the best.
          extra: JSON values saved with the state.
          aux: auxiliary arrays saved with the state, read by `restore` alone.

        Raises:
          ValueError: a leaf is no array, a part is missing, `step` is too low.
          StorageError: this or the previous save cannot be written; all saves before
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
        arrays = layout.stored(state, self._processes)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        if aux:
            arrays[_AUX] = dict(aux)
        items: dict[str, Any] = {k: ocp.args.StandardSave(v) for k, v in arrays.items()}
        items[_EXTRA] = ocp.args.JsonSave(dict(extra or {}))
        scores = {k: float(v) for k, v in (metrics or {}).items()}
        ranked = np.isfinite(scores.get(self._metric, np.nan))
        self.wait()
        storage.check_room(self.directory, size)
        with saving(self.directory), without_warning(*EXPECTED):
            return self._manager.save(
                step,
                args=ocp.args.Composite(**items),
                metrics=scores if ranked else None,
            )

    # Restoring ------------------------------------------------------------------------
    def restore(
        self,
        like: Any,
        step: int | str = "latest",
        check: Callable[[Any], None] = lambda extra: None,
    ) -> Restored:
        """Restores a state, or `params`, `batch_stats` and `ema` of it.

        Args:
          like: the state the config builds: arrays or `jax.ShapeDtypeStruct`s, which
            also give the shardings (any devices). Without the other fields nothing but
            the weights is read.
          step: 'latest', 'best' or a number. With 'latest', a damaged checkpoint is
            renamed to `<step>.damaged` and the one before it is used, with a warning.
          check: raises ValueError for JSON data of a damaged checkpoint.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it belongs to another architecture, or it is damaged.
        """
        while True:
            number = self._resolve(step)
            try:
                return self._read(number, like, check)
            except Damaged as error:
                older = [s for s in self.steps() if s < number]
                if step != "latest" or not older or self._processes > 1:
                    raise
                if self._read_only:
                    step, moved = older[-1], ""
                else:
                    folder = as_path(self._folder(number))
                    move(folder, folder.with_name(f"{folder.name}.damaged"))
                    self._manager.reload()
                    moved = " (renamed to .damaged)"
                warnings.warn(
                    f"{error}; falling back to step {older[-1]}{moved}", stacklevel=2
                )

    def load_arrays(self, step: int | str = "latest") -> Restored:
        """Loads params and batch_stats as `{'/'-joined path: NumPy array}`.

        If the run has averaged ones (`ema`), it is those.
        """
        number = self._resolve(step)
        saved = self._metadata(number, (WEIGHTS,))[WEIGHTS]
        like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in saved.items()}
        restored = self._read(number, like)
        return restored._replace(state=layout.averaged(restored.state))

    def _folder(self, step: int) -> str:
        return os.fspath(self._path / f"{step:08d}")

    def _resolve(self, step: int | str) -> int:
        self.wait()  # a step still being written counts as saved, but cannot be read
        steps = self.steps()
        if step not in ("latest", "best") and not isinstance(step, int):
            raise ValueError(f"step={step!r} must be 'latest', 'best' or a number")
        if isinstance(step, int):
            found = step if step in steps else None
        else:
            found = self.latest() if step == "latest" else self.best()
        if found is None:
            raise FileNotFoundError(
                f"no checkpoint for step={step!r} in {self.directory!r}; saved steps:"
                f" {steps if steps else 'none'}"
            )
        return found

    def _metadata(self, step: int, items: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        try:
            metadata = self._manager.item_metadata(step)
            found = [item for item in items if item != _AUX or item in metadata]
            return {item: dict(metadata[item]) for item in found}
        except Exception as error:
            raise Damaged(self._folder(step), error) from error

    def _read(
        self, step: int, like: Any, check: Callable[[Any], None] = lambda extra: None
    ) -> Restored:
        wanted = {k: arrays for k, arrays in layout.split(like).items() if arrays}
        items = (*wanted, _AUX) if REST in wanted else tuple(wanted)
        metadata = self._metadata(step, items)
        aux = metadata.pop(_AUX, {})
        aux = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in aux.items()}
        layout.check_fits(wanted, metadata, self._folder(step))
        restores: dict[str, Any] = {
            item: ocp.args.StandardRestore(jax.tree.map(layout.target, arrays))
            for item, arrays in (wanted | ({_AUX: aux} if aux else {})).items()
        }
        restores[_EXTRA] = ocp.args.JsonRestore()
        try:
            out = self._manager.restore(step, args=ocp.args.Composite(**restores))
            check(out[_EXTRA])
        except Exception as error:
            raise Damaged(self._folder(step), error) from error
        state = layout.rebuild(like, {k: v for i in wanted for k, v in out[i].items()})
        aux = {k: np.asarray(v) for k, v in (out[_AUX] if aux else {}).items()}
        return Restored(step, state, out[_EXTRA], aux)
