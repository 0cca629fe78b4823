"""QuantNet by the schedule of small_schedule, on 20 classes that chose nothing.

The rates are those that `small_full` and `small_short` found for these members: 0.4 for
the plain signs, 0.2 for float; nothing is searched on these classes.
"""

from configs import cifar100_small
from sweeps import common, rows


def base():
    """Classes 40 to 59; no study trained or chose anything on them before."""
    c = common.single(cifar100_small.get_config)()
    c.data.first_class = 40
    return c


STUDY = common.small(
    "20 other classes of CIFAR-100 (labels 40 to 59; 10,000 + 2,000 test images), "
    "ResNet-8 of width 16 with a stem of stride 2, batch 64, 20 epochs from scratch, "
    "each member by fixed settings",
    rows.claim(),
    base=base,
    initializations=common.scratch(20.0),
    learning_rates=(0.1,),
    validation_size=0,
    seeds=tuple(range(8)),
    seeds_first=True,
    eval_every=4.0,
    jobs=1,
    columns=("learning rate", "soft", "hard", "hard + BN", "soft - (hard + BN)")
    + ("quantnet - row",),
)
