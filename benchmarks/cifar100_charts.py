"""Charts of the CIFAR protocols: accuracy and gap over the epochs of one run each."""

import pathlib
from collections.abc import Callable, Iterable, Iterator

from benchmarks import curves
from benchmarks.cifar100_plan import Result, final_run, result
from benchmarks.protocol_rows import FLOAT
from benchmarks.protocols import PROTOCOLS, Protocol
from benchmarks.runs import slug

ROWS = (FLOAT, "quantnet", "tanh_sign", "clipped_ste")
ANNEALED = ("quantnet", "tanh_sign")


def charts(results: pathlib.Path) -> dict[str, str]:
    """{file name: SVG} of the first seed of the key rows of every protocol."""
    found = {}
    for data in ("cifar100", "cifar10"):
        for name, protocol in PROTOCOLS.items():
            folder = results / data / name
            for what, svg in protocol_charts(protocol, folder):
                found[f"{data}_{slug(name)}_{what}.svg"] = svg
    return found


def protocol_charts(
    protocol: Protocol, folder: pathlib.Path
) -> Iterator[tuple[str, str]]:
    """Accuracy, and gap, over the epochs of a run."""
    rows = [r for r in ROWS if r in protocol.rows]
    accuracies, gaps = [], []
    for n, row in enumerate(rows):
        found = result(folder, final_run(protocol, folder, row, protocol.seeds[0]))
        curve = (found or {}).get("curve", [])
        if not curve:
            continue
        annealed = row in ANNEALED
        kinds = ("soft", "hard_bn") if annealed else ("hard",)
        for key in kinds:
            shown = f"{row}, {key.replace('_bn', ' + BN')}" if annealed else row
            points = points_of(curve, lambda r, key=key: 100 * r[key])
            accuracies.append(curves.Line(shown, points, n, key == "soft"))
        if annealed:
            for key, label in (("hard", "hard"), ("hard_bn", "hard + BN")):
                points = points_of(curve, lambda r, key=key: 100 * (r["soft"] - r[key]))
                shown = f"{row}: {label}"
                gaps.append(curves.Line(shown, points, n, key == "hard"))
    seed = protocol.seeds[0]
    if accuracies:
        yield "accuracy", curves.chart(f"Accuracy in percent, seed {seed}", accuracies)
    if gaps:
        title = f"Soft minus hard in points, seed {seed}"
        yield "gap", curves.chart(title, gaps)


def points_of(curve: Iterable[Result], value: Callable) -> list[tuple[float, float]]:
    """(epoch, value) of every evaluation."""
    return [(r["epoch"], value(r)) for r in curve]
