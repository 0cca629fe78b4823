"""Where QuantNet's sharpness begins and ends, on 20 classes of CIFAR-100.

Rates and schedules are fixed beforehand, so nothing is searched. What is chosen here,
on images held out of the training images, is tested by the study small_claim.
"""

from sweeps import common, rows

STUDY = common.small(
    "Where the sharpness begins and ends: 20 classes of CIFAR-100 (8,000 training "
    "images, accuracy on 2,000 held out), ResNet-8 of width 16 with a stem of stride "
    "2, batch 64, 20 epochs from scratch",
    rows.schedules(),
    initializations=common.scratch(20.0),
    learning_rates=(0.1,),
    validate=True,
    seeds=(0, 1),
    seeds_first=True,
    eval_every=4.0,
    jobs=1,
    columns=("soft", "hard", "hard + BN", "soft - (hard + BN)", "quantnet - row"),
)
