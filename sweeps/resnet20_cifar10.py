"""The family on CIFAR-10 by the protocol of IR-Net."""

from configs import cifar10_resnet20
from sweeps import common, rows

STUDY = common.resnet20(
    "CIFAR-10, ResNet-20, 200 epochs in total (protocol of IR-Net)",
    rows.family(),
    200.0,
    cifar10_resnet20.get_config,
)
