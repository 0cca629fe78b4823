"""What the default configuration's options are worth, one factor at a time."""

from quantnet_jax.experiments.study import Row
from sweeps import bundled

Q, T = "quantizer.quantnet.", "quantizer.tanh_sign."
QUANTNET = {
    "default": {},
    "unit=weight, width=16": {Q + "unit": "weight", Q + "width": 16},
    "unit=filter": {Q + "unit": "filter", "share": "shape"},
    "unit=conv": {Q + "unit": "conv", Q + "width": 2, "share": "shape"},
    "skip=no": {Q + "skip": False},
    "penalty=0.1": {Q + "penalty.end": 0.1},
    "penalty=0.5": {Q + "penalty.end": 0.5},
    "sharpness to 5": {Q + "sharpness.end": 5.0},
    "sharpness to 20": {Q + "sharpness.end": 20.0},
    "sharpness from 1": {Q + "sharpness.start": 1.0},
    "meta rate=1e-3": {"meta.learning_rate": 1e-3},
    "meta rate=3e-3": {"meta.learning_rate": 3e-3},
}
TANH_SIGN = {
    "tanh_sign: penalty=0.1": {T + "penalty.end": 0.1},
    "tanh_sign: sharpness to 5": {T + "sharpness.end": 5.0},
    "tanh_sign: sharpness to 20": {T + "sharpness.end": 20.0},
    "tanh_sign: sharpness from 1": {T + "sharpness.start": 1.0},
}
STUDY = bundled.STUDY._replace(
    title=f"{bundled.STUDY.title}: one factor at a time",
    rows={
        name: Row(method, changes, like=method)
        for method, group in (("quantnet", QUANTNET), ("tanh_sign", TANH_SIGN))
        for name, changes in group.items()
    },
    search_from="bundled",
    validate=True,
    seeds=(0,),
    eval_every=10.0,
    columns=("soft", "hard", "hard + BN"),
)
