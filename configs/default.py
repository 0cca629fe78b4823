"""QuantNet on the bundled images: a small ResNet-8, all but stem and head binary.

Command:   python train.py
Hardware:  one or two CPU cores, about 2 minutes
Accuracy:  soft 89.4, hard 89.4, gap 0.0, float 89.8 (three seeds; docs/studies.md),
           with a sharpness from 0.3 to 10 until 0.9, the recipe of that time

Schedule, unit and learning rates were chosen on validation images, see docs/studies.md.
"""

from quantnet_jax.config import base


def get_config(variant: str = ""):
    c = base()
    c.epochs = 20.0
    c.batch_size = 64
    c.model.name = "resnet8"
    c.model.width = 16
    c.model.shortcut = "A"
    c.model.stem_strides = 2

    c.weights.learning_rate = 0.1
    c.meta.learning_rate = 3e-4

    if variant == "runlocal":  # seconds instead of minutes, to try things out
        c.epochs = 2.0
        c.data.train_size, c.data.test_size = 500, 200
        c.model.width = 4
        c.recalibration_batches = 5
        c.export = False
    elif variant:
        raise ValueError(f"unknown variant {variant!r}, expected '' or 'runlocal'")
    return c
