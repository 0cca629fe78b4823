"""Reads the results of the family and writes their page; nothing is trained here."""

import math
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks import gap_rows
from benchmarks.gap_rows import FLOAT, RATES, SEEDS
from benchmarks.runs import read, slug

Result = dict[str, Any]
COLUMNS = (
    *("row", "W/A", "rate", "soft", "hard", "hard + BN", "soft - hard"),
    *("soft - (hard + BN)", "levels", "bytes", "smaller", "step time"),
)
CAUTION = {
    "bundled": "These images and this short training show that everything works, not "
    "which method is best: one\nstandard error of an accuracy on 2,000 images is 0.7 "
    "points.",
    "cifar100": "",
}
NOTES = """
- All layers but the first and the last (stem and head) are quantized. The float network
  of the head line has ReLUs and plain blocks; rows with signed activations have
  hardtanh, and Bi-Real rows a shortcut around each convolution.
- soft: with the weights that training differentiates. hard: with the weights that ship.
  BN: its statistics re-estimated on training images for the hard weights. All after the
  last epoch, not the best one.
- rate: learning rate of the weights, the one with the best hard + BN accuracy in the
  search (the lower one of two); the schedule and all else are equal for all rows.
  '(edge)': the first or the last of the list, so that a better one may lie outside.
- levels: distinct codes of a kernel / of one of its output channels, the largest number
  over kernels and seeds. 2 is binary.
- bytes: of the quantized kernels: codes packed, k bits each, every kernel rounded up to
  a byte, plus 4 bytes for each level and each scale. smaller: float32 kernels over it.
- step time: of a training step, over that of the float network, measured in turns.
- A run that diverged counts as accuracy 0 in the search. In the table of the final runs
  it is left out of mean and deviation, and counted."""


# Files --------------------------------------------------------------------------------
def search_paths(results: pathlib.Path, name: str) -> dict[float, pathlib.Path]:
    """Learning rate -> file of its run."""
    base = slug(name)
    return {rate: results / "search" / f"{base}-lr{rate}.json" for rate in RATES}


def final_paths(results: pathlib.Path, name: str) -> dict[int, pathlib.Path]:
    """Seed -> file of its run."""
    base = slug(name)
    return {seed: results / "final" / f"{base}-seed{seed}.json" for seed in SEEDS}


def read_all(paths: Iterable[pathlib.Path]) -> list[Result] | None:
    """All results, None if one of them is missing."""
    found = [read(path) for path in paths]
    return None if None in found else [r for r in found if r is not None]


# Numbers ------------------------------------------------------------------------------
def score(result: Result) -> float:
    """What the search goes by: the held-out accuracy of hard + BN, 0 if diverged."""
    return 0.0 if result.get("diverged") else result["hard_bn"]


def best_rate(results: pathlib.Path, name: str) -> float | None:
    """The rate with the best score (the lower one of two); None before the search."""
    found = read_all(search_paths(results, name).values())
    if found is None:
        return None
    scores = dict(zip(RATES, map(score, found), strict=True))
    return max(RATES, key=lambda rate: (scores[rate], -rate))


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


def float_bytes(layers: dict[str, dict]) -> int:
    """Bytes of the same kernels in float32."""
    return 4 * sum(math.prod(x["shape"]) for x in layers.values())


