"""Ablation of QuantNet, within 10 epochs on two CPU cores."""

from sweeps import common, rows

STUDY = common.small(
    "Ablation of QuantNet: as 'small' with 10 epochs in total, one "
    "factor at a time, accuracy on 2,000 validation images",
    rows.ablation(),
    total=10.0,
    learning_rates=(0.1, 0.2, 0.4),
    search=0.6,
    validate=True,
    seeds=(0, 1),
    seeds_first=True,
)
