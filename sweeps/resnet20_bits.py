"""2 to 4 bits."""

from configs import cifar100_resnet20_bits
from sweeps import common, rows

STUDY = common.resnet20(
    "CIFAR-100, ResNet-20, 2 to 4 bits, 200 epochs in total",
    rows.more_bits(),
    200.0,
    cifar100_resnet20_bits.get_config,
)
