"""What the experiments share: the CIFAR recipe, the shrinking.

`train.py` and pytest put the root of the repository on the path, so a configuration
finds this file as `configs.common` from any working directory.
"""

from quantnet_jax.training.config import base


def cifar(c, name: str, model: str):
    """SGD 0.1 with a cosine, batch 128, crops out of 4 pixels of padding, flips."""
    c.epochs = 200.0
    c.batch_size = 128
    c.eval_batch_size = 1000
    c.data.name = name
    c.data.image_size = 32
    c.data.pad = 4
    c.model.name = model
    c.model.width = 16
    c.model.shortcut = "A"
    c.weights.learning_rate = 0.1
    c.weights.weight_decay = 1e-4
    c.meta.learning_rate = 3e-4


def cifar_resnet20(name: str, variant: str):
    """ResNet-20 on CIFAR-10 or CIFAR-100, first and last layer float."""
    c = base()
    cifar(c, name, "resnet20")
    c.layers = "inner"

    def shrink(c):
        c.model.name = "resnet8"

    return variant_of(c, variant, shrink)


def variant_of(c, variant: str, shrink=None):
    """Returns `c`, or with 'runlocal' a run of seconds on made-up images.

    Args:
      c: the configuration.
      variant: '' or 'runlocal'.
      shrink: `shrink(c)` makes the changes that only this configuration needs.

    Raises:
      ValueError: for another variant.
    """
    if variant == "runlocal":
        c.epochs = 2.0
        c.batch_size, c.eval_batch_size = 32, 64
        c.data.name, c.data.folder = "synthetic", ""
        c.data.image_size, c.data.train_size, c.data.test_size = 16, 256, 64
        c.model.width = 4
        c.bn_batches = 2
        c.log_every = 4
        c.export = False
        if shrink:
            shrink(c)
    elif variant:
        raise ValueError(f"unknown variant {variant!r}, expected '' or 'runlocal'")
    return c
