"""ResNet-110 by the protocol of MetaQuant, with the numbers that it published."""

from configs import cifar100_resnet110
from sweeps import common

STUDY = common.metaquant(
    "CIFAR-100, ResNet-110, 100 epochs from a float network of 200 (protocol of "
    "MetaQuant)",
    cifar100_resnet110.get_config,
    {
        "float": 72.54,
        "best binary (BWN, Adam, FCGrad)": 69.11,
        "STE with Adam (DoReFa)": 66.84,
    },
)
