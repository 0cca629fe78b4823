"""The tables of what is known by name: quantizers, and options of networks."""

import inspect
import pathlib
import re
from collections.abc import Mapping

from quantnet_jax import activations, models
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
        found[field] = re.split(r"(?<=[^\d ]\w)\. |\.$", words)[0]
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


def of_networks(folder: pathlib.Path) -> str:
    """Options of networks: a line for each, or for each range of one."""
    del folder
    found: dict[tuple[str, str], list[str]] = {}
    for name in models.names():
        for option, limit in models.options_of(name).items():
            found.setdefault((f"`model.{option}`", str(limit)), []).append(name)
    rows = []
    for key, having in sorted(found.items()):
        everywhere = len(having) == len(models.names())
        rows.append((*key, "all" if everywhere else ", ".join(having)))
    return markdown(("option", "what it may be", "networks"), rows)


BLOCKS = {
    "options of networks": of_networks,
    "quantizers of weights": of_weights,
    "quantizers of activations": of_activations,
}
