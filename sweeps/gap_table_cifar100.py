"""All members with equal care on CIFAR-100: for an accelerator."""

from configs import cifar100_resnet20
from sweeps import common, gap_table

STUDY = gap_table.STUDY._replace(
    title="CIFAR-100, ResNet-20 of width 16, batch 128",
    base=common.single(cifar100_resnet20.get_config),
    initializations=common.scratch(100.0),
    search=0.2,
    validation_size=5000,
    jobs=1,
    xla_flags="",
)
