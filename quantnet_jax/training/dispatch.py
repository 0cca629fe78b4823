"""Where the training loop stops, and which steps go to the devices together."""

import math
from collections.abc import Collection, Iterator


def stops(steps: int, eval_every: float, save_every: int) -> tuple[set[int], set[int]]:
    """After which steps a run is evaluated and saved, and after which only saved.

    Args:
      steps: of the whole run; after the last it is evaluated.
      eval_every: steps between evaluations, a fraction in general.
      save_every: steps between further checkpoints, 0 for none.
    """
    count = math.ceil(steps / eval_every)
    evaluations = {round(k * eval_every) for k in range(1, count)} - {0} | {steps}
    saves = set(range(save_every, steps, save_every)) if save_every else set()
    return evaluations, saves - evaluations


def counts(start: int, total: int, chunk: int, stops: Collection[int]) -> Iterator[int]:
    """How many steps each dispatch takes.

    A dispatch takes `chunk` steps from a multiple of `chunk` on, unless the loop has to
    stop before its end; then it takes one. So the division depends on the step alone,
    and a run resumed at the end of any dispatch is divided as if never stopped.

    Args:
      start: steps done.
      total: steps of the whole run.
      chunk: at least 1.
      stops: steps after which the loop evaluates or saves.

    Example:
      >>> list(counts(0, 11, 4, {6}))
      [4, 1, 1, 1, 1, 1, 1, 1]
    """
    step = start
    while step < total:
        fits = step % chunk == 0 and step + chunk <= total
        broken = any(s in stops for s in range(step + 1, step + chunk))
        count = chunk if fits and not broken else 1
        yield count
        step += count


def chunk_size(wanted: int, log_every: int, *, in_memory: bool, backend: str) -> int:
    """Steps of one dispatch: `wanted`, or the choice for a backend if that is 0.

    A scan over steps saves launches on accelerators; on CPUs XLA is far slower at
    convolutions inside of it. The batches of a streamed set would wait for each other.

    Raises:
      ValueError: `wanted` does not divide `log_every`, so a record would begin in the
        middle of a dispatch.
    """
    if wanted and log_every % wanted:
        raise ValueError(
            f"chunk={wanted}, expected 0 or a divisor of log_every={log_every}"
        )
    return wanted or (log_every if in_memory and backend != "cpu" else 1)
