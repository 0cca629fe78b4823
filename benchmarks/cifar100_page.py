"""Writes docs/results.md and its charts from the results of the CIFAR protocols."""

import math
import pathlib
import statistics

from benchmarks import cifar100_plan, mismatch_page
from benchmarks.cifar100_charts import charts
from benchmarks.cifar100_plan import Result, choice, final_run, result, search_runs
from benchmarks.gap_page import line, mean_std
from benchmarks.protocol_rows import FLOAT, PLAIN_STE
from benchmarks.protocols import PROTOCOLS, Protocol
from benchmarks.runs import read
from quantnet_jax import zoo

ROOT = pathlib.Path(__file__).resolve().parents[1]
KINDS = ("soft", "hard", "hard_bn")
COLUMNS = (
    *("row", "start", "rate", "soft", "hard", "hard + BN", "soft - (hard + BN)"),
    *("quantnet - row", "minutes"),
)
HEAD = """\
# Results on CIFAR

Written by `benchmarks/cifar100.py table` from the JSON of every run under `results/`.

- soft: test accuracy in percent with the weights that training differentiates. hard:
  with the weights that ship. BN: its statistics re-estimated on training images for
  the hard weights. After the last epoch (or the mean of the last ones, where a protocol
  says so), never the best one. Mean and standard deviation over the seeds.
- start, rate: searched for every row alike, on held-out training images, with one seed
  and shorter runs: from scratch (annealed quantizers begin nearly linear) and from a
  float network within the same total of epochs, each with every learning rate.
  '(edge)': the first or the last rate of the list: a better one may lie outside.
- quantnet - row: difference of the mean hard + BN accuracies, and its standard error
  over the seeds.
- minutes: of one final run, with compilation and its evaluations; of a warm start
  without the float network, which all rows share.
- Every method is our own implementation; see [quantizers](quantizers.md). The family on
  the bundled images: [results/gap_table](../results/gap_table/bundled/README.md).
"""


def write(results: pathlib.Path, page: pathlib.Path) -> list[pathlib.Path]:
    """Writes the page, and its charts beside it; the paths of what was written."""
    page.parent.mkdir(parents=True, exist_ok=True)
    folder = page.parent / page.stem
    written = []
    for name, svg in charts(results).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(svg)
        written.append(folder / name)
    page.write_text(text(results, page.stem))
    return [*written, page]


def text(results: pathlib.Path, charts_in: str = "results") -> str:
    """The page.

    Args:
      results: with a folder for each data set.
      charts_in: folder of the charts, relative to the page.
    """
    found = [HEAD]
    drawn = charts(results)
    missing = []
    for data in ("cifar100", "cifar10"):
        for name, protocol in PROTOCOLS.items():
            folder = results / data / name
            if not any(folder.glob("*/*.json")):
                missing += [name] if data == "cifar100" else []
                continue
            title = protocol.title.replace(
                "CIFAR-100", data.upper().replace("R1", "R-1")
            )
            found += [f"## {name if data == 'cifar100' else f'{name} ({data})'}\n"]
            found += [title + ".\n", *section(name, protocol, folder)]
            pictures = [x for x in drawn if x.startswith(f"{data}_{name}_")]
            found += [f"![{x}]({charts_in}/{x})" for x in pictures] + [""]
    found += ["## Gradient mismatch\n", mismatch_page.text(results)]
    found += ["## Networks that ship\n", *zoo_table(), ""]
    found += ["## Not run\n"]
    rest = [f"- `{name}`: {PROTOCOLS[name].title}." for name in missing]
    found += rest or ["Every protocol has results above; rows without are marked."]
    return "\n".join(found) + "\n"


def zoo_table() -> list[str]:
    """What `quantnet_jax.load("zoo:NAME")` knows."""
    lines = ['`quantnet_jax.load("zoo:NAME")`, `python -m quantnet_jax.zoo`:\n']
    lines += line(("name", "method", "bits", "network", "data", "accuracy", "bytes"))
    for name, x in zoo.entries().items():
        about = (x["method"], str(x["bits"]), x["network"], x["data"])
        cells = (f"`{name}`", *about, f"{100 * x['accuracy']:.2f}", f"{x['bytes']:,}")
        lines += line(cells, head=False)
    return lines


