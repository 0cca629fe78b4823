r"""QuantNet on CIFAR-100: ResNet-20 with weights of 2, 3 or 4 bits.

Command:   python train.py --config=configs/cifar100_resnet20_bits.py:2 \
               --workdir=runs/cifar100_resnet20_2bits --config.data.folder=FOLDER
           Likewise :3 and :4, and :mixed (2 bits, but 8 in the first and the last
           layer); FOLDER holds the binary version of CIFAR-100; without it
           TFDS is asked. With all baselines: python -m quantnet_jax.experiments run \
               resnet20_bits --folder=FOLDER
Hardware:  one GPU, with --config.dtype=bfloat16 (weights and quantizers stay float32).
Wall time: not run yet.
Expected:  soft, hard, float: not run yet. Published: LSQ with 2-bit weights and
           activations 63.9, float 67.4.

As cifar100_resnet20.py: first and last layer float, 200 epochs. The levels are a
staircase of tanh steps between -1 and 1.
"""

from quantnet_jax.config import recipes

BITS = ("2", "3", "4")


def get_config(variant: str = ""):
    known = variant in (*BITS, "mixed")
    c = recipes.cifar_resnet20("cifar100", "" if known else variant)
    c.quantizer.quantnet.bits = int(variant) if variant in BITS else 2
    if variant == "mixed":
        row = {"pattern": "(stem|head)/kernel", "quantizer": "lsq", "bits": 8}
        c.rules = (row,)
    return c
