"""Each method with the hyperparameters that the ablation selected for it."""

from sweeps import common, rows

STUDY = common.small(
    "20 classes of CIFAR-100, as 'small' with 10 epochs in total, with hyperparameters "
    "selected by small_ablation (those without a name: quantnet): "
    f"{', '.join(rows.SMALL_TUNED.values())}",
    rows.tuned(),
    total=10.0,
    search=0.6,
    seeds=(0, 1, 2, 3, 4),
)
