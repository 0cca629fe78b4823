r"""QuantNet on CIFAR-100: ResNet-20, binary but for the first and the last layer.

Command:   python train.py --config=configs/cifar100_resnet20.py \
               --workdir=runs/cifar100_resnet20 --config.data.folder=FOLDER
           FOLDER holds the binary version of CIFAR-100; without it TFDS is asked.
Hardware:  one GPU.
Expected:  not run yet.

The convention of IR-Net (arXiv 1909.10788): stem and head stay float, shortcuts have no
parameters, SGD 0.1 with a cosine, batch 128, weight decay 1e-4; 200 epochs here, 400
there. Other methods: --config.quantizer.name=binary_ste (or tanh_sign, identity).
"""

from configs import common


def get_config(variant: str = ""):
    return common.cifar_resnet20("cifar100", variant)
