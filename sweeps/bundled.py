"""The default configuration on the bundled images, beside its references."""

from configs import default
from quantnet_jax.experiments.study import Row, Study
from sweeps import common

STUDY = Study(
    "10,000 + 2,000 images of Fashion-MNIST, ResNet-8 of width 16, batch 64",
    common.INNER,
    common.earlier,
    default.get_config,
    {x: Row(x) for x in ("identity", "binary_ste", "tanh_sign", "quantnet")},
    common.scratch(20.0),
    (0.03, 0.1, 0.3, 1.0),
    search=1.0,
    validation_size=2000,
    eval_every=1.0,
    jobs=2,
    columns=("learning rate", "soft", "hard", "hard + BN", "soft - (hard + BN)"),
)
