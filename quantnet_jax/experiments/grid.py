"""From a study to its runs: rows x initializations x learning rates, then seeds.

A row is searched over the initializations and learning rates of its study on a
validation split, with one seed; the best ones are then trained with all seeds.
"""

import importlib
import math
import pkgutil
from collections.abc import Iterator

from quantnet_jax.experiments.study import (
    FLOAT,
    Initialization,
    Record,
    Records,
    Run,
    Study,
    slug,
)
from quantnet_jax.logging.scores import unit_of


def names() -> list[str]:
    """The studies of the folder `sweeps/`.

    Raises:
      ImportError: the working directory is not the root of the repository.
    """
    found = pkgutil.iter_modules(importlib.import_module("sweeps").__path__)
    return sorted(x.name for x in found if x.name not in ("common", "rows"))


def load(name: str) -> Study:
    """The `STUDY` of sweeps/NAME.py."""
    return importlib.import_module(f"sweeps.{name}").STUDY


def plan(study: Study, records: Records) -> list[Run]:
    """All runs of a study, the most valuable ones first.

    The float network of a seed is among them once a row begins its final runs from it.

    Args:
      study: what is run.
      records: its results, which decide initializations and learning rates.
    """
    warm = any(x.float_epochs for x in study.initializations)
    finals = {
        row: [final_run(study, records, row, seed) for seed in study.seeds]
        for row in study.rows
    }
    taken = {r.seed for runs in finals.values() for r in runs if _from_float(r)}
    found: list[Run] = []
    for row in study.rows:
        searches = list(search_runs(study, row))
        if row == FLOAT and warm:
            scratch = [r for r in searches if not _from_float(r)]
            found += [*scratch, float_run(study, records, None)]
            found += [r for r in searches if r not in scratch]
            seeds = [float_run(study, records, seed) for seed in sorted(taken)]
            found += [r for r in seeds if r.kind == "float"]
        else:
            found += searches
        found += finals[row]
    if study.seeds_first:
        rank = {seed: i for i, seed in enumerate(study.seeds)}
        found.sort(key=lambda r: rank[r.seed] if r.kind == "final" else 0)
    return found


def search_runs(study: Study, row: str) -> Iterator[Run]:
    """Every initialization with every learning rate.

    None for a row `like` another, nor for one whose single candidate is given.
    """
    candidates = _candidates(study, row)
    if study.rows[row].like or len(candidates) == 1:
        return
    for start, rate in candidates:
        name = f"{slug(row)}-{start.name}-lr{rate:g}"
        seed = study.seeds[0]
        yield Run("search", row, name, start, rate, seed, True, study.search)


def _candidates(study: Study, row: str) -> list[tuple[Initialization, float]]:
    rates = study.learning_rates_of(row)
    return [(start, rate) for start in study.initializations_of(row) for rate in rates]


def final_run(study: Study, records: Records, row: str, seed: int) -> Run:
    """A run of the best initialization and learning rate."""
    chosen = choice(study, records, row) or (None, None)
    return Run("final", row, f"{slug(row)}-seed{seed}", *chosen, seed, study.validate)


def float_run(study: Study, records: Records, seed: int | None) -> Run:
    """The float network that warm starts of a seed begin from; None: of the search."""
    (epochs,) = {x.float_epochs for x in study.initializations if x.float_epochs}
    if seed is not None and not study.validate:
        # The final run of the float row may be that very network.
        starts = study.initializations_of(FLOAT)
        if all((x.float_epochs, x.epochs) == (0, epochs) for x in starts):
            return final_run(study, records, FLOAT, seed)
    _, rate = choice(study, records, FLOAT, scratch=True) or (None, None)
    start = None if rate is None else Initialization("scratch", 0.0, epochs)
    given = "float", FLOAT, "search" if seed is None else f"seed{seed}", start, rate
    if seed is None:
        return Run(*given, study.seeds[0], True, study.search)
    return Run(*given, seed, study.validate)


def _from_float(run: Run) -> bool:
    return run.initialization is not None and run.initialization.float_epochs > 0


def needs(study: Study, records: Records, run: Run) -> Run | None:
    """The run that a run begins from, if it does: a float one, or that of `start`."""
    if (start := study.rows[run.row].start) and run.kind == "final":
        return final_run(study, records, start, run.seed)
    if not _from_float(run):
        return None
    return float_run(study, records, None if run.kind == "search" else run.seed)


def choice(
    study: Study, records: Records, row: str, scratch: bool = False
) -> tuple[Initialization, float] | None:
    """The initialization and learning rate with the best validation score.

    Of equal ones the first initialization, the lower learning rate. None before the
    search is complete.

    Args:
      study: of the row.
      records: of the study.
      row: one of its rows; that which it is `like` decides for it.
      scratch: among the initializations from scratch alone.
    """
    given = study.rows[row]
    if study.search_from:
        return choice(load(study.search_from), records, given.like, scratch)
    if len(candidates := _candidates(study, given.like or row)) == 1:
        return candidates[0]
    runs = [
        r
        for r in search_runs(study, given.like or row)
        if r.initialization
        and not (scratch and _from_float(r))
        and given.initialization in ("", r.initialization.name)
    ]
    found = [records[r.label] for r in runs if r.label in records]
    if not runs or len(found) < len(runs):
        return None
    scores = [rank(record) for record in found]
    best = runs[scores.index(max(scores))]
    assert best.initialization is not None and best.learning_rate is not None
    return best.initialization, best.learning_rate


def rank(record: Record) -> float:
    """The larger the better: the score or, of a metric that falls, less it."""
    if record.get("diverged"):
        return -math.inf
    return unit_of(record.get("metric")).gap(score(record), 0.0)


def score(record: Record) -> float:
    """What a search goes by: hard, with BatchNorm recalibrated where there is some."""
    return record.get("hard_bn", record["hard"])


def record_of(records: Records, run: Run) -> Record | None:
    """The record of a run; None without one, or if it is of another choice.

    A longer search may choose otherwise after final runs have ended.
    """
    found = records.get(run.label)
    if found is None or run.initialization is None:
        return found
    same = found["initialization"] == run.initialization.name
    return found if same and found["learning_rate"] == run.learning_rate else None
