"""Tables of studies in Markdown: means, deviations, differences, searches."""

import statistics
from collections.abc import Iterable, Sequence

from quantnet_jax import data
from quantnet_jax.experiments import grid, results
from quantnet_jax.experiments.columns import (
    BEFORE,
    COLUMNS,
    PLAIN_STE,
    Cell,
    difference,
    finals,
    metric,
    values,
)
from quantnet_jax.experiments.study import FLOAT, Records, Study
from quantnet_jax.logging.scores import unit_of

UNITS = {"%": "percent"}
"""Of a metric, in words."""


def markdown(
    head: Sequence[str], rows: Iterable[Sequence[str]], right: str = ""
) -> str:
    """A table; the columns whose letter in `right` is 'r' are aligned to the right.

    A bar within a cell, which would end it even in code, is escaped.
    """
    right = right.ljust(len(head))[: len(head)]
    marks = ["---:" if x == "r" else "---" for x in right]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in (head, *rows))
    first, *others = escaped
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, marks, *others))


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
        lines.append([row, *cells])
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
    of_files = study.base().data.name not in data.WITHOUT_FOLDER
    folder = " --folder=FOLDER" * of_files
    minutes = sum(map(results.seconds_of, records.values())) / 60
    unit = scored["unit"].strip()
    return "\n".join(
        [
            f"{study.title}.\n",
            f"Quantized: {study.layers}. Epochs: {epochs} (of the runs here: {run}). "
            f"Seeds {seeds}; {scored['name']} in {UNITS.get(unit, unit)} on "
            f"{'validation' if study.validate else 'test'} images, {last}.",
            f"Device: {'; '.join(sorted(devices)) or 'none'}. "
            f"All runs, one after another: {minutes:.0f} minutes. "
            f"Command: `python -m quantnet_jax.experiments run {name}{folder}`.",
        ]
    )


def verdict(study: Study, records: Records) -> str:
    """The order of the methods, in numbers; of an ablation, the best row of each.

    '' for a study without plain signs, which has no order.
    """
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
        short = lambda m: m.split("(")[0].rpartition(":")[2]  # of one's own quantizer
        names = {
            r: r if ":" in r or r == m else f"{short(m)}: {r}" for m, r in best.items()
        }
        shown = ", ".join(f"{x} {means[r]:.2f}" for r, x in names.items())
        return f"Best row of each method: {shown}."
    plain = [r for r in study.rows if r.removesuffix(", Adam") in PLAIN_STE]
    if not plain:
        return ""
    stes = [r for r in plain if r in means]
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
    scored = metric(next(iter(records.values()), {}))["name"]
    for row in study.rows:
        by_start: dict[str, list[str]] = {}
        for run in grid.search_runs(study, row):
            assert run.initialization is not None
            record, shown = grid.record_of(records, run), "not run"
            if record and record.get("diverged"):
                shown = "diverged"
            elif record:
                factor = unit_of(metric(record)).factor
                shown = f"{factor * grid.score(record):.2f}"
            cells = by_start.setdefault(run.initialization.name, [])
            cells.append(f"{run.learning_rate:g}: {shown}")
        lines += [(row, name, ", ".join(x)) for name, x in by_start.items()]
    head = (
        f"Search: hard + BN on {study.validation_size:,} validation images, "
        f"{study.search:.2g} of the length, seed {study.seeds[0]}"
    )
    body = markdown(("row", "initialization", f"{scored} at each learning rate"), lines)
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
    return "\n\n".join(part for part in parts if part)
