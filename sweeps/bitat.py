"""BiTAT on a separable network: plain signs, layer by layer, with feedback."""

from quantnet_jax.experiments.study import Row
from sweeps import common

BLOCKS = 5
SIGN = {"activation.name": "approx_sign"}


def moving_average(pattern: str) -> tuple[dict, ...]:
    """The optimizer of state whose "gradient" is its distance from what it follows."""
    plain = {"optimizer": "sgd", "schedule": "constant", "learning_rate": 0.05}
    return ({"pattern": pattern, **plain, "momentum": 0.0, "weight_decay": 0.0},)


FOLLOW = {
    "terms": ({"name": "input_correlation"},),
    "optimizers": moving_average("quant/.*correlation"),
}
"""A moving average of the input correlations."""


def by_layer(until: float = 0.5) -> dict:
    """One block after another becomes binary, the first one at the start."""
    turn = lambda i: {
        "schedule": "piecewise",
        "start": 0.0,
        "boundaries": ((until * i / (BLOCKS - 1), 1.0),),
    }
    rows = [
        {"pattern": f"block{i}/.*kernel", "quantizer": "bitat", "amount": turn(i)}
        for i in range(1, BLOCKS)
    ]
    return {"rules": tuple(rows)}


STUDY = common.quick(
    "BiTAT on a MobileNet of width 8, bundled images, W1A32 and W1A1",
    {
        "binary_ste": Row("binary_ste"),
        "bitat": Row("bitat", FOLLOW),
        "bitat, by layer": Row("bitat", FOLLOW | by_layer()),
        "signs, by layer": Row("bitat", by_layer()),
        "quantnet": Row("quantnet"),
        "W1A1 binary_ste": Row("binary_ste", SIGN),
        "W1A1 bitat": Row("bitat", FOLLOW | SIGN),
        "W1A1 bitat, by layer": Row("bitat", FOLLOW | by_layer() | SIGN),
    },
    changes={
        "model.name": "mobilenet",
        "model.shortcut": None,
        "model.stem_strides": 2,
    },
)