# One protocol -------------------------------------------------------------------------
def section(name: str, protocol: Protocol, folder: pathlib.Path) -> list[str]:
    """The lines of one protocol, without its title."""
    finals = {row: final_results(protocol, folder, row) for row in protocol.rows}
    every = [r for found in finals.values() for r in found]
    all_runs = [r for p in sorted(folder.glob("*/*.json")) if (r := read(p))]
    lines = [*about(name, protocol, every or all_runs), *line(COLUMNS)]
    for row in protocol.rows:
        lines += line(cells(protocol, folder, row, finals), head=False)
    lines += ["", *verdict(protocol, finals)]
    for what, accuracy in protocol.published.items():
        lines.append(f"Published for this protocol, {what}: {accuracy:.2f}.  ")
    lines += ["", *search_table(protocol, folder), ""]
    return lines


def about(name: str, protocol: Protocol, found: list[Result]) -> list[str]:
    """What the numbers are: layers, lengths, device, command."""
    devices = sorted(
        {f"{r['device']} ({r['cores']} cores)" for r in found if "device" in r}
    )
    epochs = " or ".join(
        f"{s.name}: {f'{s.float_epochs:g} float + ' if s.float_epochs else ''}"
        f"{s.epochs:g}"
        for s in protocol.starts
    )
    last = (
        f"mean of the last {protocol.last} epochs"
        if protocol.last > 1
        else "last epoch"
    )
    where = "held-out training" if protocol.score_held_out else "test"
    planned = sorted({r["settings"]["epochs"] for r in found})
    seeds = ", ".join(map(str, protocol.seeds))
    return [
        f"Quantized: {protocol.layers}. Epochs: {epochs} (of the runs here: "
        f"{', '.join(f'{e:g}' for e in planned)}). Seeds {seeds}; accuracy on {where} "
        f"images, {last}.",
        f"Device: {'; '.join(devices) or 'none'}. "
        f"Command: `python benchmarks/cifar100.py run --protocol {name} "
        "--folder=FOLDER`.\n",
    ]


def final_results(protocol: Protocol, folder: pathlib.Path, row: str) -> list[Result]:
    """The final runs of a row that there are."""
    runs = [final_run(protocol, folder, row, seed) for seed in protocol.seeds]
    return [r for r in (result(folder, run) for run in runs) if r]


def accuracy(result: Result, key: str, last: int) -> float:
    """In percent: after the last epoch, or the mean of the last evaluations."""
    if last == 1:
        return 100 * result[key]
    return 100 * statistics.mean(r[key] for r in result["curve"][-last:])


def values(protocol: Protocol, found: list[Result], key: str) -> list[float]:
    """Accuracies of the runs that did not diverge."""
    good = [r for r in found if not r.get("diverged")]
    return [accuracy(r, key, protocol.last) for r in good]


def cells(
    protocol: Protocol, folder: pathlib.Path, row: str, finals: dict[str, list[Result]]
) -> list[str]:
    """A line of the table."""
    chosen = choice(protocol, folder, row)
    start, rate = (chosen[0].name, f"{chosen[1]:g}") if chosen else ("", "")
    rates = protocol.rates_of(protocol.rows[row].like or row)
    if chosen and chosen[1] in (rates[0], rates[-1]):
        rate += " (edge)"
    found = finals[row]
    name = escaped(row)
    if not found:
        return [name, start, rate, "not run", *[""] * 5]
    scores = {key: values(protocol, found, key) for key in KINDS}
    if not scores["soft"]:
        return [name, start, rate, f"diverged ({len(found)})", *[""] * 5]
    lost = len(found) - len(scores["soft"])
    pairs = zip(scores["soft"], scores["hard_bn"], strict=True)
    counted = f" ({len(found)} of {len(protocol.seeds)} seeds)"
    shown = [mean_std(scores[key]) for key in KINDS]
    shown[0] += counted if len(found) < len(protocol.seeds) else ""
    shown[0] += f" ({lost} diverged)" if lost else ""
    ours = values(protocol, finals.get("quantnet", []), "hard_bn")
    ahead = "" if row == "quantnet" else difference(ours, scores["hard_bn"])
    minutes = statistics.mean(r["seconds"] / 60 for r in found)
    gap = mean_std([a - b for a, b in pairs])
    return [name, start, rate, *shown, gap, ahead, f"{minutes:.1f}"]


