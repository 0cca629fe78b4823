"""What each key of a configuration may be."""

from quantnet_jax import activations, models, quantizers, tasks
from quantnet_jax.common import specs
from quantnet_jax.common.limits import (
    Choice,
    Limit,
    Number,
    Sequence,
)
from quantnet_jax.config import optax_names
from quantnet_jax.core import pruning
from quantnet_jax.distributed import runners
from quantnet_jax.trees import tree

OURS = {
    "optimizer": ("sgd", "adam"),
    "schedule": ("constant", "cosine", "linear", "steps"),
}
"""Names that are none of optax."""
OPTIMIZERS = (*OURS["optimizer"], *optax_names.optimizers())
SCHEDULES = (*OURS["schedule"], *specs.of_optax())
STREAMED = ("imagenet2012",)
"""Datasets that are read while training."""
TFDS = "tfds:"
"""Before the name of any other TFDS dataset of images that is to be streamed."""
OPEN = ("model", "quantizer", "activation", "task")
"""Sections whose options depend on their name; models and quantizers know them."""

SHARE = Number(0, 1, below=True)
NOT_NEGATIVE = Number(0, 1e6)
COUNT = Number(1, 2**31 - 1, whole=True)
COUNT_OR_0 = Number(0, 2**31 - 1, whole=True)
BATCH = Number(1, 2**20, whole=True)
OPTIMIZER: dict[str, Limit] = {
    "optimizer": Choice(OPTIMIZERS),
    "learning_rate": NOT_NEGATIVE,
    "schedule": Choice(SCHEDULES),
    "warmup": SHARE,
    "momentum": SHARE,
    "weight_decay": NOT_NEGATIVE,
    "clip": NOT_NEGATIVE,
    "options": Sequence(),
    "schedule_options": Sequence(),
}
QUANTIZER = Choice(tuple(quantizers.names()), pattern=quantizers.OWN.pattern)
LIMITS: dict[str, Limit] = {
    "seed": Number(0, 2**32 - 1, whole=True),
    "epochs": Number(0, 1e9, above=True),
    "batch_size": BATCH,
    "eval_batch_size": BATCH,
    "data.train_size": COUNT_OR_0,
    "data.test_size": COUNT_OR_0,
    "data.classes": Number(2, 2**20, whole=True, zero=True),
    "data.first_class": COUNT_OR_0,
    "data.validation_size": COUNT_OR_0,
    "data.pad": Number(0, 2**12, whole=True),
    "data.crop": Number(0, 2**12, whole=True),
    "data.image_size": Number(0, 2**12, whole=True),
    "data.workers": Number(0, 2**10, whole=True),
    "data.max_unreadable": COUNT_OR_0,
    "model.name": Choice(models.names()),
    "dtype": Choice(("float32", "bfloat16", "float16")),
    "quantizer.name": QUANTIZER,
    "task.name": Choice(tuple(tasks.TASKS)),
    "activation.name": Choice(("", *sorted(activations.MEMBERS))),
    "share": Choice(tree.SHARES),
    "sparsity": pruning.RATE,
    **{f"weights.{key}": limit for key, limit in OPTIMIZER.items()},
    **{f"meta.{key}": limit for key, limit in OPTIMIZER.items()},
    "meta.mode": Choice(("joint", "bilevel", "reptile")),
    "meta.holdout": Number(0, 0.5, above=True),
    "accumulation_steps": Number(1, 2**20, whole=True),
    "ema_decay": SHARE,
    "runner": Choice(runners.RUNNERS),
    "fsdp": Number(1, 2**20, whole=True),
    "steps_per_call": Number(0, 2**20, whole=True),
    "eval_every": Number(0, 1e9, above=True),
    "checkpoint_every": COUNT_OR_0,
    "log_every": COUNT,
    "recalibration_batches": Number(0, 2**16, whole=True),
    "keep_latest": Number(1, 2**20, whole=True),
}
"""Key -> what it may be; a key that is not here is held to the type of its default."""
