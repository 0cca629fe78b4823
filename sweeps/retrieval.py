"""QGait's way on silhouettes: embeddings of Omniglot, alphabets held out."""

from quantnet_jax.experiments.study import Row
from sweeps import common
from sweeps.soft_round import at, quantnet, rows

CALIBRATED = {"terms": ({"name": "distance_calibration", "weight": 0.5},)}


def both(bits: int) -> dict[str, Row]:
    """Of a width, with calibration too."""
    staged = at(bits, 0.0, 4.0)
    calibrated = staged._replace(changes={**staged.changes, **CALIBRATED})
    return rows(bits) | {f"two stages, calibrated, {bits} bits": calibrated}


STUDY = common.quick(
    "Retrieval of Omniglot's characters (rank-1), held-out alphabets, ResNet-8",
    {"float": Row("identity")} | both(8) | both(4) | quantnet(4),
    changes={
        "data.name": "omniglot",
        "data.flip": False,
        "task.name": "retrieval",
        "batch_size": 128,
        "eval_batch_size": 2120,
    },
)._replace(
    initializations=(common.Initialization("warm", 20.0, 10.0),),
    float_initializations=common.scratch(20.0),
    validation_size=400,
)
