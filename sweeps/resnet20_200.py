"""The family by the protocol of IR-Net, 200 epochs."""

from configs import cifar100_resnet20
from sweeps import common, rows

STUDY = common.resnet20(
    "CIFAR-100, ResNet-20, 200 epochs in total (protocol of IR-Net)",
    rows.family(),
    200.0,
    cifar100_resnet20.get_config,
)
