"""BD-BNN: a kurtosis target, a bimodal teacher; sign with EDE, from IR-Net."""

from typing import Any

from quantnet_jax.experiments.study import FLOAT, Initialization, Row
from sweeps import common

MIMIC = {"name": "weight_mimicking", "weight": 200.0}


def toward(target: float) -> dict[str, Any]:
    """The term that pulls latent weights to a kurtosis."""
    return {"name": "kurtosis", "target": target}


def of(*terms: dict[str, Any], initialization: str = "scratch") -> Row:
    """IR-Net's sign with EDE and terms of the loss."""
    return Row("irnet", {"terms": terms}, initialization=initialization)


STUDY = common.quick(
    "BD-BNN's terms beside IR-Net's sign with EDE, ResNet-8, width 8, bundled images; "
    "warm ones begin at a float network of kurtosis 1.4, the teacher",
    {"irnet": of(), FLOAT: Row("identity", {"terms": (toward(1.4),)})}
    | {f"kurtosis {t}": of(toward(t)) for t in (1.8, 1.4, 1.2)}
    | {
        "warm": of(initialization="warm"),
        "warm, kurtosis 1.4": of(toward(1.4), initialization="warm"),
        "warm, mimicking": of(toward(1.4), MIMIC, initialization="warm"),
        "quantnet": Row("quantnet", initialization="scratch"),
    },
    eval_every=1.0,  # flips are counted from one evaluation to the next
    columns=("hard + BN", "soft", "hard", "kurtosis", "flips", "quantnet - row"),
    initializations=(*common.scratch(4.0), Initialization("warm", 4.0, 4.0)),
    float_initializations=common.scratch(4.0),
)
