"""ResNet-20 on CIFAR-100, 200 epochs from scratch, by fixed settings: for a short loan.

The rates are those of IR-Net for float and QuantNet, and for the plain signs in the
proportion that the searches of the CPU-sized studies found; nothing is searched.
"""

from configs import cifar100_resnet20
from sweeps import common, rows

STUDY = common.resnet20(
    "CIFAR-100, ResNet-20, 200 epochs from scratch, settings fixed beforehand",
    rows.fixed(),
    200.0,
    cifar100_resnet20.get_config,
    initializations=common.scratch(200.0),
    learning_rates=(0.1,),
    seeds_first=True,
    eval_every=50.0,
)
