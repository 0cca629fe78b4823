r"""QuantNet on ImageNet: ResNet-18, binary but for the first and the last layer.

Command:   python train.py --config=configs/imagenet_resnet18.py \
               --workdir=runs/imagenet_resnet18 --config.data.folder=FOLDER
           FOLDER is the data folder of TFDS, with imagenet2012 as ArrayRecord; another
           set of JPEGs there, with splits train and validation, by
           --config.data.name=tfds:NAME.
           Compared with: configs/imagenet_resnet18.py:float and :ste. With a teacher:
           --config.teacher=runs/imagenet_resnet18_float, a run of :float, and
           --config.terms="({'name': 'distillation', 'weight': 0.5},)".
Hardware:  8 GPUs or a TPU host; batch 256 is over all of them. On a TPU pod add
           --distributed. `data.workers` are processes that decode JPEGs, on each host.
           Where memory is short: --config.accumulation_steps=2, 4, ... microbatches.
Wall time: not run yet.
Expected:  not run yet, and its learning rates not searched. Float networks of this
           kind have 69.8 % in the literature.
"""

from quantnet_jax.config import recipes


def get_config(variant: str = ""):
    return recipes.imagenet("resnet18", variant)
