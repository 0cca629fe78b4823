"""Twenty steps of a tiny network on synthetic images: does everything run?

Command:   python train.py --config=configs/smoke.py --workdir=runs/smoke
Hardware:  anything, seconds.
Expected:  no accuracy worth a word; exit code 0, a table, a report.
"""

from quantnet_jax.config import base, recipes


def get_config(variant: str = ""):
    c = base()
    c.epochs = 2.5  # of 8 steps
    c.batch_size = 32
    c.eval_batch_size = 40  # does not divide the 64 test images, on purpose
    c.data.name = "synthetic"
    c.data.pad = 1
    c.model.name = "small"
    c.model.width = 4
    c.recalibration_batches = 2
    c.log_every = 5
    c.export = False
    return recipes.variant_of(c, variant)
