"""What the shipped configurations share: CIFAR and ImageNet recipes, the shrinking."""

from quantnet_jax.config.keys import base


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


def metaquant(model: str, variant: str):
    """A ResNet on CIFAR-100 by the protocol of MetaQuant: from a float network, 1 bit.

    Args:
      model: 'resnet56' or 'resnet110'.
      variant: '', 'float' (the network to start from) or 'runlocal'.

    Raises:
      ValueError: for another variant.
    """
    c = base()
    cifar(c, "cifar100", model)
    c.layers = "all"
    c.weights.weight_decay = 5e-4
    if variant == "float":
        c.quantizer.name = "identity"
        return c
    c.epochs = 100.0
    c.init_from = f"runs/cifar100_{model}_float"

    def shrink(c):
        c.model.name = "resnet8"
        c.init_from = ""

    return variant_of(c, variant, shrink)


def imagenet(model: str, variant: str):
    """A ResNet on ImageNet: QuantNet, or what it is compared with.

    Args:
      model: 'resnet18' or 'resnet34'.
      variant: '' (QuantNet, all but stem and head binary), 'float', or 'ste' (1-bit
        DoReFa, the best straight-through member of the study gap_table); any of
        them with 'runlocal', as in 'ste,runlocal'.

    Raises:
      ValueError: for another variant.
    """
    methods = {"": "quantnet", "float": "identity", "ste": "dorefa"}
    method, _, rest = variant.partition(",")
    if variant == "runlocal":
        method, rest = "", variant
    if method not in methods:
        raise ValueError(
            f"unknown variant {variant!r}, expected '', 'float', 'ste', 'runlocal', "
            "'float,runlocal' or 'ste,runlocal'"
        )

    c = base()
    c.epochs = 100.0
    c.batch_size = 256
    c.eval_batch_size = 1024
    c.data.name = "imagenet2012"
    c.data.image_size = 224
    c.data.pad = 0  # the crop is taken while decoding
    c.data.workers = 16
    c.model.name = model
    c.model.width = 64
    c.model.zero_init_last = True
    c.dtype = "bfloat16"
    c.layers = "inner"
    c.quantizer.name = methods[method]
    c.task.classification.label_smoothing = 0.1
    c.ema_decay = 0.9999  # of 5,005 steps an epoch: the last two count
    c.weights.learning_rate = 0.1  # for batch 256; in proportion to another one
    c.weights.warmup = 0.05
    # Binary weights need less of it; He et al. (arXiv 1512.03385) for the float ones.
    c.weights.weight_decay = 1e-4 if method == "float" else 5e-5
    c.meta.learning_rate = 1e-3
    c.meta.warmup = 0.05

    def shrink(c):
        c.model.name = "resnet8"  # of the same parts, and faster to compile
        c.model.shortcut, c.model.stem_pool = "B", True
        c.model.stem_size, c.model.stem_strides = 7, 2
        c.data.image_size = 32
        c.data.workers = 0

    return variant_of(c, rest, shrink)


def variant_of(c, variant: str, shrink=None, others=()):
    """Returns `c`, or with 'runlocal' a run of seconds on synthetic images.

    Args:
      c: the configuration.
      variant: '' or 'runlocal'.
      shrink: `shrink(c)` makes the changes that only this configuration needs.
      others: variants that the configuration knows itself, for the message.

    Raises:
      ValueError: for another variant.
    """
    if variant == "runlocal":
        c.epochs = 2.0
        c.batch_size, c.eval_batch_size = 32, 64
        c.data.name, c.data.folder = "synthetic", ""
        c.data.image_size, c.data.train_size, c.data.test_size = 16, 256, 64
        c.model.width = 4
        c.recalibration_batches = 2
        c.log_every = 4
        c.export = False
        if shrink:
            shrink(c)
    elif variant:
        known = ", ".join(map(repr, ("", "runlocal", *others)))
        raise ValueError(f"unknown variant {variant!r}, expected one of {known}")
    return c
