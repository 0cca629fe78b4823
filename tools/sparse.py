"""The tables of docs/sparse.md, from the records of its study and benchmarks."""

import pathlib

from quantnet_jax.experiments import columns, grid, results
from quantnet_jax.experiments.tables import markdown
from tools.blocks import last

FORMS = ("sparse", "sparse with lists", "shifted")


def accuracies(folder: pathlib.Path, name: str = "sparse") -> str:
    """Accuracy and quantization error of each row, and both against no shift."""
    study = grid.load(name)
    records = results.of_study(name, study, folder)
    errors = last("sparse_error", folder, study=name).get("rows", {})
    score, lines = {}, []
    for row in study.rows:
        runs = columns.finals(study, records, row)
        score[row] = columns.values(study, runs, "hard")
        error = [100 * x for x in errors.get(row, {}).get("errors", ())]
        plain = row.split(",")[0] if "," in row else ""
        base = [100 * x for x in errors.get(plain, {}).get("errors", ())]
        fewer = 0 < len(error) < len(runs)
        seeds = f" ({len(error)} of {len(runs)} seeds)" if fewer else ""
        lines.append(
            (
                row,
                _scored(score[row], len(study.seeds)),
                columns.difference(score[row], score.get(plain, [])),
                columns.mean_std(error) + seeds if error else "",
                columns.difference(error, base),
                columns.minutes(runs) if runs else "",
            )
        )
    head = ("row", "accuracy", "over no shift", "error", "over no shift", "minutes")
    return markdown(head, lines, "xrrrrr")


def _scored(values: list[float], seeds: int) -> str:
    """Mean and deviation, and of how many seeds where some are missing."""
    if not values:
        return "not run"
    fewer = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
    return columns.mean_std(values) + fewer


def speed(folder: pathlib.Path) -> str:
    """Times and bytes of sparse convolutions against the dense one."""
    found = last("sparse_speed", folder)
    if not found:
        return "Not run."
    lines = []
    for name, case in found["cases"].items():
        times, size = case["times"], case["bytes"]
        shape, _, share = name.partition(":")
        faster = [f"{1 / times[x]['over_float']:.1f}" for x in FORMS]
        less = [f"{size['dense'] / size[x]:.1f}" for x in FORMS[:2]]
        dense = f"{1e3 * times['dense']['median']:.2f}"
        part = f"{100 * float(share):g} %"
        lines.append((shape.replace("x", " x "), part, dense, *faster, *less))
    head = ("grid and channels", "active", "dense, ms", *(f"{x}, x" for x in FORMS))
    more = ("memory, x", "with lists, x")
    load = f"load average {found['load']['before'][0]:.1f} before"
    where = f"{found['device']}, one thread, {found['repeats']} rounds, {load}."
    return f"{markdown((*head, *more), lines, 'xrrrrrrr')}\n\n{where}"


BLOCKS = {
    "sparse": accuracies,
    "sparse: modelnet": lambda folder: accuracies(folder, "modelnet"),
    "sparse: speed": speed,
}
