"""As few_shot, ten times as long: 6,000 iterations."""

from quantnet_jax.experiments.study import Row
from sweeps import common, few_shot

SGD = {"task.few_shot.inner_optimizer": "sgd", "task.few_shot.inner_rate": 0.4}
"""The inner optimizer and rate of MAML's Omniglot, arXiv 1703.03400."""


def _by_sgd(row: Row) -> Row:
    return row._replace(changes={**row.changes, **SGD})


STUDY = few_shot.STUDY._replace(
    title="Omniglot, 5 ways, 5 shots, held-out alphabets, Conv-4 of width 32 and 64, "
    "6,000 iterations of 5 tasks",
    rows={
        "Reptile, 32": few_shot.rows(32)["Reptile, 32"],
        **{f"{name}, SGD": _by_sgd(row) for name, row in few_shot.rows(32).items()},
        "quantnet, 32, SGD": _by_sgd(
            Row("quantnet", {"layers": "inner", "model.width": 32})
        ),
        "Reptile, 64, SGD, 15 drawings": _by_sgd(Row("identity", few_shot.ALL)),
        "Reptile, 32, inner rate 0.003": Row(
            "identity", {"model.width": 32, "task.few_shot.inner_rate": 3e-3}
        ),
    },
    initializations=common.scratch(10 * few_shot.STUDY.initializations[0].epochs),
)
