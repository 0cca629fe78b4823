"""The main members on 20 classes of CIFAR-100 at full resolution, by their recipes."""

from configs import cifar100_small
from sweeps import common, rows

STUDY = common.small(
    "20 classes of CIFAR-100 (10,000 + 2,000 images), ResNet-8 of width 16, batch "
    "64, 20 epochs in total: as 'small', the stem with stride 1",
    rows.few((0.2, 0.4, 0.8)),
    base=common.single(cifar100_small.get_config, "full"),
    learning_rates=(0.1, 0.2, 0.4),
    seeds_first=True,
    eval_every=4.0,
)
