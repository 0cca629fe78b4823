r"""QuantNet on CIFAR-100: ResNet-110, all layers binary, from a float network.

Command:   python train.py --config=configs/cifar100_resnet110.py:float \
               --workdir=runs/cifar100_resnet110_float --config.data.folder=FOLDER
           python train.py --config=configs/cifar100_resnet110.py \
               --workdir=runs/cifar100_resnet110 --config.data.folder=FOLDER
           FOLDER holds the binary version of CIFAR-100; without it TFDS is asked.
           With all baselines: python -m quantnet_jax.experiments run resnet110 \
               --folder=FOLDER
Hardware:  one GPU, with --config.dtype=bfloat16 (weights and quantizers stay float32).
Wall time: not run yet.
Expected:  soft, hard, float: not run yet. Published for this protocol: float 72.54,
           best binary 69.11, tuned STE with Adam 66.84.

The protocol of MetaQuant (NeurIPS 2019), as in cifar100_resnet56.py.
"""

from quantnet_jax.config import recipes


def get_config(variant: str = ""):
    return recipes.metaquant("resnet110", variant)
