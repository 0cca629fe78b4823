"""The tables of pages that are not of one study; nothing is run or measured here."""

import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from quantnet_jax import zoo
from quantnet_jax.experiments import columns, grid, results
from quantnet_jax.experiments.study import FLOAT
from quantnet_jax.experiments.tables import markdown
from quantnet_jax.zoo import card

Record = dict[str, Any]
EFFECTS = (
    *("norm: none", "unit: weight, width 16", "sharpness from 1", "sharpness: linear"),
    *("sharpness until 0.6", "sharpness to 50", "penalty to 1", "skip: no"),
    *("bilevel, first order", "bilevel, exact", "sharpness from 0.03"),
    *("unit: filter", "scale: mean |w|", "weight decay 2e-3"),
    "scale, filter, start, decay",
)
"""Rows of the ablation that docs/method.md speaks of."""
CLAIMS = "small_claim", "small_distilled"
SUMMARY = ("small_short", "small_full", "small_claim")


def last(name: str, folder: pathlib.Path, **wanted: Any) -> Record:
    """The newest record of a file that has these entries; {} without one."""
    found = [r for r in results.read(name, folder) if wanted.items() <= r.items()]
    return found[-1] if found else {}


def step_times(folder: pathlib.Path, study: str) -> dict[str, Record]:
    """{row: times} of a study, {} where they were not measured."""
    return last("step_time", folder, study=study).get("methods", {})


def scores(name: str, folder: pathlib.Path) -> dict[str, list[float]]:
    """{row: hard + BN of its final runs} of a study."""
    study = grid.load(name)
    records = results.of_study(name, study, folder)
    found = {r: columns.finals(study, records, r) for r in study.rows}
    return {r: columns.values(study, x, "hard_bn") for r, x in found.items()}


def summary(folder: pathlib.Path) -> str:
    """QuantNet against the best tuned straight-through member, and against float."""
    rows = []
    for name in SUMMARY:
        study, found = grid.load(name), scores(name, folder)
        stes = [r for r in found if r in columns.PLAIN_STE and found[r]]
        best = max(stes, key=lambda r: statistics.mean(found[r]))
        (epochs,) = {x.float_epochs + x.epochs for x in study.initializations}
        ahead = [columns.difference(found["quantnet"], found[r])
                 for r in (FLOAT, "tanh_sign", best)]  # fmt: skip
        rows.append((f"`{name}`", f"{epochs:g}", str(len(study.seeds)), *ahead, best))
    head = ("study", "epochs", "seeds", "QuantNet - float", "- tanh_sign")
    return markdown((*head, "- best tuned STE", "which is"), rows, "xrrrrr")


def claim(folder: pathlib.Path) -> str:
    """Members on the classes that chose nothing, from scratch and with a teacher."""
    plain, taught = (scores(name, folder) for name in CLAIMS)
    order = sorted(plain, key=lambda r: -statistics.mean(plain[r]))
    rows = []
    for row in (r for r in order if r in taught):
        line = [row]
        for found in (plain, taught):
            mine, base = found[row], found["quantnet"]
            line.append(columns.mean_std(mine) if mine else "not run")
            other = row != "quantnet" and mine and base
            line.append(columns.difference(base, mine) if other else "")
        rows.append(line)
    head = ("weights", "from scratch", "QuantNet - it", "with the float teacher")
    return markdown((*head, "QuantNet - it"), rows, "xrrrr")


def effects(folder: pathlib.Path) -> str:
    """What some rows of the ablation change, in points of hard + BN."""
    found = scores("small_ablation", folder)
    default = found["quantnet"]
    rows = [
        (row, columns.mean_std(found[row]),
         columns.difference(found[row], default))
        for row in EFFECTS
    ]  # fmt: skip
    rows.insert(0, ("default", columns.mean_std(default), ""))
    return markdown(("change", "hard + BN", "over the default"), rows, "xrr")


def not_run(folder: pathlib.Path) -> str:
    """The studies without a record."""
    rest = [n for n in grid.names() if not results.read(n, folder)]
    lines = [f"- `{name}`: {grid.load(name).title}." for name in rest]
    return "\n".join(lines) or "Every study has records."