def escaped(row: str) -> str:
    """A row's name in a table, where | would end a cell."""
    return row.replace("|", "\\|")


def difference(a: list[float], b: list[float]) -> str:
    """'+1.20 ± 0.30': of the means, with its standard error; '' without values."""
    if not a or not b:
        return ""
    text = f"{statistics.mean(a) - statistics.mean(b):+.2f}"
    if min(len(a), len(b)) < 2:
        return text
    error = math.sqrt(sum(statistics.variance(x) / len(x) for x in (a, b)))
    return f"{text} ± {error:.2f}"


def verdict(protocol: Protocol, finals: dict[str, list[Result]]) -> list[str]:
    """Whether float > quantnet > tanh_sign > tuned STE, in numbers.

    Of a ladder: the best row of each method.
    """
    means = {}
    for row in protocol.rows:
        found = values(protocol, finals[row], "hard_bn")
        if found and len(finals[row]) == len(protocol.seeds):
            means[row] = statistics.mean(found)
    if protocol.score_held_out:
        by_method: dict[str, list[str]] = {}
        for row in means:
            by_method.setdefault(protocol.rows[row].method, []).append(row)
        best_of = [max(rows, key=means.__getitem__) for rows in by_method.values()]
        shown = ", ".join(f"{escaped(r)} {means[r]:.2f}" for r in best_of)
        return [f"Best row of each method: {shown}.  "]
    stes = [r for r in means if r.removesuffix(", Adam") in PLAIN_STE]
    if "quantnet" not in means or not stes:
        return ["Order: not yet complete.  "] if "clipped_ste" in protocol.rows else []
    best = max(stes, key=means.__getitem__)
    order = [r for r in (FLOAT, "quantnet", "tanh_sign") if r in means] + [best]
    holds = all(means[a] > means[b] for a, b in zip(order, order[1:], strict=False))
    shown = ", ".join(f"{r} {means[r]:.2f}" for r in order)
    ahead = means["quantnet"] - means[best]
    others = [r for r in means if r not in (FLOAT, "quantnet")]
    strongest = max(others, key=means.__getitem__)
    text = [
        f"Order float > quantnet > tanh_sign > tuned STE (the best one of "
        f"{', '.join(stes)}): **{'holds' if holds else 'does not hold'}** ({shown}).  ",
        f"QuantNet minus tuned STE: **{ahead:+.2f}** points. The best other row is "
        f"{strongest}: {means[strongest]:.2f}.  ",
    ]
    if FLOAT in means:
        text.append(f"QuantNet minus float: {means['quantnet'] - means[FLOAT]:+.2f}.  ")
    return text


def search_table(protocol: Protocol, folder: pathlib.Path) -> list[str]:
    """The accuracies by which starts and rates were chosen, folded away."""
    lines = [
        "<details><summary>Search: hard + BN on "
        f"{protocol.validation_size:,} held-out training images, "
        f"{protocol.search:g} of the length, seed {protocol.seeds[0]}</summary>\n"
    ]
    lines += line(("row", "start", "accuracy at each rate"))
    for row in protocol.rows:
        by_start: dict[str, list[str]] = {}
        for run in search_runs(protocol, row):
            assert run.start is not None
            shown = search_cell(result(folder, run))
            by_start.setdefault(run.start.name, []).append(f"{run.rate:g}: {shown}")
        for start, shown in by_start.items():
            lines += line((row, start, ", ".join(shown)), head=False)
    return [*lines, "\n</details>"]


def search_cell(result: Result | None) -> str:
    """One run of the search."""
    if result is None:
        return "not run"
    if result.get("diverged"):
        return "diverged"
    return f"{100 * cifar100_plan.score(result):.2f}"
