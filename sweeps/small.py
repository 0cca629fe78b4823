"""The whole family on 20 classes of CIFAR-100, within 20 epochs on two CPU cores."""

from sweeps import common, rows

STUDY = common.small(
    "20 classes of CIFAR-100 (10,000 + 2,000 images), ResNet-8 of width 16 with a "
    "stem of stride 2, batch 64, 20 epochs in total: the size of two CPU cores",
    rows.family(),
)
