"""Reptile dense, pruned (DSD, IHT) and with QuantNet's weights, on Omniglot."""

from configs import few_shot
from quantnet_jax.core.pruning import dense_sparse_dense, iterative_hard_thresholding
from quantnet_jax.experiments.study import Row, Study
from sweeps import common

RATE = 0.3
PRUNED = {
    "Reptile": 0.0,
    "DSD": dense_sparse_dense(RATE),
    "IHT": iterative_hard_thresholding(RATE),
}
"""Name -> part of each inner and last kernel that is pruned, a schedule."""


def rows(width: int) -> dict[str, Row]:
    """Dense and pruned networks of a width."""
    return {
        f"{name}, {width}": Row("identity", {"model.width": width, "sparsity": part})
        for name, part in PRUNED.items()
    }


ONE_SHOT = {"task.few_shot.shots": 1, "task.few_shot.test_batch_size": 5}
ALL = {"task.few_shot.train_shots": 15, "task.few_shot.batch_size": 15}
"""All drawings of a character that are not queries."""
OTHERS = {
    "Reptile, 32, 15 drawings": Row("identity", {"model.width": 32, **ALL}),
    "quantnet, 64": Row("quantnet", {"layers": "inner"}),
    "Reptile, 64, 1 shot": Row("identity", ONE_SHOT),
}

STUDY = Study(
    "Omniglot, 5 ways, 5 shots, held-out alphabets, Conv-4 of three widths, 600 "
    f"iterations of {few_shot.TASKS} tasks",
    "the inner convolutions (quantnet); pruned are these and the head",
    common.configure,
    common.single(few_shot.get_config, "adam"),
    {**rows(32), **rows(64), **OTHERS, **rows(128)},
    common.scratch(few_shot.get_config().epochs),
    (1.0,),
    seeds_first=True,
    xla_flags=common.CPU_FLAGS,
    columns=("train tasks", "test tasks", "± of a run", "generalization gap")
    + ("soft", "minutes"),
)
