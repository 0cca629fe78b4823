"""QGait's soft quantizer: from the start, in two stages, or not at all."""

from quantnet_jax.experiments.study import Row
from sweeps import common


def at(bits: int, before: float, after: float) -> Row:
    """Weights and activations; k before and after half of the run."""
    k = {"schedule": "piecewise", "start": before, "boundaries": ((0.5, after),)}
    both = ("quantizer.soft_round.", "activation.soft_round.")
    changes = {f"{section}bits": bits for section in both}
    changes |= {f"{section}k": k for section in both}
    return Row("soft_round", changes | {"activation.name": "soft_round"})


def rows(bits: int) -> dict[str, Row]:
    """Straight-through, soft from the start, in two stages; more of it."""
    stages = {"STE": (0.0, 0.0), "soft": (4.0, 4.0), "two stages": (0.0, 4.0)}
    more = {"soft, k 8": (8.0, 8.0), "two stages, k 8": (0.0, 8.0)} if bits < 8 else {}
    return {f"{name}, {bits} bits": at(bits, *k) for name, k in (stages | more).items()}


def quantnet(bits: int) -> dict[str, Row]:
    """QuantNet for the weights, LSQ for the activations."""
    both = {"quantizer.quantnet.bits": bits, "activation.lsq.bits": bits}
    changes = both | {"activation.name": "lsq"}
    return {f"quantnet, {bits} bits": Row("quantnet", changes)}


STUDY = common.quick(
    "QGait's soft round, weights and activations: ResNet-8, width 8, bundled images",
    rows(3) | quantnet(3),
)