def mean_std(values: list[float]) -> str:
    """'mean ± standard deviation'; of one value, the value."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


# The page -----------------------------------------------------------------------------
def page(data: str, results: pathlib.Path) -> str:
    """The Markdown page of all results there are.

    Args:
      data: name of a setting.
      results: folder with 'search', 'final' and 'step_time.json'.
    """
    rows = gap_rows.rows()
    finals = {n: read_all(final_paths(results, n).values()) for n in rows}
    times = (read(results / "step_time.json") or {}).get("methods", {})
    text = [f"# The family on {data}\n", *head(data, finals), "", *line(COLUMNS)]
    for name, row in rows.items():
        cells = final_cells(finals[name], times.get(name))
        rate = best_rate(results, name)
        edge = " (edge)" if rate in (RATES[0], RATES[-1]) else ""
        shown = "" if rate is None else f"{rate}{edge}"
        text += line([name, row.bits, shown, *cells], head=False)
    text += [NOTES, "\n## Search of the learning rate\n"]
    search = {n: [read(p) for p in search_paths(results, n).values()] for n in rows}
    setting = gap_rows.SETTINGS[data]
    done = [r for found in search.values() for r in found if r]
    text += [
        f"Accuracy of hard + BN on {setting.validation_size:,} held-out images "
        f"after {epochs(done, setting.search_epochs)} epochs, seed 0.\n"
    ]
    text += line(["row", *map(str, RATES)])
    for name, found in search.items():
        text += line([name, *map(search_cell, found)], head=False)
    text += ["", *edges(results, list(rows))]
    return "\n".join(text) + "\n"


def head(data: str, finals: dict[str, list[Result] | None]) -> list[str]:
    """What the numbers are, and the accuracy of the float network."""
    setting = gap_rows.SETTINGS[data]
    runs = [r for found in finals.values() for r in found or []]
    devices = {f"{r['device']} ({r['cores']} cores)" for r in runs if "device" in r}
    flag = "" if data == "bundled" else f" --data={data} --folder=FOLDER"
    float_runs = [r for r in finals.get(FLOAT) or [] if not r.get("diverged")]
    accuracy = "not run"
    if float_runs:
        accuracy = mean_std([100 * r["hard"] for r in float_runs])
    text = [
        f"{setting.title}; {epochs(runs, setting.epochs)} epochs; test accuracy in "
        f"percent after the last epoch, mean",
        f"and standard deviation of seeds {', '.join(map(str, SEEDS))}. Device: "
        f"{', '.join(sorted(devices)) or 'none yet'}.",
        f"Command: `python benchmarks/gap_table.py run{flag}`, and `time` for the step "
        "times.\n",
    ]
    if CAUTION[data]:
        text += [CAUTION[data] + "\n"]
    return [*text, f"**Float network (`{FLOAT}`): {accuracy}**"]


def epochs(runs: list[Result], default: float) -> str:
    """How many epochs the runs have, in words; `default` without runs."""
    found = sorted({r["settings"]["epochs"] for r in runs}) or [default]
    return " or ".join(f"{e:g}" for e in found)


def final_cells(runs: list[Result] | None, timed: dict | None) -> list[str]:
    """The cells of a row after the learning rate."""
    time = f"{timed['over_float_paired']:.2f}" if timed else "not run"
    if runs is None:
        return ["not run", *[""] * 7, time]
    good = [r for r in runs if not r.get("diverged")]
    if not good:
        return [f"diverged ({len(runs)} of {len(runs)})", *[""] * 7, time]
    lost = len(runs) - len(good)
    cells = [
        mean_std([100 * r[key] for r in good])
        for key in ("soft", "hard", "hard_bn", "gap", "gap_bn")
    ]
    cells[0] += f" ({lost} of {len(runs)} diverged)" if lost else ""
    layers = good[0]["layers"]
    if not layers:
        return [*cells, "float", "", "1.0", time]
    all_layers = [layer for r in good for layer in r["layers"].values()]
    values = [max(layer["values"][i] for layer in all_layers) for i in (0, 1)]
    size = packed_bytes(layers)
    ratio = f"{float_bytes(layers) / size:.1f}"
    return [*cells, f"{values[0]} / {values[1]}", f"{size:,}", ratio, time]


def search_cell(result: Result | None) -> str:
    """One run of the search in its table."""
    if result is None:
        return "not run"
    return "diverged" if result.get("diverged") else f"{100 * score(result):.2f}"


def edges(results: pathlib.Path, names: list[str]) -> list[str]:
    """Sentences on the rows whose best rate is the first or the last one."""
    text = []
    for rate, word in ((RATES[0], "lowest"), (RATES[-1], "highest")):
        at = [name for name in names if best_rate(results, name) == rate]
        text += [f"Best at the {word} rate, {rate}: {', '.join(at) or 'none'}.", ""]
    return text[:-1]


def line(cells: Iterable[str], head: bool = True) -> list[str]:
    """A line of a Markdown table; with the rule below it if it is the head."""
    cells = list(cells)
    text = ["| " + " | ".join(cells) + " |"]
    return text + ["|---" * len(cells) + "|"] if head else text
