"""What a protocol runs, in order: the names, files and needs of its runs.

Three kinds of runs: 'search' (one seed, held-out training images, shorter), 'float'
(the networks that warm starts begin from) and 'final'. What a run starts from and its
rate are None until the search that decides them is complete.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks import protocols
from benchmarks.protocol_rows import FLOAT
from benchmarks.protocols import Protocol, Start
from benchmarks.runs import read, slug

Result = dict[str, Any]


class Run(NamedTuple):
    """One run.

    Attributes:
      kind: 'search', 'float' or 'final'.
      row: of the protocol.
      name: of its files.
      start, rate: how it begins, and the learning rate; None where not decided yet.
      seed: of everything.
      held_out: whether it is scored on held-out training images.
      scale: of its length.
    """

    kind: str
    row: str
    name: str
    start: Start | None
    rate: float | None
    seed: int
    held_out: bool
    scale: float

    @property
    def label(self) -> str:
        """Of the run in messages, and its files' place in a folder."""
        return f"{self.kind}/{self.name}"


def plan(protocol: Protocol, results: pathlib.Path) -> list[Run]:
    """All runs of a protocol, the most valuable ones first.

    The float network of a seed is among them once a row begins its final runs from it.

    Args:
      protocol: what is run.
      results: folder of its results, which decide starts and rates of later runs.
    """
    warm = any(s.float_epochs for s in protocol.starts)
    finals = {
        row: [final_run(protocol, results, row, s) for s in protocol.seeds]
        for row in protocol.rows
    }
    taken = {r.seed for runs in finals.values() for r in runs if from_float(r)}
    found: list[Run] = []
    for row in protocol.rows:
        searches = list(search_runs(protocol, row))
        if row == FLOAT and warm:
            scratch = [r for r in searches if r.start and not r.start.float_epochs]
            found += scratch
            found += [float_run(protocol, results, None)]
            found += [r for r in searches if r not in scratch]
            seeds = [float_run(protocol, results, s) for s in sorted(taken)]
            found += [r for r in seeds if r.kind == "float"]
        else:
            found += searches
        found += finals[row]
    if protocol.seeds_first:
        rank = {seed: i for i, seed in enumerate(protocol.seeds)}
        found.sort(key=lambda r: rank[r.seed] if r.kind == "final" else 0)
    return found


def search_runs(protocol: Protocol, row: str) -> Iterator[Run]:
    """Every start with every rate; nothing for a row that is `like` another one."""
    if protocol.rows[row].like:
        return
    for start in protocol.starts_of(row):
        for rate in protocol.rates_of(row):
            name = f"{slug(row)}-{start.name}-lr{rate:g}"
            seed, scale = protocol.seeds[0], protocol.search
            yield Run("search", row, name, start, rate, seed, True, scale)


def final_run(protocol: Protocol, results: pathlib.Path, row: str, seed: int) -> Run:
    """A run of the best start and rate."""
    start, rate = choice(protocol, results, row) or (None, None)
    name = f"{slug(row)}-seed{seed}"
    held_out = protocol.score_held_out
    return Run("final", row, name, start, rate, seed, held_out, 1.0)


def float_run(protocol: Protocol, results: pathlib.Path, seed: int | None) -> Run:
    """The float network that warm starts of a seed begin from; None: of the search."""
    (epochs,) = {s.float_epochs for s in protocol.starts if s.float_epochs}
    if seed is not None and not protocol.score_held_out:
        # The final run of the float row may be that very network.
        final = final_run(protocol, results, FLOAT, seed)
        if all(s[1:3] == (0.0, epochs) for s in protocol.starts_of(FLOAT)):
            return final
    _, rate = choice(protocol, results, FLOAT, scratch=True) or (None, None)
    start = Start("scratch", 0.0, epochs)
    if seed is None:
        seed, scale, name, held_out = protocol.seeds[0], protocol.search, "search", True
    else:
        scale, name, held_out = 1.0, f"seed{seed}", protocol.score_held_out
    return Run(
        *("float", FLOAT, name, None if rate is None else start, rate),
        *(seed, held_out, scale),
    )


def from_float(run: Run) -> bool:
    """Whether a run, as far as it is decided, begins from a float network."""
    return run.start is not None and run.start.float_epochs > 0


def needs(protocol: Protocol, results: pathlib.Path, run: Run) -> Run | None:
    """The float run that a run takes its weights from, if it does."""
    if not from_float(run):
        return None
    return float_run(protocol, results, None if run.kind == "search" else run.seed)


def choice(
    protocol: Protocol, results: pathlib.Path, row: str, scratch: bool = False
) -> tuple[Start, float] | None:
    """The start and rate of a row with the best held-out hard + BN accuracy.

    Of two equal ones the first start, the lower rate. None before its search is done.

    Args:
      protocol: of the row.
      results: of the protocol.
      row: one of its rows; that which it is `like` decides for it.
      scratch: among the starts from scratch alone.
    """
    given = protocol.rows[row]
    runs = list(search_runs(protocol, given.like or row))
    runs = [
        r
        for r in runs
        if r.start
        and not (scratch and r.start.float_epochs)
        and given.start in ("", r.start.name)
    ]
    found = [read(path(results, r)) for r in runs]
    if not runs or None in found:
        return None
    scores = [0.0 if r is None else score(r) for r in found]
    best = runs[scores.index(max(scores))]
    assert best.start is not None and best.rate is not None
    return best.start, best.rate


def score(result: Result) -> float:
    """What a search goes by: accuracy of hard + BN, 0 if the run diverged."""
    return 0.0 if result.get("diverged") else result["hard_bn"]


def result(results: pathlib.Path, run: Run) -> Result | None:
    """The result of a run; None without one, or if it is of another start or rate.

    A longer search may choose other ones after final runs have ended.
    """
    found = read(path(results, run))
    if found is None or run.start is None:
        return found
    wanted = {"start": run.start.name, "rate": run.rate}
    return found if all(found[k] == x for k, x in wanted.items()) else None


def path(results: pathlib.Path, run: Run) -> pathlib.Path:
    """The JSON of a run."""
    return results / run.kind / f"{run.name}.json"


def configuration(protocol: Protocol, run: Run) -> Any:
    """The configuration of a run whose start and rate are decided."""
    assert run.start is not None and run.rate is not None
    return protocols.configuration(
        protocol,
        run.row,
        run.start,
        rate=run.rate,
        seed=run.seed,
        held_out=run.held_out,
        scale=run.scale,
    )
