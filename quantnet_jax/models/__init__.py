"""The list of the shipped networks: `create(name, ...)` and `names()`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from quantnet_jax.activations.quantizer import ActivationQuantizer
from quantnet_jax.activations.sites import SITES, check_sites
from quantnet_jax.common.limits import Limit, check, limits_of
from quantnet_jax.common.names import nearest, unknown
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.models.autoencoder import Autoencoder
from quantnet_jax.models.conv4 import Conv4
from quantnet_jax.models.layers import Sites
from quantnet_jax.models.mobilenet import MobileNet
from quantnet_jax.models.nonlinearities import ACTS
from quantnet_jax.models.norm import fold
from quantnet_jax.models.resnet import ResNet, cifar_resnet, imagenet_resnet
from quantnet_jax.models.small import Small
from quantnet_jax.models.sparse import Sparse, check_capacity
from quantnet_jax.models.super_resolution import SuperResolution, edsr, srresnet

__all__ = [
    "ACTS",
    "Autoencoder",
    "Conv4",
    "KERNELS",
    "MobileNet",
    "OPTIONS",
    "ResNet",
    "Small",
    "Sparse",
    "SuperResolution",
    "check_images",
    "check_options",
    "create",
    "enlarges",
    "fold",
    "kernel_pattern",
    "kernel_rule",
    "names",
    "options_of",
    "sites",
]

KERNELS = {
    # Every convolution and the dense head (the convention of MetaQuant).
    "all": r"^(.+/)?kernel$",
    # First and last layer float (the convention of IR-Net, ReCU, AdaBin); the 1x1
    # convolutions of projection shortcuts are quantized.
    "inner": r"^(?!(stem|head)/)(.+/)?kernel$",
    # As 'inner', with the 1x1 convolutions of projection shortcuts float too.
    "no_shortcut": r"^(?!(stem|head)/)(?!(.+/)?shortcut/)(.+/)?kernel$",
}
"""Which kernels are quantized: convention -> pattern over '/'-joined parameter paths.

The patterns are anchored: `re.search` and `re.fullmatch` find the same paths. They hold
for the networks of this room; a user's own network brings its own pattern.
"""


def kernel_rule(convention: str) -> str:
    """The pattern of one of the `KERNELS` conventions.

    Raises:
      ValueError: if the convention is unknown.

    Example:
      >>> kernel_rule("all")
      '^(.+/)?kernel$'
    """
    if convention not in KERNELS:
        raise ValueError(
            f"`convention` is {convention!r}, expected one of {', '.join(KERNELS)}"
        )
    return KERNELS[convention]


def kernel_pattern(layers: str) -> str:
    """As `kernel_rule`; what is no convention is a pattern itself."""
    return KERNELS.get(layers, layers)


class _Network(NamedTuple):
    """One network of the list; all else about it stands in its docstring.

    Attributes:
      kind: its class; the `Annotated` attributes are what a configuration may set.
      make: the class, or a factory with the same keyword arguments.
      enlarges: whether it makes larger images.
      lists: dimensions of the list of sites that it makes of images, 0 for none.
    """

    kind: type[Sites]
    make: Callable[..., nn.Module]
    enlarges: bool = False
    lists: int = 0


_NETWORKS: dict[str, _Network] = {
    "small": _Network(Small, Small),
    "autoencoder": _Network(Autoencoder, Autoencoder),
    "conv4": _Network(Conv4, Conv4),
    "edsr": _Network(SuperResolution, edsr, enlarges=True),
    "mobilenet": _Network(MobileNet, MobileNet),
    "sparse2d": _Network(Sparse, partial(Sparse, dims=2), lists=2),
    "sparse3d": _Network(Sparse, partial(Sparse, dims=3), lists=3),
    "resnet8": _Network(ResNet, partial(cifar_resnet, 8)),
    "resnet14": _Network(ResNet, partial(cifar_resnet, 14)),
    "resnet20": _Network(ResNet, partial(cifar_resnet, 20)),
    "resnet32": _Network(ResNet, partial(cifar_resnet, 32)),
    "resnet44": _Network(ResNet, partial(cifar_resnet, 44)),
    "resnet56": _Network(ResNet, partial(cifar_resnet, 56)),
    "resnet110": _Network(ResNet, partial(cifar_resnet, 110)),
    "resnet18": _Network(ResNet, partial(imagenet_resnet, 18)),
    "resnet34": _Network(ResNet, partial(imagenet_resnet, 34)),
    "resnet50": _Network(ResNet, partial(imagenet_resnet, 50)),
    "srresnet": _Network(SuperResolution, srresnet, enlarges=True),
}

_OF_PROGRAMS = ("act_quant", "features", "folded", "sites")
"""Options of `create` that no configuration sets; not all networks have all."""


def names() -> tuple[str, ...]:
    """Names that `create` knows."""
    return tuple(_NETWORKS)


def sites(name: str) -> tuple[str, ...]:
    """Where the network of a given name can quantize activations."""
    return _NETWORKS[name].kind.SITES


def enlarges(name: str) -> bool:
    """Whether the network of a given name makes larger images."""
    return _NETWORKS[name].enlarges


def options_of(name: str) -> dict[str, Limit]:
    """{option: what it may be}, of those that a configuration may set of a network."""
    limits = limits_of(_NETWORKS[name].kind)
    return {k: v for k, v in sorted(limits.items()) if k != "outputs"}


_ALL = {k: v for name in names() for k, v in options_of(name).items()}
OPTIONS: dict[str, Limit] = {k: _ALL[k] for k in sorted(_ALL)}
"""The options of all networks; which one has which, and its ranges: `options_of`."""


def check_images(
    name: str, options: Mapping[str, Any], images: np.ndarray, mean: Sequence[float]
) -> None:
    """Raises a ValueError if the network of a given name would lose parts of images.

    Of images that are normalized with another `mean` than 0 all sites are active.
    """
    if dims := _NETWORKS[name].lists:
        seen = np.ones_like(images) if any(mean) else images
        check_capacity(seen, dims, options.get("capacity", 0))


def check_options(section: str, name: str, options: Mapping[str, Any]) -> None:
    """Refuses options of a configuration that a network lacks or that are impossible.

    Args:
      section: of the configuration, as in 'model'.
      name: one of `names()`.
      options: of the section, without the name.

    Raises:
      ValueError: one line with the key, such as 'model.width'.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            message = unknown(f"{section}.{option}", ["name", *known])
            raise ValueError(f"{message} of {section}.name={name!r}")
    try:
        create(name, outputs=1, **options)
    except ValueError as e:
        raise ValueError(f"{section}.{e}") from None


