"""The tables of docs/posttrain.md."""

import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from quantnet_jax.analysis import initialization
from quantnet_jax.experiments import results
from quantnet_jax.experiments.columns import mean_std
from quantnet_jax.experiments.tables import markdown

MODELS = {
    "resnet8": "ResNet-8",
    "resnet20": "ResNet-20",
    "plain": "plain CNN",
    "mobilenet": "MobileNet-like",
}


TRAINED = "QuantNet, trained"
"""From scratch on the same images, as long as the float networks were."""


def weights_only(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Records of post-trained weights, and of those that were trained at few bits."""
    rows = [r for r in results.read("posttrain", folder) if not r["activation_bits"]]
    runs = [r for r in results.read("small_bits", folder) if not r.get("diverged")]
    return rows + [
        {
            **{"method": TRAINED, "seed": r["seed"], "score": r["hard_bn"]},
            "bits": r["settings"]["quantizer.quantnet.bits"],
        }
        for r in runs
        if r["row"].startswith("quantnet")
    ]


def methods(folder: pathlib.Path) -> str:
    """Scores of every method by bits, mean and deviation over seeds."""
    rows = weights_only(folder)
    if not rows:
        return "not run"
    names = list(dict.fromkeys(r["method"] for r in rows if r["method"] != "float"))
    widths = sorted({r["bits"] for r in rows if r["method"] != "float"})
    cell = lambda name, bits: _cell(
        [r for r in rows if (r["method"], r["bits"]) == (name, bits)]
    )
    lines = [("float", cell("float", 32), *[""] * len(widths))]
    lines += [(name, "", *(cell(name, bits) for bits in widths)) for name in names]
    head = ("method", "float", *(f"{bits} bit{'s'[: bits - 1]}" for bits in widths))
    first = rows[0]
    about = (
        f"{first['network']}, {first['data']} of {first['epochs']:g} epochs, all but "
        f"the first and the last layer; seeds {_seeds(rows)}; {first['images']} images "
        f"for calibration, {first['positions']:.0%} of their places; "
        f"{first['device']}. An empty cell is not run."
    )
    return f"{markdown(head, lines, 'x' + 'r' * len(head))}\n\n{about}"


def quantized_activations(folder: pathlib.Path) -> str:
    """Scores with quantized weights and activations."""
    rows = [r for r in results.read("posttrain", folder) if r["activation_bits"]]
    if not rows:
        return "not run"
    keys = dict.fromkeys(
        (r["method"], r["bits"], r["activation_bits"], r["quantile"]) for r in rows
    )
    lines = []
    for key in keys:
        same = [
            r
            for r in rows
            if key
            == tuple(r[k] for k in ("method", "bits", "activation_bits", "quantile"))
        ]
        lines.append((*map(str, key), _cell(same)))
    head = ("method", "bits of weights", "of activations", "quantile", "accuracy")
    return markdown(head, lines, "xrrrr")


def initializers(folder: pathlib.Path) -> str:
    """Accuracies by network and initializer."""
    networks = networks_of(folder)
    if not networks:
        return "not run"
    keys = ("float", "w8a8", "w4a8", "w1")
    lines = []
    for model, name in dict.fromkeys((x["model"], x["initializer"]) for x in networks):
        same = [x for x in networks if (x["model"], x["initializer"]) == (model, name)]
        means = [
            statistics.mean(initialization.mean_of(x, what) for x in same)
            for what in initialization.STATISTICS
        ]
        lines.append((
            MODELS[model], name, *(mean_std([100 * x[k] for x in same]) for k in keys),
            *(f"{mean:.2f}" for mean in means),
        ))  # fmt: skip
    head = ("network", "initializer", "float", "W8A8", "W4A8", "1 bit", "range")
    return markdown((*head, "kurtosis", "channel precision"), lines, "xxrrrrrrr")


def correlations(folder: pathlib.Path) -> str:
    """Rank correlations of weight statistics with what quantization loses."""
    networks = networks_of(folder)
    if not networks:
        return "not run"
    widths, lines = ("w8a8", "w4a8", "w1"), []
    others = [x for x in networks if x["initializer"] != "scaled"]
    for which, label in ((networks, ""), (others, ", without 'scaled'")):
        found = initialization.correlations(which, widths)
        for what in initialization.STATISTICS:
            cells = []
            for width in widths:
                x = found[what, width]
                cells.append(f"{x['value']:+.2f} ({x['low']:+.2f} to {x['high']:+.2f})")
            lines.append((what.replace("_", " ") + label, *cells))
    head = ("mean over layers", "loss at W8A8", "at W4A8", "at 1 bit")
    about = f"{len(networks)} networks, {len(others)} without 'scaled'; 95 % intervals."
    return f"{markdown(head, lines, 'xrrr')}\n\n{about}"


def networks_of(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Every network of the study, the newest of each."""
    found = {}
    for record in results.read("initialization", folder):
        for x in record["networks"]:
            found[x["model"], x["initializer"], x["seed"]] = x
    return list(found.values())


def _cell(rows: list[dict[str, Any]]) -> str:
    return mean_std([100 * r["score"] for r in rows]) if rows else ""


def _seeds(rows: list[dict[str, Any]]) -> str:
    return ", ".join(map(str, sorted({r["seed"] for r in rows})))


BLOCKS: dict[str, Callable[[pathlib.Path], str]] = {
    "posttrain": methods,
    "posttrain activations": quantized_activations,
    "initializers": initializers,
    "initializer correlations": correlations,
}
