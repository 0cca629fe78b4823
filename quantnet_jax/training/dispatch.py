"""Evaluation and checkpoint steps; grouping of steps into scans."""

import math
from collections.abc import Callable, Iterator, Sequence

Stops = Callable[[int], bool]
"""`step -> bool`: nothing is listed, since a run may have 1e8 steps."""


def stops(steps: int, eval_every: float, save_every: int) -> tuple[Stops, Stops]:
    """After which steps a run is evaluated and saved, and after which only saved.

    Args:
      steps: of the whole run; after the last it is evaluated.
      eval_every: steps between evaluations, a fraction in general.
      save_every: steps between further checkpoints, 0 for none.
    """
    count = math.ceil(steps / eval_every)

    def evaluated(step: int) -> bool:
        near = int(step / eval_every)
        ks = range(max(1, near - 1), min(near + 3, count))
        return step == steps or step > 0 and step in {round(k * eval_every) for k in ks}

    def saved(step: int) -> bool:
        due = save_every and 0 < step < steps and step % save_every == 0
        return bool(due) and not evaluated(step)

    return evaluated, saved


def counts(start: int, total: int, chunk: int, stops: Sequence[Stops]) -> Iterator[int]:
    """How many steps each dispatch takes.

    A dispatch takes `chunk` steps from a multiple of `chunk` on, unless the loop has to
    stop before its end; then a part of them from a multiple of that part on, or one. So
    the division depends on the step alone, and a run resumed at the end of any dispatch
    is divided as if never stopped. Each size is a program of its own, hence only three;
    with one part in between, stops cost a few dispatches each and not up to `chunk`.

    Args:
      start: steps done.
      total: steps of the whole run.
      chunk: at least 1.
      stops: whether the loop evaluates, or saves, after a step.

    Example:
      >>> list(counts(0, 11, 4, [lambda step: step == 6]))
      [4, 2, 2, 2, 1]
    """
    sizes = (chunk, part(chunk), 1)

    def fits(step, size):
        inside = range(step + 1, step + size)
        whole = step % size == 0 and step + size <= total
        return whole and not any(stop(s) for s in inside for stop in stops)

    step = start
    while step < total:
        count = next(size for size in sizes if fits(step, size))
        yield count
        step += count


def part(chunk: int) -> int:
    """The largest divisor of `chunk` that is at most its square root.

    Example:
      >>> part(50), part(64), part(7)
      (5, 8, 1)
    """
    return max(n for n in range(1, math.isqrt(chunk) + 1) if chunk % n == 0)


def steps_per_call(
    wanted: int, log_every: int, *, in_memory: bool, backend: str
) -> int:
    """Steps of one dispatch: `wanted`, or the choice for a backend if that is 0.

    A scan over steps saves launches on accelerators. On CPUs, where XLA is far slower
    at convolutions inside of a loop, its steps are written out: each is compiled. The
    batches of a streamed dataset would wait for each other.

    Raises:
      ValueError: `wanted` does not divide `log_every`, so a record would begin in the
        middle of a dispatch.
    """
    if wanted and log_every % wanted:
        raise ValueError(
            f"steps_per_call={wanted}, expected 0 or a divisor of log_every={log_every}"
        )
    return wanted or (log_every if in_memory and backend != "cpu" else 1)
