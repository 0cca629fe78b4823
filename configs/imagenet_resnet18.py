r"""QuantNet on ImageNet: ResNet-18, binary but for the first and the last layer.

Command:   python train.py --config=configs/imagenet_resnet18.py \
               --workdir=runs/imagenet_resnet18 --config.data.folder=FOLDER
           FOLDER is the data folder of TFDS, with imagenet2012 as ArrayRecord; another
           set of JPEGs there, with splits train and validation, by
           --config.data.name=tfds:NAME.
Hardware:  8 GPUs or a TPU host; batch 256 is over all of them. On a TPU pod add
           --distributed. `data.workers` are processes that decode JPEGs, on each host.
Expected:  not run yet.
"""

from configs import common
from quantnet_jax.training.config import base


def get_config(variant: str = ""):
    c = base()
    c.epochs = 100.0
    c.batch_size = 256
    c.eval_batch_size = 1024
    c.data.name = "imagenet2012"
    c.data.image_size = 224
    c.data.pad = 0  # the crop is taken while decoding
    c.data.workers = 16
    c.model.name = "resnet18"
    c.model.width = 64
    c.model.zero_init_last = True
    c.dtype = "bfloat16"
    c.layers = "inner"
    c.smoothing = 0.1
    c.weights.learning_rate = 0.1
    c.weights.warmup = 0.05
    c.weights.weight_decay = 5e-5
    c.meta.learning_rate = 1e-3
    c.meta.warmup = 0.05
    return common.variant_of(c, variant, shrink)


def shrink(c):
    c.data.image_size = 32
    c.data.workers = 0
