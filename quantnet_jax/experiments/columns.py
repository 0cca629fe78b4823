"""Columns of the tables of studies: what is computed from the runs of a row."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from quantnet_jax.experiments import grid, results
from quantnet_jax.experiments.study import Record, Records, Study
from quantnet_jax.logging.scores import unit_of

PLAIN_STE = ("clipped_ste", "binary_ste", "xnor", "binaryconnect", "dorefa")
"""Signs whose backward pass is the identity, clipped or not: 'tuned STE' is the best of
them."""


def mean_std(values: Sequence[float]) -> str:
    """'mean ± standard deviation'; of one value, the value."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def difference(a: Sequence[float], b: Sequence[float]) -> str:
    """'+1.20 ± 0.30': of the means, with its standard error; '' without values."""
    if not a or not b:
        return ""
    text = f"{statistics.mean(a) - statistics.mean(b):+.2f}"
    if min(len(a), len(b)) < 2:
        return text
    error = math.sqrt(sum(statistics.variance(x) / len(x) for x in (a, b)))
    return f"{text} ± {error:.2f}"


def finals(study: Study, records: Records, row: str) -> list[Record]:
    """The final records of a row that there are."""
    runs = [grid.final_run(study, records, row, seed) for seed in study.seeds]
    return [r for run in runs if (r := grid.record_of(records, run))]


def metric(record: Record) -> Mapping[str, Any]:
    """What a run was scored by; the first ones did not say so."""
    return record.get("metric") or {"name": "accuracy", "unit": "%"}


def values(study: Study, found: Iterable[Record], key: str) -> list[float]:
    """Scores of the runs that did not diverge: at the end, or of the last ones.

    Fractions in percent, others in the unit of their metric.
    """
    scores = []
    for r in found:
        if not r.get("diverged"):
            tail = [r] if study.last == 1 else r["curve"][-study.last :]
            mean = statistics.mean(x[key] for x in tail)
            scores.append(unit_of(metric(r)).factor * mean)
    return scores


# Columns ------------------------------------------------------------------------------
class Cell(NamedTuple):
    """What a column is computed from: a row with its final records."""

    study: Study
    records: Records
    row: str
    found: list[Record]
    step_times: dict

    def values(self, key: str) -> list[float]:
        return values(self.study, self.found, key)


def _score(key: str) -> Callable[[Cell], str]:
    return lambda x: mean_std(x.values(key))


def _gap(key: str) -> Callable[[Cell], str]:
    def cell(x):
        pairs = zip(x.values("soft"), x.values(key), strict=True)
        return mean_std([a - b for a, b in pairs])

    return cell


def _rate(x: Cell) -> str:
    chosen = grid.choice(x.study, x.records, x.row)
    if chosen is None:
        return ""
    like = x.study.rows[x.row].like
    study = grid.load(x.study.search_from) if x.study.search_from else x.study
    tried = study.learning_rates_of(like or x.row)
    edge = len(tried) > 1 and chosen[1] in (tried[0], tried[-1])
    return f"{chosen[1]:g}" + (" (edge)" if edge else "")


def _initialization(x: Cell) -> str:
    chosen = grid.choice(x.study, x.records, x.row)
    return chosen[0].name if chosen else ""


def _ahead(x: Cell) -> str:
    if x.row == "quantnet" or "quantnet" not in x.study.rows:
        return ""
    ours = finals(x.study, x.records, "quantnet")
    return difference(values(x.study, ours, "hard_bn"), x.values("hard_bn"))


def _bits(x: Cell) -> str:
    settings, layers = x.found[0]["settings"], x.found[0]["layers"]
    name = settings["activation.name"]
    activation = settings.get(f"activation.{name}.bits", 1) if name else 32
    return f"{max((v['bits'] for v in layers.values()), default=32)}/{activation}"


def _levels(x: Cell) -> str:
    layers = [
        v["values"] for r in x.found if "layers" in r for v in r["layers"].values()
    ]
    return (
        " / ".join(str(max(v[i] for v in layers)) for i in (0, 1))
        if layers
        else "float"
    )


def packed_bytes(layers: dict[str, dict]) -> int:
    """Bytes of the quantized kernels: packed codes, and float32 levels and scales.

    Args:
      layers: of `result.json`: {path: {'shape', 'bits', 'floats' ([levels, scales])}}.

    Example:
      >>> packed_bytes({"conv": {"shape": [3, 3, 1, 1], "bits": 1, "floats": [2, 1]}})
      14
    """
    codes = (-(-math.prod(x["shape"]) * x["bits"] // 8) for x in layers.values())
    return sum(codes) + 4 * sum(sum(x["floats"]) for x in layers.values())


def _bytes(x: Cell) -> str:
    return f"{packed_bytes(x.found[0]['layers']):,}" if x.found[0]["layers"] else ""


def _smaller(x: Cell) -> str:
    layers = x.found[0]["layers"]
    floats = 4 * sum(math.prod(v["shape"]) for v in layers.values())
    return f"{floats / packed_bytes(layers):.1f}" if layers else "1.0"


def _of_layers(key: str, form: str = ".2f") -> Callable[[Cell], str]:
    """Mean over the layers of a run, and its range over the runs."""

    def cell(x):
        runs = [r["layers"].values() for r in x.found if r["layers"]]
        means = [statistics.mean(v[key] for v in run) for run in runs if run]
        if not means:
            return ""
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        return f"{statistics.mean(means):{form}} ± {spread:{form}}"

    return cell


def _flips(x: Cell) -> str:
    """Percent of the codes that differ from those of the evaluation before the last."""
    last = [r["curve"][-1]["flips"] for r in x.found if r["layers"] and "curve" in r]
    return mean_std([100 * flips for flips in last]) if last else ""


def _learned_bytes(x: Cell) -> str:
    sizes = [packed_bytes(r["layers"]) for r in x.found if r["layers"]]
    return mean_std([size / 1000 for size in sizes]) if sizes else ""


def _step_time(x: Cell) -> str:
    timed = x.step_times.get(x.row)
    return f"{timed['over_float_paired']:.2f}" if timed else "not run"


def minutes(found: Iterable[Record]) -> str:
    """Of a run, on average; compilation included where that was recorded."""
    return f"{statistics.mean(map(results.seconds_of, found)) / 60:.1f}"


BEFORE: dict[str, Callable[[Cell], str]] = {
    "initialization": _initialization,
    "learning rate": _rate,
}
"""Columns that need no final run."""

COLUMNS: dict[str, Callable[[Cell], str]] = BEFORE | {
    "W/A": _bits,
    "soft": _score("soft"),
    "hard": _score("hard"),
    "hard + BN": _score("hard_bn"),
    "soft - hard": _gap("hard"),
    "soft - (hard + BN)": _gap("hard_bn"),
    "quantnet - row": _ahead,
    "train tasks": _score("hard_train"),
    "test tasks": _score("hard"),
    "± of a run": lambda x: f"{statistics.mean(x.values('interval')):.2f}",
    "generalization gap": _score("generalization_gap"),
    "levels": _levels,
    "bytes": _bytes,
    "smaller": _smaller,
    "bits": _of_layers("bits"),
    "kB": _learned_bytes,
    "kurtosis": _of_layers("kurtosis"),
    "flips": _flips,
    "off grid": _of_layers("off", ".3f"),
    "step time": _step_time,
    "minutes": lambda x: minutes(x.found),
}
