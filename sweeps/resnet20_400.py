"""The main members by the protocol of IR-Net, 400 epochs."""

from configs import cifar100_resnet20
from sweeps import common, rows

STUDY = common.resnet20(
    "CIFAR-100, ResNet-20, 400 epochs in total (protocol of IR-Net)",
    rows.family(rows.KEY),
    400.0,
    cifar100_resnet20.get_config,
)
