"""The list of the shipped networks: `create(name, ...)` and `names()`."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from quantnet_jax.activations.quantizer import ActivationQuantizer
from quantnet_jax.activations.sites import SITES, check_sites
from quantnet_jax.common.limits import Choice, Flag, Limit, Number, check
from quantnet_jax.common.names import nearest, unknown
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.models.autoencoder import Autoencoder
from quantnet_jax.models.conv4 import Conv4
from quantnet_jax.models.layers import KERNELS, kernel_rule
from quantnet_jax.models.mobilenet import MobileNet
from quantnet_jax.models.nonlinearities import ACTS
from quantnet_jax.models.norm import fold
from quantnet_jax.models.resnet import (
    SHORTCUTS,
    BasicBlock,
    ResNet,
    cifar_resnet,
    imagenet_resnet,
)
from quantnet_jax.models.small import Small
from quantnet_jax.models.sparse import SHIFTS, Sparse, check_capacity
from quantnet_jax.models.super_resolution import SuperResolution, edsr, srresnet

OPTIONS: dict[str, Limit] = {
    "act": Choice(tuple(ACTS)),
    "bi_real": Flag(),
    "capacity": Number(0, 2**20, whole=True),
    "depth": Number(0, 2**10, whole=True),
    "groups": Number(1, 2**14, whole=True),
    "image_skip": Flag(),
    "momentum": Number(0, 1, below=True),
    "shift": Choice(SHIFTS),
    "shortcut": Choice(SHORTCUTS),
    "stem_pool": Flag(),
    "stem_size": Number(1, 63, whole=True),
    "stem_strides": Number(1, 64, whole=True),
    "width": Number(1, 2**14, whole=True),
    "zero_init_last": Flag(),
}
"""What a configuration may set of a network, beside its name; not all have all."""

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
    "kernel_rule",
    "names",
    "sites",
]

_MODELS: dict[str, tuple[type[nn.Module], Callable[..., nn.Module]]] = {
    "small": (Small, Small),
    "autoencoder": (Autoencoder, Autoencoder),
    "conv4": (Conv4, Conv4),
    "edsr": (SuperResolution, edsr),
    "mobilenet": (MobileNet, MobileNet),
    "sparse2d": (Sparse, partial(Sparse, dims=2)),
    "sparse3d": (Sparse, partial(Sparse, dims=3)),
    "resnet8": (ResNet, partial(cifar_resnet, 8)),
    "resnet14": (ResNet, partial(cifar_resnet, 14)),
    "resnet20": (ResNet, partial(cifar_resnet, 20)),
    "resnet32": (ResNet, partial(cifar_resnet, 32)),
    "resnet44": (ResNet, partial(cifar_resnet, 44)),
    "resnet56": (ResNet, partial(cifar_resnet, 56)),
    "resnet110": (ResNet, partial(cifar_resnet, 110)),
    "resnet18": (ResNet, partial(imagenet_resnet, 18)),
    "resnet34": (ResNet, partial(imagenet_resnet, 34)),
    "resnet50": (ResNet, partial(imagenet_resnet, 50)),
    "srresnet": (SuperResolution, srresnet),
}

# Decided by the name of the network, or not user-configurable.
_FIXED = {"blocks", "block", "dims", "ends", "name", "norm", "parent"}


def names() -> tuple[str, ...]:
    """Names that `create` knows."""
    return tuple(_MODELS)


def sites(name: str) -> tuple[str, ...]:
    """Where the network of a given name can quantize activations."""
    return _MODELS[name][0].SITES  # pyright: ignore[reportAttributeAccessIssue]


def enlarges(name: str) -> bool:
    """Whether the network of a given name makes larger images."""
    return _MODELS[name][0] is SuperResolution


def options_of(name: str) -> set[str]:
    """Those of `OPTIONS` that the network of a given name has."""
    fields = {f.name for f in dataclasses.fields(_MODELS[name][0])}
    return OPTIONS.keys() & fields


def check_images(name: str, options: Mapping[str, Any], images: np.ndarray) -> None:
    """Raises a ValueError if the network of a given name would lose parts of images."""
    cls, make = _MODELS[name]
    if cls is Sparse and isinstance(make, partial):
        check_capacity(images, make.keywords["dims"], options.get("capacity", 0))


def check_options(section: str, name: str, options: Mapping[str, Any]) -> None:
    """Refuses options of a configuration that a network lacks or that are impossible.

    Args:
      section: of the configuration, as in 'model'.
      name: one of `names()`.
      options: of the section, without the name.

    Raises:
      ValueError: one line with the key, such as 'model.width'.
    """
    make, known = _MODELS[name][1], options_of(name)
    for option, value in options.items():
        if option not in known:
            message = unknown(f"{section}.{option}", ["name", *known])
            raise ValueError(f"{message} ({name!r} has {', '.join(sorted(known))})")
        check(f"{section}.{option}", value, OPTIONS[option])
    if options.get("bi_real") and make(outputs=1).block is not BasicBlock:
        raise ValueError(
            f"{section}.bi_real=True, but {section}.name={name!r} has other than basic "
            "blocks; expected a network such as resnet18, or False"
        )


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
      ValueError: if the name, an option or a value is not valid.

    Example:
      >>> create("resnet20", outputs=10, width=8).blocks
      (3, 3, 3)
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}{nearest(name, _MODELS)}")
    cls, make = _MODELS[name]
    known = [f.name for f in dataclasses.fields(cls) if f.name not in _FIXED]
    for option in options:
        if option not in known:
            raise ValueError(
                f"model {name!r} has no option {option!r}{nearest(option, known)}"
            )
    counts = {"outputs": outputs} | {
        k: options[k] for k in ("width", "stem_size", "stem_strides") if k in options
    }
    for option, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{option}` is {value!r}, expected a positive integer")
    if "act" in options and not callable(options["act"]):
        if str(options["act"]) not in ACTS:
            raise ValueError(
                f"`act` is {options['act']!r}, expected one of {', '.join(ACTS)}, or a "
                "factory"
            )
        options["act"] = ACTS[options["act"]]
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
