"""FQSR and QuantNet in a small EDSR: all of a network that doubles images quantized."""

from typing import Any

from configs import super_resolution
from quantnet_jax.experiments.study import FLOAT, Initialization, Row, Study
from sweeps import common

CLIP, ACTIVATION = "quantizer.learned_clip.", "activation.learned_clip."
CALIBRATION = 0.3
"""Weight of the calibration loss."""
BASE = "float, trained on"
"""The float network of as many steps as the others have in total."""


def base():
    c = common.single(super_resolution.get_config)()
    c.activation.name, c.optimizers = "", ()  # as of the float rows
    return c


def at(
    bits: int,
    method: str = "learned_clip",
    *,
    calibrates: str = "clip",
    skips: int | None = 0,
) -> Row:
    """Weights, inputs and residual sums at a width.

    Args:
      bits: of all of it.
      method: quantizer of the weights.
      calibrates: what the calibration loss of weights and activations moves: 'clip',
        'both' or ''.
      skips: bits of the terms of residual sums, 0 for `bits`, None for float ones.
    """
    changes: dict[str, Any] = {"activation.name": "learned_clip"}
    changes["optimizers"] = super_resolution.get_config().optimizers
    changes |= {f"quantizer.{method}.bits": bits, f"{ACTIVATION}bits": bits}
    for section in (ACTIVATION, CLIP):
        changes[f"{section}calibration"] = CALIBRATION if calibrates else 0.0
        changes[f"{section}calibrates"] = calibrates or "both"
    if method == "quantnet":  # no normalization follows
        changes["quantizer.quantnet.scale"] = "mean_abs"
    if skips is None:
        changes["activation.sites"] = ("input", "rectified")
    elif skips:
        rules = ({"site": "rectified", "signed": False},)
        changes["activation.rules"] = (*rules, {"site": "residual", "bits": skips})
    return Row(method, changes)


def rows() -> dict[str, Row]:
    """The widths; at each of them without a part; QuantNet's weights."""
    found = {FLOAT: Row("identity")}
    found |= {f"{bits} bits": at(bits) for bits in (4, 8)}
    found[BASE] = Row("identity")
    found["2 bits"] = at(2)
    found["4 bits, not calibrated"] = at(4, calibrates="")
    found["4 bits, float sums"] = at(4, skips=None)
    found["quantnet, 4 bits"] = at(4, "quantnet")
    found["4 bits, sums 8 bits"] = at(4, skips=8)
    found["3 bits"] = at(3)
    found["4 bits, calibrated with activations"] = at(4, calibrates="both")
    for bits in (2, 3):
        found[f"{bits} bits, float sums"] = at(bits, skips=None)
        found[f"{bits} bits, not calibrated"] = at(bits, calibrates="")
    found["quantnet, 2 bits"] = at(2, "quantnet")
    found["quantnet, 4 bits, sums 8 bits"] = at(4, "quantnet", skips=8)
    found |= {
        x: r._replace(initialization="warm") for x, r in found.items() if x != FLOAT
    }
    for row in (BASE, "4 bits", "quantnet, 4 bits"):
        found[f"{row}, longer"] = found[row]._replace(initialization="longer")
    return found


STUDY = Study(
    "Set5 and Set14 twice as large, EDSR of 4 blocks and 16 channels, 200 BSDS images",
    "all layers, first and last too",
    common.earlier,
    base,
    rows(),
    (Initialization("warm", 120.0, 40.0), Initialization("longer", 120.0, 120.0)),
    (1e-3,),
    float_initializations=common.scratch(120.0),
    search=0.01,  # there is nothing to choose
    validation_size=20,
    seeds=(0,),
    eval_every=0.0,
    jobs=1,
    xla_flags=common.CPU_FLAGS,
    columns=("soft", "hard", "minutes"),
)