def create(
    name: str,
    *,
    outputs: int,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    **options: Any,
) -> nn.Module:
    """The network of a given name.

    Args:
      name: one of `names()`.
      outputs: of the head, at least 1.
      dtype: floating compute dtype, or its name; parameters and logits are float32.
      axis_name: mapped axis over which BatchNorm averages its statistics, or None.
      **options: further attributes of the network, such as `width`, `shortcut` ('A' or
        'B'), `stem_strides`, `act` (a name of `ACTS` or a factory), `act_quant`,
        `sites`, `bi_real`, `momentum`, `zero_init_last`; see `ResNet`.

    Returns:
      A linen module; `apply(variables, images, train)` gives float32 logits.

    Raises:
      ValueError: one line, if the name, an option or a value is not valid.

    Example:
      >>> create("resnet20", outputs=10, width=8).blocks
      (3, 3, 3)
    """
    if name not in _NETWORKS:
        raise ValueError(f"unknown model {name!r}{nearest(name, _NETWORKS)}")
    kind, make = _NETWORKS[name][:2]
    known = [*options_of(name), *(k for k in _OF_PROGRAMS if hasattr(kind, k))]
    for option in options:
        if option not in known:
            raise ValueError(
                f"model {name!r} has no option {option!r}{nearest(option, known)}"
            )
    if isinstance(act := options.get("act"), str):
        check("act", act, options_of(name)["act"])
        options["act"] = ACTS[act]
    act_quant, kinds = options.get("act_quant"), Quantizer | ActivationQuantizer
    of_sites = act_quant if isinstance(act_quant, Mapping) else {SITES[0]: act_quant}
    if act_quant is not None and not all(
        site in SITES and isinstance(q, kinds) for site, q in of_sites.items()
    ):
        raise ValueError(
            f"`act_quant` is {act_quant!r}, expected a Quantizer, one for each site, or"
            " None"
        )
    if "sites" in options:
        options["sites"] = check_sites(options["sites"], sites(name))
    return make(outputs=outputs, dtype=_dtype(dtype), axis_name=axis_name, **options)


def _dtype(dtype: Any) -> Any:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(
            f"`dtype` is {dtype!r}, expected a floating one: float32, bfloat16, float16"
        )
    return found