def networks(folder: pathlib.Path) -> str:
    """What `quantnet_jax.load("zoo:NAME")` knows."""
    head = ("name", "method", "bits", "network", "data", "accuracy", "bytes")
    rows = [
        (f"`{name}`", x["method"], str(x["bits"]), x["network"], x["data"],
         f"{100 * x['accuracy']:.2f}", f"{x['bytes']:,}")
        for name, x in zoo.entries().items()
    ]  # fmt: skip
    return markdown(head, rows, "    xrr")


def cards(folder: pathlib.Path) -> str:
    """The model card of each network that ships."""
    return "\n\n".join(card.card(name) for name in zoo.entries())


def mismatch(folder: pathlib.Path) -> str:
    """Cosines of the gradient used and that of the smoothed loss."""
    found = last("mismatch", folder)
    spreads = found["spreads"]
    kinds = {
        "own_small": f"own loss, s = {spreads['small']}",
        "own_large": f"own loss, s = {spreads['large']}",
        "hard_large": f"hard loss, s = {spreads['large']}",
    }

    def cell(estimate):
        value, error = estimate["cosine"], estimate["error"]
        if value is None or error is None or error > 0.5:
            return "noise"
        return f"{value:.2f} ± {error:.2f}"

    methods = found["methods"]
    fractions = [p["fraction"] for p in next(iter(methods.values()))["points"]]
    rows = [
        (name, label, *(cell(p[kind]) for p in method["points"]))
        for name, method in methods.items()
        for kind, label in kinds.items()
        if kind != "hard_large" or method["loss"] != "hard"  # the same as its own
    ]
    head = ("method", "loss", *(f"{f:.0%} of training" for f in fractions))
    about = (
        f"{found['network']}, {found['epochs']:g} epochs; loss on {found['images']} "
        f"training images; {found['directions']} antithetic directions; "
        f"{found['device']}."
    )
    return f"{markdown(head, rows)}\n\n{about}"


def text(folder: pathlib.Path) -> str:
    """Bits per character of the GPT of examples/gpt.py on Tiny Shakespeare."""
    found = [
        r for r in results.read("text", folder)
        if (r["steps"], r["part"], r["size"]) == (2000, 1.0, 128)
        and str(r["text"]).endswith("tinyshakespeare.txt")
    ]  # fmt: skip
    rows = []
    order = "float", "bitnet", "quantnet"
    setting = lambda r: (
        r["method"], r["learning_rate"], r.get("block_rate", r["learning_rate"])
    )  # fmt: skip
    settings = {setting(r) for r in found}
    for method, *rates in sorted(settings, key=lambda x: (order.index(x[0]), x[1:])):
        same = [r for r in found if setting(r) == (method, *rates)]
        runs = {r["seed"]: r for r in same}.values()
        of = lambda score, runs=runs: columns.mean_std([r[score] for r in runs])
        ratio = statistics.mean(r["bytes"] / r["float bytes"] for r in runs)
        scores = of("soft"), of("hard"), of("gap")
        about = method, *(f"{rate:g}" for rate in rates), str(len(runs))
        rows.append((*about, *scores, f"{ratio:.3f}"))
    head = ("weights", "learning rate", "of the blocks", "seeds", "soft", "hard", "gap")
    return markdown((*head, "file / float32"), rows, "xrrrrrrr") if rows else "not run"


# Inference ----------------------------------------------------------------------------
def latency(folder: pathlib.Path) -> str:
    """Milliseconds of every program, and over our float one."""
    found = last("latency", folder)
    places = {
        f"batch {n}, {run['threads']} thread{'s'[: run['threads'] - 1]}": batch["rows"]
        for run in found["runs"]
        for n, batch in run["batches"].items()
    }
    cell = lambda row: f"{1e3 * row['median']:.2f} ({row['over_float']:.2f})"
    rows = [
        (name, *(cell(x[name]) if name in x else "not run" for x in places.values()))
        for name in found["rows"]
    ]
    versions = ", ".join(
        f"{k} {v}" for k, v in found["versions"].items()
        if k in ("jax", "onnxruntime", "torch")
    )  # fmt: skip
    programs = "\n".join(f"- {name}: {what}." for name, what in found["rows"].items())
    return (
        f"{markdown(('program', *places), rows, 'xrrrr')}\n\n{programs}\n\n"
        f"{found['network']}, {found['cpu']['model']}, {found['cores']} cores; "
        f"{versions}; medians of {found['repeats']} interleaved rounds."
    )


