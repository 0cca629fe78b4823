"""2 to 4 bits, trained where the post-trained networks were: 20 classes, 20 epochs."""

from configs import cifar100_small
from sweeps import common, rows

STUDY = common.small(
    "2 to 4 bits on 20 classes of CIFAR-100 (10,000 + 2,000 test images), ResNet-8 of "
    "width 16, batch 64, 20 epochs from scratch, each member by fixed settings",
    rows.trained_bits(),
    base=common.single(cifar100_small.get_config, "full"),
    initializations=common.scratch(20.0),
    learning_rates=(0.1,),
    validation_size=0,
    seeds=(0, 1, 2),
    seeds_first=True,
    eval_every=5.0,
    jobs=1,
)
