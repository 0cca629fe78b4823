"""The networks of super_resolution at x4, and SRResNet at x2, in 1,000 steps a row."""

from quantnet_jax.experiments.study import Row
from sweeps import common, super_resolution
from sweeps.super_resolution import BASE, at

NETWORKS = {
    "x4": {"data.name": "superres_x4"},
    "srresnet": {"model.name": "srresnet", "recalibration_batches": 20},
}


def rows() -> dict[str, Row]:
    """Float, and from it the same steps again: float, 4 bits, QuantNet's weights."""
    found = {}
    for name, changes in NETWORKS.items():
        first = f"{name}: float"
        found[first] = Row("identity", changes)
        others = {BASE: Row("identity"), "8 bits": at(8), "4 bits": at(4)}
        others["quantnet, 4 bits"] = at(4, "quantnet")
        for row, given in others.items():
            whole = {**given.changes, **changes}
            found[f"{name}: {row}"] = given._replace(changes=whole, start=first)
    return found


STUDY = super_resolution.STUDY._replace(
    title="Set5 and Set14 four times as large by EDSR, and twice by SRResNet, each of "
    "4 blocks and 16 channels, 200 BSDS images",
    rows=rows(),
    initializations=common.scratch(40.0),
    float_initializations=(),
)
