"""The tables of docs/super_resolution.md, from the records of its study."""

import pathlib
from typing import Any

from quantnet_jax.experiments import columns, grid, results
from quantnet_jax.experiments.tables import markdown

NAME = "super_resolution"
SETS = ("set5", "set14")
BASE = "float, trained on"
"""The float network of as many steps as the others have in total."""
Record = dict[str, Any]


def _found(folder: pathlib.Path) -> dict[str, list[Record]]:
    study = grid.load(NAME)
    records = results.of_study(NAME, study, folder)
    return {row: columns.finals(study, records, row) for row in study.rows}


def widths(folder: pathlib.Path) -> str:
    """PSNR and SSIM of each row on each set; bicubic interpolation first."""
    found, lines = _found(folder), []
    done = [r for runs in found.values() for r in runs if not r.get("diverged")]
    if done:
        plain = [f"{done[0][f'bicubic_{x}_hard']:.2f}" for x in SETS]
        lines.append(["bicubic", *plain, "", "", "", "", ""])
    base = {x: _mean(found[BASE], f"psnr_{x}_hard") for x in SETS}
    for row, runs in found.items():
        good = [r for r in runs if not r.get("diverged")]
        if not good:
            state = "diverged" if runs else "not run"
            lines.append([row, state, *[""] * 6])
            continue
        scores = [columns.mean_std([r[f"psnr_{x}_hard"] for r in good]) for x in SETS]
        lost = [_mean(good, f"psnr_{x}_hard") - base[x] for x in SETS]
        alike = [f"{_mean(good, f'ssim_{x}_hard'):.4f}" for x in SETS]
        shown = [f"{x:+.2f}" if row != BASE else "" for x in lost]
        minutes = f"{_mean(good, 'wall') / 60:.1f}"
        lines.append([row, *scores, *shown, *alike, minutes])
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
    return sum(r[key] for r in runs) / len(runs) if runs else float("nan")


BLOCKS = {
    "super resolution": widths,
    "super resolution: BSD100": bsd100,
}
