"""Trained networks that ship with the package: `quantnet_jax.load("zoo:NAME")`.

`index.json` records how each one was trained and evaluated; the files beside it
are artifacts as `python -m quantnet_jax.export` writes them.
"""

import json
import pathlib
from typing import Any

from quantnet_jax.common.names import nearest
from quantnet_jax.common.text import table

__all__ = ["entries", "listing", "path"]

PREFIX = "zoo:"
FOLDER = pathlib.Path(__file__).resolve().parent
INDEX = FOLDER / "index.json"


def entries() -> dict[str, dict[str, Any]]:
    """{name: entry}, sorted by name.

    An entry has 'file', 'sha256' and 'bytes' of the artifact; 'method', 'network',
    'bits' (of the quantized kernels), 'layers' (which ones, as in a configuration),
    'data'; 'accuracy' (a fraction of the 'examples' test images; what the artifact
    predicts, exactly); 'bn' (whether its BatchNorm statistics were re-estimated for the
    hard weights: then the accuracy is 'hard_bn' of the result, else 'hard'); 'warm'
    (whether training began from a trained float network); 'config'
    and 'result' of its run.
    """
    found = json.loads(INDEX.read_text(encoding="utf-8"))
    return dict(sorted(found.items()))


def path(name: str) -> pathlib.Path:
    """The file of an entry.

    Raises:
      ValueError: there is no such entry; with the nearest one.
    """
    known = entries()
    if name not in known:
        near = nearest(PREFIX + name, [PREFIX + known_name for known_name in known])
        raise ValueError(f"{PREFIX + name!r} is not in the zoo{near}")
    return FOLDER / known[name]["file"]


def listing() -> str:
    """A table: name, method, bits, network, data, accuracy, size."""
    headers = ("name", "method", "bits", "network", "data", "accuracy", "bytes")
    rows = [
        (
            *(name, entry["method"], entry["bits"], entry["network"], entry["data"]),
            *(f"{100 * entry['accuracy']:.2f}%", f"{entry['bytes']:,}"),
        )
        for name, entry in entries().items()
    ]
    return table(rows, headers, left=5)
