r"""QuantNet on CIFAR-10: ResNet-20, binary but for the first and the last layer.

Command:   python train.py --config=configs/cifar10_resnet20.py \
               --workdir=runs/cifar10_resnet20 --config.data.folder=FOLDER
           FOLDER holds the binary version of CIFAR-10; without it TFDS is asked. With
           all baselines: python -m quantnet_jax.experiments run resnet20_cifar10 \
               --folder=FOLDER
Hardware:  one GPU, with --config.dtype=bfloat16 (weights and quantizers stay float32).
Wall time: not run yet; as cifar100_resnet20.py.
Expected:  soft, hard, float: not run yet.

The convention of IR-Net (arXiv 1909.10788): stem and head stay float, shortcuts have no
parameters, SGD 0.1 with a cosine, batch 128, weight decay 1e-4; 200 epochs here, 400
there. Other methods: --config.quantizer.name=binary_ste (or tanh_sign, identity).
"""

from quantnet_jax.config import recipes


def get_config(variant: str = ""):
    return recipes.cifar_resnet20("cifar10", variant)
