"""The tables of all quantizers in docs/quantizers.md, from their docstrings."""

import inspect
import pathlib
import re
from collections.abc import Mapping

from quantnet_jax import activations
from quantnet_jax.experiments.tables import markdown
from quantnet_jax.quantizers import MEMBERS, Member

FIELDS = ("Forward", "Backward", "Learned", "Reference", "Deviations")


def facts(member: Member) -> dict[str, str]:
    """{field: the first sentence after 'Field:'} of the docstring of a factory."""
    text = inspect.getdoc(member.factory) or ""
    found = {}
    for field in FIELDS:
        match = re.search(rf"^{field}: (.*?)(?=^\w+:|\n\n|\Z)", text, re.M | re.S)
        words = " ".join(match[1].split()) if match else ""
        found[field] = re.split(r"(?<=[^\d ]\w)\. |\.$|; (?=[a-z])", words)[0]
    if found["Learned"] == "none":
        found["Learned"] = ""
    return found


def table(members: Mapping[str, Member]) -> str:
    """The Markdown table of some members, one line each, in the order of the list."""
    head = ("name", "bits", *map(str.lower, FIELDS))
    rows = []
    for name, member in members.items():
        bits = member.bits
        width = f"{bits[0]}-{bits[-1]}" if len(bits) > 1 else str(*bits) or "float"
        rows.append((f"`{name}`", width, *facts(member).values()))
    return markdown(head, rows)


def of_weights(folder: pathlib.Path) -> str:
    """Quantizers of weights."""
    del folder
    return table(MEMBERS)


def of_activations(folder: pathlib.Path) -> str:
    """Quantizers of activations."""
    del folder
    return table(activations.MEMBERS)


BLOCKS = {
    "quantizers of weights": of_weights,
    "quantizers of activations": of_activations,
}
