"""Every key and option by hand, and what it may be, for the bad configurations.

Written from the documentation and not from the tables of the checks, so that neither
can be wrong without the other.
"""

from typing import Any, NamedTuple


class Range(NamedTuple):
    """A hand-written range; `open` has the ends that are bad themselves."""

    low: float
    high: float
    whole: bool = False
    open: str = ""
    also: tuple = ()


WHOLE = Range(0, 2**31 - 1, True)
COUNT = Range(1, 2**31 - 1, True)
SHARE = Range(0, 1, open="high")
RATE = Range(0, 1e6)
OPTIMIZER: dict[str, Any] = {
    "optimizer": ("sgd", "adam"),
    "learning_rate": RATE,
    "schedule": ("constant", "cosine", "linear", "steps"),
    "warmup": SHARE,
    "milestones": "fractions",
    "momentum": SHARE,
    "weight_decay": RATE,
    "clip": RATE,
}
KEYS: dict[str, Any] = {
    "seed": Range(0, 2**32 - 1, True),
    "epochs": Range(0, 1e9, open="low"),
    "batch_size": Range(1, 2**20, True),
    "eval_batch_size": Range(1, 2**20, True),
    "data.name": "name",
    "data.folder": "text",
    "data.train_size": WHOLE,
    "data.test_size": WHOLE,
    "data.classes": Range(0, 2**20, True, also=(1,)),
    "data.validation_size": WHOLE,
    "data.pad": Range(0, 2**12, True),
    "data.flip": "flag",
    "data.image_size": Range(0, 2**12, True, also=(1, 2, 6, 9, 30)),
    "data.workers": Range(0, 1024, True),
    "data.max_unreadable": WHOLE,
    "model.name": "name",
    "model.width": Range(1, 2**14, True),
    "model.stem_strides": Range(1, 64, True),
    "model.act": ("relu", "hardtanh", "identity", "prelu"),
    "model.momentum": SHARE,
    "dtype": ("float32", "bfloat16", "float16"),
    "quantizer.name": "name",
    "activation.name": "name",
    "layers": "text",
    "share": ("layer", "shape", "kernel", "model"),
    "rules": "rules",
    **{f"weights.{key}": kind for key, kind in OPTIMIZER.items()},
    **{f"meta.{key}": kind for key, kind in OPTIMIZER.items()},
    "meta.mode": ("joint", "bilevel"),
    "meta.holdout": Range(0, 0.5, open="low", also=(0.3, 0.4, 0.45)),
    "meta.exact": "flag",
    "label_smoothing": SHARE,
    "accumulation_steps": Range(1, 2**20, True),
    "ema_decay": SHARE,
    "distillation.workdir": "text",
    "distillation.weight": Range(0, 1),
    "distillation.temperature": Range(1e-3, 1e6),
    "init_from": "text",
    "float_baseline": "flag",
    "runner": ("pmap", "jit"),
    "fsdp": Range(1, 2**20, True),
    "steps_per_call": Range(0, 2**20, True),
    "eval_every": Range(0, 1e9, open="low"),
    "checkpoint_every": WHOLE,
    "log_every": COUNT,
    "recalibration_batches": Range(0, 2**16, True),
    "keep_latest": Range(1, 2**20, True),
    "tensorboard": "flag",
    "report": "flag",
    "export": "flag",
}
"""Every key, and what it may be: a range, some words, or another kind."""

SHARP = ("schedule", Range(1e-6, 1e6))
WEIGHT = ("schedule", Range(0, 1e6))
NONLINEAR = ("linear", "tanh", "silu", "relu")
NORMS = ("none", "rms", "standard")
PER = {"per": ("channel", "tensor")}
bits = lambda high: {"bits": Range(1, high, True)}
OPTIONS: dict[str, dict[str, Any]] = {
    "quantizer.quantnet": {
        **bits(4),
        "multibit": ("staircase", "planes"),
        "unit": ("weight", "slice", "filter", "conv"),
        "width": Range(1, 2**14, True),
        "depth": Range(1, 64, True),
        "nonlinearity": NONLINEAR,
        "skip": "flag",
        "window": Range(1, 31, True, also=(2, 4, 6, 30)),
        "norm": NORMS,
        "sharpness": SHARP,
        "penalty": WEIGHT,
        "orthogonality": WEIGHT,
        "scale": ("none", "mean_abs", "learned"),
    },
    "quantizer.tanh_sign": {
        **bits(4),
        "norm": NORMS,
        "sharpness": SHARP,
        "penalty": WEIGHT,
    },
    "quantizer.binary_ste": PER,
    "quantizer.xnor": PER,
    "quantizer.swish_sign": {"beta": Range(1e-6, 1e6)},
    "quantizer.dorefa": bits(8),
    "quantizer.twn": {"threshold": RATE},
    "quantizer.lsq": bits(8),
    "quantizer.pact": bits(8),
    "quantizer.lq_nets": {**bits(4), "momentum": SHARE},
    "quantizer.dsq": bits(8),
    "quantizer.dsq_soft": {**bits(8), "sharpness": SHARP},
    "quantizer.quantization_networks": {**bits(3), "sharpness": SHARP},
    "quantizer.proxquant": {"strength": WEIGHT},
    "quantizer.irnet": {"t": SHARP},
    "quantizer.recu": {
        "progress": ("schedule", Range(0, 1)),
        "lowest": Range(0.5, 1, open="high"),
        "highest": Range(0.5, 1, open="high"),
    },
    "quantizer.adabin": {"t": SHARP},
    "quantizer.binarizing_by_classification": {"width": Range(1, 2**14, True)},
    "quantizer.metaquant": {
        "network": ("fcgrad", "multifc", "lstmfc"),
        "forward": ("bwn", "dorefa"),
        "width": Range(1, 2**14, True),
        "nonlinearity": NONLINEAR,
    },
    "activation.dorefa": bits(8),
    "activation.pact": {**bits(8), "start": Range(1e-6, 1e6)},
    "activation.lsq": bits(8),
}
PLAIN = (
    *("quantizer.identity", "quantizer.binaryconnect", "quantizer.clipped_ste"),
    *("quantizer.approx_sign", "quantizer.magnitude_aware"),
    *("activation.sign_ste", "activation.approx_sign"),
)
"""Sections without an option."""
RESNET = {
    "shortcut": ("A", "B"),
    "stem_size": Range(1, 63, True),
    "stem_pool": "flag",
    "bi_real": "flag",
    "zero_init_last": "flag",
}
SECTIONS = (
    "data",
    "model",
    "quantizer",
    "activation",
    "weights",
    "meta",
    "distillation",
)
