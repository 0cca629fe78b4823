"""ResNet-56 by the protocol of MetaQuant, with the numbers that it published."""

from configs import cifar100_resnet56
from sweeps import common

STUDY = common.metaquant(
    "CIFAR-100, ResNet-56, 100 epochs from a float network of 200 (protocol of "
    "MetaQuant)",
    cifar100_resnet56.get_config,
    {
        "float": 71.22,
        "best binary (BWN, Adam, FCGrad)": 67.02,
        "STE with Adam (DoReFa)": 66.42,
    },
)
