"""All members with equal care on the bundled images: under an hour on two CPU cores."""

from configs import default
from quantnet_jax.experiments.study import Study
from sweeps import common, rows


def base():
    c = default.get_config()
    c.model.width = 8
    c.layers = "inner"
    c.recalibration_batches = 20
    return c


STUDY = Study(
    "10,000 + 2,000 images of Fashion-MNIST, ResNet-8 of width 8, batch 64",
    common.INNER,
    common.earlier,
    base,
    rows.everything(),
    common.scratch(7.0),
    (0.03, 0.1, 0.3, 1.0),
    search=3 / 7,
    validation_size=2000,
    jobs=2,
    xla_flags=common.CPU_FLAGS,
    columns=(
        *("W/A", "learning rate", "soft", "hard", "hard + BN", "soft - hard"),
        *("soft - (hard + BN)", "levels", "bytes", "smaller", "step time"),
    ),
)
