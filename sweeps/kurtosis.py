"""BD-BNN: what a kurtosis target does to weights, and to accuracy (sign with EDE)."""

from quantnet_jax.experiments.grid import Row
from sweeps import common


def toward(target: float) -> Row:
    """IR-Net's sign with EDE, and latent weights of that kurtosis."""
    return Row("irnet", {"terms": ({"name": "kurtosis", "target": target},)})


STUDY = common.quick(
    "BD-BNN's kurtosis term beside IR-Net's sign with EDE, ResNet-8 of width 8",
    {"irnet": Row("irnet")}
    | {f"irnet, kurtosis {t}": toward(t) for t in (1.8, 1.4, 1.2)}
    | {"quantnet": Row("quantnet")},
    columns=("hard + BN", "soft", "hard", "kurtosis", "quantnet - row"),
)
