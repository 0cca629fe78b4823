"""BSC-Net on Omniglot's strokes: binary sparse convolutions with and without shifts."""

from configs import omniglot_sparse
from quantnet_jax.experiments.study import FLOAT, Row, Study
from sweeps import common

CLASSES = 60
"""The first of the 242 characters, so that a run takes a minute."""
FLOATS = {"activation.name": "", "model.act": "prelu"}
RANDOM = {"model.shift": "fixed"}
FOUND = RANDOM | {"init_pattern": "params/model/.*/shift"}


def base():
    c = common.single(omniglot_sparse.get_config)()
    c.data.classes = CLASSES
    c.model.depth = 1
    c.batch_size, c.eval_batch_size = 50, 300
    c.recalibration_batches = 0
    return c


def search(size: int) -> dict:
    """The changes of a supernet, with the quantization error in its loss.

    Args:
      size: training examples: half of them, so that it takes half of the steps.
    """
    c = base()
    omniglot_sparse.search(c)
    changes = {"data.train_size": size, "model.shift": "search"}
    return changes | {"terms": c.terms, "optimizers": c.optimizers}


def rows(size: int) -> dict[str, Row]:
    """Float, binary, with random and with searched offsets; see `search`."""
    return {
        "binary": Row("binary_ste"),
        "search": Row("binary_ste", search(size), like="binary"),
        "binary, searched": Row("binary_ste", FOUND, like="binary", start="search"),
        FLOAT: Row("identity", FLOATS, like="binary"),
        "binary, random": Row("binary_ste", RANDOM, like="binary"),
        "quantnet": Row("quantnet", like="binary"),
        "quantnet, searched": Row("quantnet", FOUND, like="binary", start="search"),
    }


STUDY = Study(
    f"Omniglot's strokes, {CLASSES} characters, drawers held out; sparse2d of width 16",
    common.INNER,
    common.configure,
    base,
    rows(15 * CLASSES // 2),
    common.scratch(12.0),
    (5e-3,),
    validation_size=180,
    xla_flags=common.CPU_FLAGS,
    columns=("W/A", "soft", "hard", "minutes"),
)
