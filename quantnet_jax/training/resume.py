"""What a checkpoint holds beside arrays: config, place in the data, loose records."""

from typing import Any

from quantnet_jax.config import Config
from quantnet_jax.logging.records import jsonable


def extra(
    config: Config,
    train_size: int,
    step: int,
    *,
    seconds: float,
    seen: list[dict[str, float]],
) -> dict[str, Any]:
    """JSON data from which a run goes on exactly where it was.

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
                # The stream has no other state: see `data.stream`.
                "position": step * config.batch_size,
                "seed": config.seed,
                "size": train_size,
            },
            "seconds": seconds,
            "seen": seen,
        }
    )


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
                "data set changed?"
            )
