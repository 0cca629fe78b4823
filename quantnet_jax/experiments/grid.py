"""From a study to its runs: rows x initializations x learning rates, then seeds.

A row is searched over the initializations and learning rates of its study on a
validation split, with one seed; the best ones are then trained with all seeds.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

FLOAT = "float"
"""Row of the float network, from whose runs warm starts take their weights."""
Record = dict[str, Any]
Records = Mapping[str, Record]
"""Label of a run -> its record, see `results`."""


class Row(NamedTuple):
    """One line of a table.

    Attributes:
      method: quantizer of the weights.
      changes: of the configuration, by dotted key.
      learning_rates: that are tried, () for those of the study.
      initialization: name of the only one that is tried, '' for all.
      like: row whose best initialization and learning rate are taken without a search.
      start: row whose final run of the same seed gives the final runs `init_from`.
    """

    method: str
    changes: Mapping[str, Any] = {}
    learning_rates: tuple[float, ...] = ()
    initialization: str = ""
    like: str = ""
    start: str = ""


class Initialization(NamedTuple):
    """How a run begins.

    Attributes:
      name: of it.
      float_epochs: of the pretrained float network, 0 for none.
      epochs: of the run itself.
      sharpness: factor of the first sharpness of annealed quantizers.
    """

    name: str
    float_epochs: float
    epochs: float
    sharpness: float = 1.0


class Study(NamedTuple):
    """One table.

    Attributes:
      title: in words.
      layers: which ones are quantized, in words.
      configure: `(study, run, folder=, init_from=, dtype=) -> config` of one run.
      base: makes the configuration that all rows share.
      rows: the most important ones first.
      initializations: that are tried; `float_initializations` those of the float row.
      learning_rates: that are tried, in ascending order.
      float_initializations: () for `initializations`.
      search: length of a run of the search, as a fraction of the final ones.
      search_from: study whose search counts for the rows that are `like` its rows.
      validation_size: training images that the search is scored on.
      validate: whether the final runs are scored on them too, not on the test images.
      seeds: of the final runs.
      seeds_first: whether all rows have their first seed before one has its second.
      eval_every: epochs between the evaluations of a final run, 0 for one at its end.
      last: evaluations at the end whose mean is reported.
      jobs: runs at a time.
      xla_flags: of the processes that train.
      columns: of the table, see `columns.COLUMNS`.
      published: {what: accuracy in percent}, from the paper of the protocol.
    """

    title: str
    layers: str
    configure: Callable[..., Any]
    base: Callable[[], Any]
    rows: Mapping[str, Row]
    initializations: tuple[Initialization, ...]
    learning_rates: tuple[float, ...] = ()
    float_initializations: tuple[Initialization, ...] = ()
    search: float = 0.2
    search_from: str = ""
    validation_size: int = 5000
    validate: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    seeds_first: bool = False
    eval_every: float = 0.0
    last: int = 1
    jobs: int = 1
    xla_flags: str = ""
    columns: tuple[str, ...] = (
        *("initialization", "learning rate", "soft", "hard", "hard + BN"),
        *("soft - (hard + BN)", "quantnet - row", "minutes"),
    )
    published: Mapping[str, float] = {}

    def initializations_of(self, row: str) -> tuple[Initialization, ...]:
        """Those that a row is tried with."""
        of_float = self.float_initializations if row == FLOAT else ()
        wanted = self.rows[row].initialization
        found = of_float or self.initializations
        return tuple(x for x in found if wanted in ("", x.name))

    def learning_rates_of(self, row: str) -> tuple[float, ...]:
        """Those that a row is tried with."""
        return self.rows[row].learning_rates or self.learning_rates


class Run(NamedTuple):
    """One piece of a study.

    Attributes:
      kind: 'search', 'float' (a network that warm starts begin from) or 'final'.
      row: of the study.
      name: of the run within its kind.
      initialization, learning_rate: None until a search has decided them.
      seed: of everything.
      validate: whether it is scored on the validation split.
      scale: of its length.
    """

    kind: str
    row: str
    name: str
    initialization: Initialization | None
    learning_rate: float | None
    seed: int
    validate: bool
    scale: float = 1.0

    @property
    def label(self) -> str:
        """'final/quantnet-seed0': unique in its study."""
        return f"{self.kind}/{self.name}"

    @property
    def epochs(self) -> float | None:
        """Its length, None until it is decided."""
        return self.initialization and self.initialization.epochs * self.scale


def scaled(study: Study, scale: float) -> Study:
    """A study whose runs are shorter: a rehearsal, whose results are none."""
    shorter = lambda starts: tuple(
        x._replace(epochs=x.epochs * scale, float_epochs=x.float_epochs * scale)
        for x in starts
    )
    return study._replace(
        initializations=shorter(study.initializations),
        float_initializations=shorter(study.float_initializations),
        eval_every=study.eval_every * scale,
    )


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
    scores = [score(records[r.label]) for r in runs if r.label in records]
    if not runs or len(scores) < len(runs):
        return None
    best = runs[scores.index(max(scores))]
    assert best.initialization is not None and best.learning_rate is not None
    return best.initialization, best.learning_rate


def score(record: Record) -> float:
    """What a search goes by: hard with recalibrated BatchNorm, 0 if diverged."""
    return 0.0 if record.get("diverged") else record["hard_bn"]


def record_of(records: Records, run: Run) -> Record | None:
    """The record of a run; None without one, or if it is of another choice.

    A longer search may choose otherwise after final runs have ended.
    """
    found = records.get(run.label)
    if found is None or run.initialization is None:
        return found
    same = found["initialization"] == run.initialization.name
    return found if same and found["learning_rate"] == run.learning_rate else None


def slug(name: str) -> str:
    """A name as part of a file name.

    Example:
      >>> slug("scale: mean |w|")
      'scale_mean_w_'
    """
    kept = "".join(x if x.isalnum() or x in "._-" else "_" for x in name)
    while "__" in kept:
        kept = kept.replace("__", "_")
    return kept
