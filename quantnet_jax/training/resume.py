"""How a run starts: from its own checkpoint, from another run, or from scratch."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from quantnet_jax import config as config_lib
from quantnet_jax.checkpoint.manager import Checkpoints
from quantnet_jax.checkpoint.warm_start import warm_start
from quantnet_jax.config import Config
from quantnet_jax.logging.records import jsonable
from quantnet_jax.training.experiment import Experiment
from quantnet_jax.training.state import TrainState


class Start(NamedTuple):
    """Where a run stands when its loop begins.

    Attributes:
      state: on the devices.
      step: steps done.
      seconds: of training so far, over all starts.
      seen: metrics of the steps since the last record, which they still belong to.
      codes: those of the last evaluation, for the next flip rate; None without one.
      note: a line for the person at the terminal, '' for a start from scratch.
      warm: what warm_start.json records, None without a warm start.
    """

    state: TrainState
    step: int = 0
    seconds: float = 0.0
    seen: list[dict[str, float]] = []  # noqa: RUF012 (never changed)
    codes: dict | None = None
    note: str = ""
    warm: dict[str, Any] | None = None


def start(
    exp: Experiment, checkpoints: Checkpoints, evaluated: Callable[[int], bool]
) -> Start:
    """Resumes, or starts warm from `config.init_from`, or from scratch.

    Args:
      exp: the experiment.
      checkpoints: of its workdir.
      evaluated: whether the run is evaluated after a step.

    Raises:
      FileNotFoundError, ValueError: one line; a checkpoint does not fit.
    """
    if checkpoints.latest() is not None:
        restored = checkpoints.restore(exp.state, check=check_extra)
        step, saved = restored.step, restored.extra
        # Whatever config.json says, which may be lost.
        whose = f"the checkpoint of step {step} in {checkpoints.directory}"
        config_lib.check_same(exp.config, saved["config"], whose)
        check(saved, exp.config, exp.feed.train_size, step)
        state = exp.runner.place(restored.state)
        codes = exp.codes(state) if evaluated(step) else restored.aux or None
        note = f"resuming at step {step}"
        return Start(state, step, saved["seconds"], saved["seen"], codes, note)
    source = exp.config.init_from
    if not source:
        return Start(exp.state)
    like = {"params": exp.state.params, "batch_stats": exp.state.batch_stats}
    with Checkpoints(source, read_only=True) as other:
        step, arrays, *_ = other.load_arrays()
    pattern = exp.config.init_pattern
    arrays = {k: x for k, x in arrays.items() if re.fullmatch(pattern, k)}
    warm, matched = warm_start(like, arrays)
    if warm["params"]["quant"]:
        # Initialize quantizer parameters from the restored weights.
        warm["params"]["quant"] = exp.init_qparams(warm["params"]["model"])
        warm, matched = warm_start(warm, arrays)
    return Start(
        exp.state._replace(**exp.runner.place(warm)),
        note=f"{matched} (from {source}; warm_start.json)",
        warm={"from": source, "step": step, **matched._asdict()},
    )


def extra(
    config: Config,
    train_size: int,
    step: int,
    *,
    seconds: float,
    seen: list[dict[str, float]],
) -> dict[str, Any]:
    """JSON data in a checkpoint, from which a run continues exactly where it was.

    Args:
      config: of the run.
      train_size: examples of the training set.
      step: finished steps.
      seconds: of training so far, over all starts.
      seen: metrics of the steps since the last record, which they still belong to.
    """
    return jsonable(
        {
            "config": config.to_dict(),
            "data": {
                # The stream has no other state: see `data.order`.
                "position": step * config.batch_size,
                "seed": config.seed,
                "size": train_size,
            },
            "seconds": seconds,
            "seen": seen,
        }
    )


def check_extra(saved: Any) -> None:
    """Refuses what `extra` did not make.

    Raises:
      ValueError: one line.
    """
    kinds = {"config": dict, "data": dict, "seconds": int | float, "seen": list}
    for key, kind in kinds.items():
        if not isinstance(saved, dict) or not isinstance(saved.get(key), kind):
            raise ValueError(f"no valid {key!r} in its JSON data")
    for row in saved["seen"]:
        if not isinstance(row, dict):
            raise ValueError("no valid 'seen' in its JSON data")


def check(saved: dict[str, Any], config: Config, train_size: int, step: int) -> None:
    """Refuses a checkpoint whose place in the data means other examples here.

    Raises:
      ValueError: one line with what differs.
    """
    here = extra(config, train_size, step, seconds=0.0, seen=[])["data"]
    for name, value in here.items():
        if saved["data"].get(name) != value:
            raise ValueError(
                f"the checkpoint of step {step} stands at another place of the data: "
                f"{name} is {saved['data'].get(name)} there and {value} here; has the "
                "dataset changed?"
            )
