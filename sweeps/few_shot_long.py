"""As few_shot, width 32, ten times as long: 6,000 iterations."""

from quantnet_jax.experiments.study import Row
from sweeps import common, few_shot


def slower(width: int, rate: float) -> Row:
    """Reptile at a smaller rate of its inner optimizer, in training and in tests."""
    return Row("identity", {"model.width": width, "task.few_shot.inner_rate": rate})


STUDY = few_shot.STUDY._replace(
    title="Omniglot, 5 ways, 5 shots, held-out alphabets, Conv-4 of width 32 and 64, "
    "6,000 iterations of 5 tasks",
    rows={
        **few_shot.rows(32),
        "quantnet, 32": Row("quantnet", {"layers": "inner", "model.width": 32}),
        **{f"Reptile, 32, inner rate {x:g}": slower(32, x) for x in (3e-3, 1e-3)},
        "Reptile, 64, inner rate 0.003": slower(64, 3e-3),
    },
    initializations=common.scratch(10 * few_shot.STUDY.initializations[0].epochs),
)
