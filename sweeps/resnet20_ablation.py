"""Ablation of QuantNet on ResNet-20."""

from configs import cifar100_resnet20
from sweeps import common, rows

STUDY = common.resnet20(
    "Ablation of QuantNet: CIFAR-100, ResNet-20, 60 epochs in total, "
    "one factor at a time, accuracy on 5,000 validation images",
    rows.ablation(),
    60.0,
    cifar100_resnet20.get_config,
    search=0.5,
    validate=True,
    seeds_first=True,
)
