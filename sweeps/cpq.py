"""CPQ and DropBits: do weights gather on the grid, and what do learned widths buy?"""

from quantnet_jax.experiments.study import Row
from sweeps import common


def of(method: str, bits: int, **more) -> Row:
    """A member at a width."""
    options = {"bits": bits} | more
    return Row(method, {f"quantizer.{method}.{k}": v for k, v in options.items()})


def learned(price: float) -> Row:
    """DropBits at a price. Four epochs decide its masks at three times the rate.

    At 1e-2 they did not reach zero, at any price.
    """
    row = of("dropbits", 4, weight=price)
    return row._replace(changes={**row.changes, "meta.learning_rate": 3e-2})


STUDY = common.quick(
    "CPQ, RQ, learned widths (DropBits), LSQ: ResNet-8, width 8, bundled images",
    {f"lsq, {b} bits": of("lsq", b) for b in (2, 3, 4)}
    | {f"cpq, {b} bits": of("cpq", b) for b in (2, 3, 4)}
    | {f"dropbits, price {w:g}": learned(w) for w in (0.01, 0.03, 0.1)}
    | {"rq, 2 bits": of("rq", 2), "rq-st, 2 bits": of("rq", 2, straight=True)}
    | {"quantnet, 2 bits": of("quantnet", 2)},
    columns=("learning rate", "bits", "kB", "off grid", "soft", "hard", "hard + BN"),
    changes={"meta.learning_rate": 1e-2},
    learning_rates=(0.03, 0.1, 0.3),
    search=0.25,
    jobs=1,
)
