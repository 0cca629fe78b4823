"""FQSR and QuantNet in a small EDSR: all of a network that doubles images quantized."""

from typing import Any

from configs import super_resolution
from quantnet_jax.experiments.grid import FLOAT, Initialization, Row, Study
from sweeps import common

CLIP, ACTIVATION = "quantizer.learned_clip.", "activation.learned_clip."
CALIBRATION = 0.3
"""Weight of the calibration loss."""


def base():
    c = common.single(super_resolution.get_config)()
    c.activation.name, c.optimizers = "", ()  # as of the float rows
    return c


def at(
    bits: int,
    method: str = "learned_clip",
    *,
    calibrated: bool = True,
    skips: int | None = 0,
) -> Row:
    """Weights, inputs and residual sums at a width.

    Args:
      bits: of all of it.
      method: quantizer of the weights.
      calibrated: with the calibration loss, of weights and activations.
      skips: bits of the terms of residual sums, 0 for `bits`, None for float ones.
    """
    changes: dict[str, Any] = {"activation.name": "learned_clip"}
    changes["optimizers"] = super_resolution.get_config().optimizers
    changes |= {f"quantizer.{method}.bits": bits, f"{ACTIVATION}bits": bits}
    weight = CALIBRATION if calibrated else 0.0
    changes[f"{ACTIVATION}calibration"] = weight
    if method == "learned_clip":
        changes[f"{CLIP}calibration"] = weight
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
    found |= {f"{bits} bits": at(bits) for bits in (4, 8, 3, 2)}
    found["float, trained on"] = Row("identity")
    found["4 bits, sums 8 bits"] = at(4, skips=8)
    for bits in (4, 2, 3):
        found[f"{bits} bits, float sums"] = at(bits, skips=None)
        found[f"{bits} bits, not calibrated"] = at(bits, calibrated=False)
        if bits in (4, 2):
            found[f"quantnet, {bits} bits"] = at(bits, "quantnet")
    return found


STUDY = Study(
    "Set5 and Set14 twice as large, EDSR of 4 blocks and 16 channels, 200 BSDS images",
    "all layers, first and last too",
    common.configure,
    base,
    rows(),
    (Initialization("warm", 120.0, 40.0),),
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
