"""What a study is: rows, initializations, seeds, and the runs they are made of."""

from collections.abc import Callable, Mapping
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
