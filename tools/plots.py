"""Draws the plots of docs/ from the records under results/.

    python -m tools.plots            # draws those whose records have changed
    python -m tools.plots --check    # exit code 1 if a plot is not of its records

A plot names the numbers that it shows by their digest, so that checking draws nothing.
"""

import argparse
import hashlib
import json
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from quantnet_jax.analysis import initialization
from quantnet_jax.experiments import columns, grid, results
from tools import blocks, posttrain_blocks

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "plots"


class Plot(NamedTuple):
    """One plot: what it shows as JSON data, and how that is drawn on axes."""

    data: Callable[[pathlib.Path], Any]
    draw: Callable[[Any, Any], None]


def mean_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error, 0 of a single value."""
    if len(values) < 2:
        return statistics.mean(values), 0.0
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


# A study as points with standard errors -----------------------------------------------
def rows_of(name: str) -> Plot:
    """Accuracy with hard weights of every row of a study, best one on top."""

    def data(folder):
        found = blocks.scores(name, folder)
        return {row: mean_error(x) for row, x in found.items() if x}

    def draw(axes, data):
        order = sorted(data, key=lambda row: data[row][0])
        for place, row in enumerate(order):
            mean, error = data[row]
            colour = "C3" if row.startswith("quantnet") else "C0"
            axes.errorbar(mean, place, xerr=error, fmt="o", color=colour, capsize=3)
        axes.set_yticks(range(len(order)), order)
        axes.set_xlabel("accuracy with hard weights, BatchNorm recalibrated (%)")

    return Plot(data, draw)


def curves_of(name: str, rows: tuple[str, ...]) -> Plot:
    """Accuracy over the epochs, soft and hard, mean over the seeds."""

    def data(folder):
        study = grid.load(name)
        records = results.of_study(name, study, folder)
        found = {}
        for row in rows:
            curves = [r["curve"] for r in columns.finals(study, records, row)]
            for key, label in (("soft", "soft"), ("hard_bn", "hard + BN")):
                found[f"{row}, {label}"] = [
                    (point[0]["epoch"], 100 * statistics.mean(x[key] for x in point))
                    for point in zip(*curves, strict=True)
                ]
        return found

    def draw(axes, data):
        for number, (label, points) in enumerate(data.items()):
            style = {"color": f"C{number // 2}", "linestyle": ("-", "--")[number % 2]}
            axes.plot(*zip(*points, strict=True), label=label, **style)
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy (%)")
        axes.legend()

    return Plot(data, draw)


# After training -----------------------------------------------------------------------
def methods(folder: pathlib.Path) -> Any:
    """{method: [(bits, mean, error)]} of post-training with float activations."""
    rows = posttrain_blocks.weights_only(folder)
    found: dict[str, dict[int, list[float]]] = {}
    for r in rows:
        by_bits = found.setdefault(r["method"], {})
        by_bits.setdefault(r["bits"], []).append(100 * r["score"])
    return {
        method: [(bits, *mean_error(x)) for bits, x in sorted(by_bits.items())]
        for method, by_bits in found.items()
    }


def draw_methods(axes: Any, data: Any) -> None:
    """Accuracy against bits, the float network as a line."""
    for method, points in data.items():
        bits, means, errors = zip(*points, strict=True)
        if method == "float":
            axes.axhline(means[0], color="black", linestyle=":", label="float")
        else:
            axes.errorbar(bits, means, errors, fmt="o-", capsize=3, label=method)
    axes.set_xlabel("bits of a weight")
    axes.set_xticks(sorted({p[0] for x in data.values() for p in x if p[0] < 32}))
    axes.set_ylabel("accuracy (%)")
    axes.legend()


def starts(folder: pathlib.Path) -> Any:
    """{architecture: [(range of the weights, points lost at 1 bit)]}."""
    found: dict[str, list[tuple[float, float]]] = {}
    for x in posttrain_blocks.networks_of(folder):
        lost = 100 * (x["float"] - x["w1"])
        point = (initialization.mean_of(x, "range"), lost)
        found.setdefault(posttrain_blocks.MODELS[x["model"]], []).append(point)
    return found


def draw_starts(axes: Any, data: Any) -> None:
    """A point a network."""
    for label, points in data.items():
        axes.scatter(*zip(*points, strict=True), s=18, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("range of the trained weights, mean over layers")
    axes.set_ylabel("accuracy lost at 1 bit (points)")
    axes.legend()


PLOTS = {
    "claim": rows_of("small_claim"),
    "curves": curves_of("small_full", ("float", "quantnet", "tanh_sign")),
    "initializers": Plot(starts, draw_starts),
    "posttrain": Plot(methods, draw_methods),
    "schedule": rows_of("small_schedule"),
}
"""Name of docs/plots/NAME.svg -> what it shows."""


def mark(data: Any) -> str:
    """What the file of a plot says of its numbers."""
    text = json.dumps(data, sort_keys=True)
    return f"records {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def drawn(plot: Plot, data: Any, path: pathlib.Path) -> None:
    """Writes the SVG file."""
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": "quantnet_jax", "svg.fonttype": "none"}
    style |= {"axes.spines.right": False, "axes.spines.top": False}
    with plt.rc_context({**style, "legend.frameon": False}):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        plot.draw(axes, data)
        axes.grid(alpha=0.3)
        path.parent.mkdir(exist_ok=True)
        metadata = {"Date": None, "Description": mark(data)}
        figure.savefig(path, metadata=metadata)
        plt.close(figure)


def stale(records: pathlib.Path, folder: pathlib.Path = FOLDER) -> dict[str, Any]:
    """{name: data} of the plots that are not of these records."""
    found = {}
    for name, plot in PLOTS.items():
        path, data = folder / f"{name}.svg", plot.data(records)
        if not path.is_file() or mark(data) not in path.read_text("utf-8"):
            found[name] = data
    return found


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.plots", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="draw nothing")
    args = parser.parse_args(argv)
    found = stale(ROOT / results.FOLDER)
    for name, data in found.items():
        if not args.check:
            drawn(PLOTS[name], data, FOLDER / f"{name}.svg")
    verb = "out of date" if args.check else "drew"
    print(f"{verb}: {', '.join(found) or 'nothing'}")
    return 1 if args.check and found else 0


if __name__ == "__main__":
    sys.exit(main())
