"""The tables of docs/super_resolution.md, from the records of its study."""

import pathlib
from typing import Any

from quantnet_jax.experiments import columns, grid, results
from quantnet_jax.experiments.tables import markdown
from sweeps.super_resolution import BASE

NAME = "super_resolution"
SETS = ("set5", "set14")
Record = dict[str, Any]


def _found(name: str, folder: pathlib.Path) -> dict[str, list[Record]]:
    """{row: its runs that did not diverge}; no key without a run."""
    study = grid.load(name)
    records = results.of_study(name, study, folder)
    runs = {row: columns.finals(study, records, row) for row in study.rows}
    good = lambda found: [r for r in found if not r.get("diverged")]
    return {row: good(found) for row, found in runs.items() if found}


def _kind(row: str) -> str:
    """'x4: ' of 'x4: 4 bits', '' of '4 bits'."""
    return row[: row.index(": ") + 2] if ": " in row else ""


def _base(row: str) -> str:
    """The float network of as many steps as a row, of the same kind and length."""
    return _kind(row) + BASE + ", longer" * row.endswith(", longer")


def widths(folder: pathlib.Path, name: str = NAME) -> str:
    """PSNR and SSIM of each row on each set; bicubic interpolation before its own."""
    found, lines, above = _found(name, folder), [], ""
    for row in grid.load(name).rows:
        runs = found.get(row)
        if not runs:
            state = "not run" if runs is None else "diverged"
            lines.append([row, state, *[""] * 6])
            continue
        if (plain := f"{_kind(row)}bicubic") != above:
            values = [f"{runs[0][f'bicubic_{x}_hard']:.2f}" for x in SETS]
            lines.append([plain, *values, *[""] * 5])
            above = plain
        scores = [columns.mean_std([r[f"psnr_{x}_hard"] for r in runs]) for x in SETS]
        lost, base = ["", ""], found.get(_base(row))
        if base and row != _base(row):
            keys = [f"psnr_{x}_hard" for x in SETS]
            lost = [f"{_mean(runs, k) - _mean(base, k):+.2f}" for k in keys]
        alike = [f"{_mean(runs, f'ssim_{x}_hard'):.4f}" for x in SETS]
        lines.append([row, *scores, *lost, *alike, columns.minutes(runs)])
    head = ("row", "Set5 (dB)", "Set14 (dB)", f"- {BASE}: Set5", "Set14")
    return markdown((*head, "SSIM Set5", "SSIM Set14", "minutes"), lines, "xrrrrrrr")


def bsd100(folder: pathlib.Path) -> str:
    """Some rows on BSD100."""
    found = results.read("bsd100", folder)
    if not found:
        return "Not run."
    rows = found[-1]["rows"]
    first = next(iter(rows.values()))
    lines = [["bicubic", f"{first['bicubic_hard']:.2f}", ""]]
    lines += [[k, f"{x['hard']:.2f}", f"{x['ssim_hard']:.4f}"] for k, x in rows.items()]
    head = ("row", f"PSNR of {first['examples']} images (dB)", "SSIM")
    words = found[-1]["command"].split(maxsplit=3)[3]  # whatever room it was in
    command = f"Command: `python -m measurements.bsd100 {words}`."
    return f"{markdown(head, lines, 'xrr')}\n\n{command}"


def _mean(runs: list[Record], key: str) -> float:
    return sum(r[key] for r in runs) / len(runs)


BLOCKS = {
    "super resolution": widths,
    "super resolution: more": lambda folder: widths(folder, "super_resolution_more"),
    "super resolution: BSD100": bsd100,
}
