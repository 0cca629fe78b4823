"""Tables of studies in Markdown: means, deviations, differences, searches."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from quantnet_jax.experiments import grid
from quantnet_jax.experiments.grid import FLOAT, Record, Records, Study
from quantnet_jax.logging.scores import unit_of

PLAIN_STE = ("clipped_ste", "binary_ste", "xnor", "binaryconnect", "dorefa")
"""Signs whose backward pass is the identity, clipped or not: 'tuned STE' is the best of
them."""


UNITS = {"%": "percent"}
"""Of a metric, in words."""


def markdown(
    head: Sequence[str], rows: Iterable[Sequence[str]], right: str = ""
) -> str:
    """A table; the columns whose letter in `right` is 'r' are aligned to the right."""
    right = right.ljust(len(head))[: len(head)]
    marks = ["---:" if x == "r" else "---" for x in right]
    lines = [head, marks, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


def _accuracy(key: str) -> Callable[[Cell], str]:
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
    ours = finals(x.study, x.records, "quantnet") if x.row != "quantnet" else []
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


def _learned_bytes(x: Cell) -> str:
    sizes = [packed_bytes(r["layers"]) for r in x.found if r["layers"]]
    return mean_std([size / 1000 for size in sizes]) if sizes else ""


def _step_time(x: Cell) -> str:
    timed = x.step_times.get(x.row)
    return f"{timed['over_float_paired']:.2f}" if timed else "not run"


def _minutes(x: Cell) -> str:
    return f"{statistics.mean(r['seconds'] / 60 for r in x.found):.1f}"


BEFORE: dict[str, Callable[[Cell], str]] = {
    "initialization": _initialization,
    "learning rate": _rate,
}
"""Columns that need no final run."""
COLUMNS: dict[str, Callable[[Cell], str]] = BEFORE | {
    "W/A": _bits,
    "soft": _accuracy("soft"),
    "hard": _accuracy("hard"),
    "hard + BN": _accuracy("hard_bn"),
    "soft - hard": _gap("hard"),
    "soft - (hard + BN)": _gap("hard_bn"),
    "quantnet - row": _ahead,
    "train tasks": _accuracy("hard_train"),
    "test tasks": _accuracy("hard"),
    "± of a run": lambda x: f"{statistics.mean(x.values('interval')):.2f}",
    "generalization gap": _accuracy("generalization_gap"),
    "levels": _levels,
    "bytes": _bytes,
    "smaller": _smaller,
    "bits": _of_layers("bits"),
    "kB": _learned_bytes,
    "kurtosis": _of_layers("kurtosis"),
    "off grid": _of_layers("off", ".3f"),
    "step time": _step_time,
    "minutes": _minutes,
}


# Blocks of a page ---------------------------------------------------------------------
def table(study: Study, records: Records, step_times: dict | None = None) -> str:
    """The table of a study: a line for each row, 'not run' where there is no record."""
    lines = []
    for row in study.rows:
        found = finals(study, records, row)
        good = [r for r in found if not r.get("diverged")]
        cell = Cell(study, records, row, good, step_times or {})
        known = study.columns if good else BEFORE
        cells = [COLUMNS[c](cell) if c in known else "" for c in study.columns]
        first = study.columns.index("soft")
        if not good:
            cells[first] = f"diverged ({len(found)})" if found else "not run"
        elif len(found) < len(study.seeds):
            cells[first] += f" ({len(found)} of {len(study.seeds)} seeds)"
        if good and len(good) < len(found):
            cells[first] += f" ({len(found) - len(good)} diverged)"
        lines.append([_escaped(row), *cells])
    return markdown(("row", *study.columns), lines)


def about(name: str, study: Study, records: Records) -> str:
    """What the numbers are: layers, lengths, seeds, device, command."""
    found = [r for row in study.rows for r in finals(study, records, row)]
    found = found or list(records.values())
    devices = {f"{r['device']} ({r['cores']} cores)" for r in found if "device" in r}
    epochs = " or ".join(
        f"{x.name}: {f'{x.float_epochs:g} float + ' if x.float_epochs else ''}"
        f"{x.epochs:g}"
        for x in study.initializations
    )
    run = ", ".join(f"{e:g}" for e in sorted({r["epochs"] for r in found}))
    last = "last epoch"
    if study.last > 1:
        last = f"mean of the last {study.last} epochs"
    seeds = ", ".join(map(str, study.seeds))
    scored = metric(found[0] if found else {})
    unit = scored["unit"].strip()
    return "\n".join(
        [
            f"{study.title}.\n",
            f"Quantized: {study.layers}. Epochs: {epochs} (of the runs here: {run}). "
            f"Seeds {seeds}; {scored['name']} in {UNITS.get(unit, unit)} on "
            f"{'validation' if study.validate else 'test'} images, {last}.",
            f"Device: {'; '.join(sorted(devices)) or 'none'}. "
            f"Command: `python -m quantnet_jax.experiments run {name}`.",
        ]
    )


def verdict(study: Study, records: Records) -> str:
    """The order of the methods, in numbers; of an ablation, the best row of each."""
    found = {row: finals(study, records, row) for row in study.rows}
    complete = [row for row in study.rows if len(found[row]) == len(study.seeds)]
    scores = {r: s for r in complete if (s := values(study, found[r], "hard_bn"))}
    means = {row: statistics.mean(s) for row, s in scores.items()}
    if study.validate:
        rows: dict[str, list[str]] = {}
        for row in means:
            rows.setdefault(study.rows[row].method, []).append(row)
        best = {m: max(x, key=means.__getitem__) for m, x in rows.items()}
        # A row of the first method may be named by what it changes alone.
        names = {r: r if ":" in r or r == m else f"{m}: {r}" for m, r in best.items()}
        shown = ", ".join(f"{_escaped(x)} {means[r]:.2f}" for r, x in names.items())
        return f"Best row of each method: {shown}."
    stes = [r for r in means if r.removesuffix(", Adam") in PLAIN_STE]
    if "quantnet" not in means or not stes:
        return "Order: not yet complete."
    best = max(stes, key=means.__getitem__)
    order = [r for r in (FLOAT, "quantnet", "tanh_sign") if r in means] + [best]
    holds = all(means[a] > means[b] for a, b in zip(order, order[1:], strict=False))
    shown = ", ".join(f"{r} {means[r]:.2f}" for r in order)
    others = max(
        (r for r in means if r not in (FLOAT, "quantnet")), key=means.__getitem__
    )
    ahead = lambda row: difference(scores["quantnet"], scores[row])
    lines = [
        f"Order float > quantnet > tanh_sign > tuned STE (the best one of "
        f"{', '.join(stes)}): **{'holds' if holds else 'does not hold'}** ({shown}).  ",
        f"QuantNet minus tuned STE: **{ahead(best)}** points. The best other row is "
        f"{others}: {means[others]:.2f}.",
    ]
    lines += [f"QuantNet minus float: {ahead(FLOAT)}."] if FLOAT in means else []
    return "\n".join(lines)


def search(study: Study, records: Records) -> str:
    """The scores by which initializations and learning rates were chosen."""
    lines = []
    for row in study.rows:
        by_start: dict[str, list[str]] = {}
        for run in grid.search_runs(study, row):
            assert run.initialization is not None
            record, shown = grid.record_of(records, run), "not run"
            if record:
                factor = unit_of(metric(record)).factor
                shown = f"{factor * grid.score(record):.2f}"
                shown = "diverged" if record.get("diverged") else shown
            cells = by_start.setdefault(run.initialization.name, [])
            cells.append(f"{run.learning_rate:g}: {shown}")
        lines += [(_escaped(row), name, ", ".join(x)) for name, x in by_start.items()]
    head = (
        f"Search: hard + BN on {study.validation_size:,} validation images, "
        f"{study.search:.2g} of the length, seed {study.seeds[0]}"
    )
    body = markdown(("row", "initialization", "accuracy at each learning rate"), lines)
    return f"<details><summary>{head}</summary>\n\n{body}\n\n</details>"


def section(
    name: str, study: Study, records: Records, step_times: dict | None = None
) -> str:
    """All that a page shows of a study."""
    parts = [about(name, study, records), table(study, records, step_times)]
    if "quantnet - row" in study.columns:
        parts.append(verdict(study, records))
    for what, accuracy in study.published.items():
        parts.append(f"Published for this protocol, {what}: {accuracy:.2f}.")
    searched = any(list(grid.search_runs(study, row)) for row in study.rows)
    if searched and not study.search_from:
        parts.append(search(study, records))
    return "\n\n".join(parts)


def _escaped(row: str) -> str:
    """A row's name in a table, where | would end a cell."""
    return row.replace("|", "\\|")
