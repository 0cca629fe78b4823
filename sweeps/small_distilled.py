"""Every member distilled from its float twin, on 20 classes that chose nothing.

The settings are those of `small_claim`; the weight of the distillation is what
`small_levers` found to be best, for QuantNet and for DoReFa.
"""

from quantnet_jax.experiments.study import FLOAT
from sweeps import rows, small_claim


def base():
    """Classes 60 to 79; no study trained or chose anything on them before."""
    c = small_claim.base()
    c.data.first_class = 60
    return c


def _rows():
    claim = rows.claim()
    of = {n: claim[n] for n in rows.SMALL_TUNED if n != FLOAT}
    found = {FLOAT: claim[FLOAT], "quantnet": of.pop("quantnet")} | of
    found = {n: r if n == FLOAT else rows.distilled(r) for n, r in found.items()}
    return found | {"quantnet, not distilled": claim["quantnet"]}


STUDY = small_claim.STUDY._replace(
    title="20 more classes of CIFAR-100 (labels 60 to 79; 10,000 + 2,000 test images), "
    "ResNet-8 of width 16 with a stem of stride 2, batch 64, 20 epochs, each member "
    "distilled from the float network, by fixed settings",
    base=base,
    rows=_rows(),
    seeds=tuple(range(3)),
)
