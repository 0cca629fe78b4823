"""FQSR: a small EDSR that doubles images, all of it at 4 bits.

Command:   python train.py --config=configs/super_resolution.py
           --config.data.folder=DIR --config.init_from=FLOAT --workdir=DIR, DIR with
           BSDS200_train.zip, Set5.zip and Set14.zip; FLOAT the workdir of the variant
           'float', which is trained first
Hardware:  one CPU core, 2 minutes of training and 1 of evaluation
Expected:  PSNR of Set5 and Set14, see docs/super_resolution.md

Variants: 'float'; 'x4' and 'srresnet' for another factor or network, with 'float' too,
as in 'x4,float'; 'runlocal', seconds on synthetic images.
"""

from quantnet_jax.config import base


def get_config(variant: str = ""):
    c = base()
    c.epochs = 40.0  # of 25 steps
    c.batch_size = 8
    c.eval_batch_size = 4  # whole images: each takes the memory of a small batch
    c.eval_every = c.epochs
    c.recalibration_batches = 0

    c.task.name = "super_resolution"
    c.data.name = "superres_x2"
    c.data.pad = 0
    c.data.crop = 24

    c.model.name = "edsr"
    c.model.width = 16
    c.model.depth = 4
    c.model.image_skip = True

    # All weights, all inputs of convolutions, both terms of each sum.
    c.layers = "all"
    c.quantizer.name = "learned_clip"
    c.quantizer.learned_clip.calibration = 0.3
    c.quantizer.learned_clip.calibrates = "clip"
    c.activation.name = "learned_clip"
    c.activation.sites = ("input", "rectified", "residual")
    c.activation.rules = ({"site": "rectified", "signed": False},)
    c.activation.learned_clip.signed = True
    c.activation.learned_clip.warmup = 20
    c.activation.learned_clip.calibration = 0.3
    c.activation.learned_clip.calibrates = "clip"

    c.weights.optimizer = "adam"
    c.weights.learning_rate = 1e-3
    c.weights.weight_decay = 0.0
    c.meta.learning_rate = 1e-2
    c.optimizers = ({"pattern": "model/.*/qparams", "learning_rate": 1e-2},)

    words = [word for word in variant.split(",") if word]
    if {"x4", "runlocal"} <= set(words):
        raise ValueError("variant 'runlocal' is of twice the size, without 'x4'")
    for word in words:
        if word == "float":
            c.epochs = c.eval_every = 120.0
            c.quantizer.name, c.activation.name = "identity", ""
            c.optimizers = ()
        elif word == "x4":
            c.data.name = "superres_x4"
        elif word == "srresnet":
            c.model.name = "srresnet"
            c.recalibration_batches = 20
        elif word == "runlocal":
            c.data.name, c.data.crop = "synthetic_x2", 8
            c.data.image_size, c.data.train_size, c.data.test_size = 12, 16, 8
            c.model.width, c.model.depth = 4, 1
            c.epochs, c.eval_every = 4.0, 2.0  # of 2 steps
            c.activation.learned_clip.warmup = 2
            c.export = False
        else:
            raise ValueError(
                f"unknown variant {word!r}, expected some of 'float', 'x4', "
                "'srresnet', 'runlocal'"
            )
    return c
