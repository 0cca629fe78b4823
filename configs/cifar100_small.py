r"""QuantNet on 20 classes of CIFAR-100: a ResNet-8 that two CPU cores can train.

Command:   python train.py --config=configs/cifar100_small.py \
               --workdir=runs/cifar100_small --config.data.folder=FOLDER
           FOLDER holds the binary version of CIFAR-100; without it TFDS is asked.
           The comparison with tuned baselines, and what each part is worth:
           python -m quantnet_jax.experiments run small_full --folder=FOLDER
           (and small_ablation, small_short)
Hardware:  one CPU core.
Wall time: two minutes; variant 'full' nine.
Expected:  soft, hard, float: see docs/studies.md, 'small_short' for 10 epochs of this,
           'small_full' for variant 'full'.

The CPU-sized protocol: the first 20 classes (10,000 training and 2,000 test images),
ResNet-8 of width 16 whose stem has stride 2, a fourth of the arithmetic; first and last
layer float, 20 epochs in total. Variant 'full' keeps the stem at stride 1.
"""

from quantnet_jax.config import base, recipes


def get_config(variant: str = ""):
    c = base()
    recipes.cifar(c, "cifar100", "resnet8")
    c.epochs = 20.0
    c.batch_size = 64
    c.eval_batch_size = 500
    c.data.classes = 20
    c.model.stem_strides = 1 if variant == "full" else 2
    c.layers = "inner"
    c.weights.weight_decay = 5e-4
    c.eval_every = 2.0
    c.recalibration_batches = 20
    plain = "" if variant == "full" else variant
    return recipes.variant_of(c, plain, shrink, ("full",))


def shrink(c):
    c.data.classes = 0
    c.eval_every = 1.0
