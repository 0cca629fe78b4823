"""AUSN in training: superposed powers of two beside uniform levels, 3 and 4 bits."""

from quantnet_jax.experiments.study import Row
from sweeps import common


def of(method: str, bits: int) -> Row:
    """A member at a width."""
    return Row(method, {f"quantizer.{method}.bits": bits})


STUDY = common.quick(
    "AUSN's superposed levels beside LSQ's, ResNet-8, width 8, bundled images",
    {
        f"{method}, {bits} bits": of(method, bits)
        for bits in (3, 4)
        for method in ("lsq", "ausn", "quantnet")
    },
    columns=("bits", "soft", "hard", "hard + BN", "off grid"),
    changes={"meta.learning_rate": 1e-3},
)
