"""The table of the gradient mismatch, from results/mismatch.json."""

import pathlib
from typing import Any

from benchmarks.gap_page import line
from benchmarks.runs import read

FILE = "mismatch.json"
COMMAND = "`python benchmarks/mismatch.py`"
NOTES = """\
Cosine of the gradient g that a method uses for its latent weights and the gradient of
the loss that it trains, smoothed: G = the gradient of E L(w + s z), z normal, s in
units of each kernel's root mean square. L is the loss of the method's own forward pass
(soft weights for QuantNet and tanh_sign, hard weights for the straight-through members,
whose L is piecewise constant and has no other gradient than the smoothed one), penalty
included. 1 means that there is no mismatch. The last lines of soft members compare the
same g with the smoothed loss of the hard weights, which is what ships. ± is the
standard error of the estimate, from {directions} antithetic directions, which may
exceed 1 by it; 'noise' where |G| is too short to be told from zero."""
KINDS = {
    "own_small": "own loss, s = {small}",
    "own_large": "own loss, s = {large}",
    "hard_large": "hard loss, s = {large}",
}


def text(results: pathlib.Path) -> str:
    """Markdown of the measurement; says so where it was not run."""
    found = read(results / FILE)
    if found is None:
        return f"Not run: {COMMAND}.\n"
    methods = found["methods"]
    fractions = [p["fraction"] for p in next(iter(methods.values()))["points"]]
    head = ["method", "loss", *(f"{f:.0%} of training" for f in fractions)]
    lines = [
        NOTES.format(directions=found["directions"]),
        f"\nNetwork: {found['network']}, {found['epochs']:g} epochs; loss on "
        f"{found['images']} training images. Device: {found['device']}. "
        f"Command: {COMMAND}.\n",
        *line(head),
    ]
    for name, method in methods.items():
        for kind, label in KINDS.items():
            if kind == "hard_large" and method["loss"] == "hard":
                continue  # the same as its own
            shown = [cell(p[kind]) for p in method["points"]]
            row = [name, label.format(**found["spreads"]), *shown]
            lines += line(row, head=False)
    return "\n".join(lines) + "\n"


def cell(estimate: dict[str, Any]) -> str:
    """'0.98 ± 0.02'."""
    value, error = estimate["cosine"], estimate["error"]
    if value is None or error is None or error > 0.5:
        return "noise"
    return f"{value:.2f} ± {error:.2f}"
