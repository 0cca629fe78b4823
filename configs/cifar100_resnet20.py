r"""QuantNet on CIFAR-100: ResNet-20, binary but for the first and the last layer.

Command:   python train.py --config=configs/cifar100_resnet20.py \
               --workdir=runs/cifar100_resnet20 --config.data.folder=FOLDER
           FOLDER holds the binary version of CIFAR-100; without it TFDS is asked.
           Within the same 200 epochs from a float network: first :float, which trains
           one for 100 epochs into runs/cifar100_resnet20_float, then :warm. Of 400:
           --config.epochs=400, or twice 200. With all baselines:
           python -m quantnet_jax.experiments run resnet20_200 \
               --folder=FOLDER
Hardware:  one GPU, with --config.dtype=bfloat16 (weights and quantizers stay float32).
Wall time: not run yet; floor and goal (90 s on an H200) are in docs/performance.md.
Expected:  soft, hard, float: not run yet.

The convention of IR-Net (arXiv 1909.10788): stem and head stay float, shortcuts have no
parameters, SGD 0.1 with a cosine, batch 128, weight decay 1e-4; 200 epochs here, 400
there. Other methods: --config.quantizer.name=binary_ste (or tanh_sign, identity).
"""

from quantnet_jax.config import recipes


def get_config(variant: str = ""):
    if variant not in ("float", "warm"):
        return recipes.cifar_resnet20("cifar100", variant)
    c = recipes.cifar_resnet20("cifar100", "")
    c.epochs = c.epochs / 2
    if variant == "float":
        c.quantizer.name = "identity"
    else:
        c.init_from = "runs/cifar100_resnet20_float"
    return c