def first_prediction(folder: pathlib.Path) -> str:
    """Seconds of a new process until its first prediction."""
    found = last("first_prediction", folder)
    rows = [
        (name, f"{x['median']:.2f}", *(f"{v:.2f}" for v in x["parts"].values()))
        for name, x in found["networks"].items()
    ]
    head = ("network", "whole process, s", "import", "load", "predict")
    return markdown(head, rows, "xrrrr")


def popcount(folder: pathlib.Path) -> str:
    """The binary convolution over the float one, by instruction set."""
    found = {
        "AVX-512 CPU, AVX2 only" if "AVX2" in r["xla_flags"] else "VPOPCNTDQ": r
        for r in results.read("popcount", folder)
    }
    rows = []
    for instructions, record in found.items():
        others = record.get("lce", {}).get("shapes", {})
        for shape, x in record["shapes"].items():
            times = [f"{1e3 * x[k]['median']:.3f}" for k in ("float", "binary")]
            lce = f"{others[shape]['lce_over_binary']:.1f}" if shape in others else ""
            rows.append((shape, instructions, *times, f"{x['speedup']:.1f}", lce))
    head = ("pixels x channels", "instructions", "float, ms", "binary, ms")
    return markdown((*head, "speedup", "LCE over binary"), rows, "xxrrrr")


def decode(folder: pathlib.Path) -> str:
    """JPEGs that one core decodes and crops."""
    found = last("decode", folder)
    rates = found["images_per_second_per_core"]
    rows = [(name, f"{rate:.0f}") for name, rate in rates.items() if rate]
    about = (
        f"{found['images']} images of ImageNet to {found['size']} x {found['size']} "
        f"pixels; medians of {found['repeats']} interleaved rounds."
    )
    return f"{markdown(('decoder', 'images/s a core'), rows, 'xr')}\n\n{about}"


# Several devices ----------------------------------------------------------------------
def _of_networks(folder: pathlib.Path, head: str, cells: Callable) -> str:
    sent = last("collectives", folder)["networks"]
    rows = [
        (network, place, *cells(row))
        for network, places in sent.items()
        for place, row in places.items()
    ]
    titles = ("network", "runner", *head.split("; "))
    return markdown(titles, rows, "xx" + "r" * len(titles))


def state(folder: pathlib.Path) -> str:
    """Bytes of the training state on one device."""

    def cells(row):
        whole, part = row["state"], row["state_on_a_device"]
        return f"{whole / 1e6:.3f}", f"{part / 1e6:.3f}", f"{part / whole:.3f}"

    return _of_networks(folder, "state, MB; on a device, MB; fraction", cells)


def collectives(folder: pathlib.Path) -> str:
    """Bytes that one step sends, from the compiled programs."""

    def cells(row):
        expected, kinds = row["expected"], row["bytes"]
        sizes = {k: v["bytes"] for k, v in kinds.items()}
        gathered = sizes.get("all-gather", 0)
        statistics = expected["statistics"] + expected["statistics_gradients"]
        return (
            *(f"{x / 1e6:.3f}" for x in (expected["gradients"], statistics)),
            f"{sizes['all-reduce'] / 1e6:.3f}",
            f"{row['over_expected']:.4f}",
            f"{gathered / 1e6:.3f}" if gathered else "0",
            str(sum(v["operations"] for v in kinds.values())),
        )

    head = "gradients, MB; statistics, MB; all-reduce, MB; over expected; "
    return _of_networks(folder, head + "all-gather, MB; operations", cells)


BLOCKS: dict[str, Callable[[pathlib.Path], str]] = {
    "summary": summary,
    "claim": claim,
    "effects": effects,
    "not run": not_run,
    "cards": cards,
    "networks": networks,
    "mismatch": mismatch,
    "text": text,
    "latency": latency,
    "first prediction": first_prediction,
    "popcount": popcount,
    "decode": decode,
    "state": state,
    "collectives": collectives,
}
