"""From a configuration to its network."""

from ml_collections import ConfigDict

from quantnet_jax import models, quantizers
from quantnet_jax.config import Config


def make_model(config: Config, classes: int, axis_name: str | None):
    """The network of `config.model`."""
    options = config.model.to_dict() | make_activation(config)
    try:
        return models.create(
            options.pop("name"),
            classes=classes,
            dtype=config.dtype,
            axis_name=axis_name,
            **options,
        )
    except (ValueError, TypeError, KeyError) as e:
        raise ValueError(f"config.model: {e}") from None


def model_options(config: Config) -> dict:
    """Name and options of the network as plain data, without its quantizer."""
    made = config.model.to_dict() | make_activation(config)
    return {name: value for name, value in made.items() if name != "act_quant"}


def make_activation(config: Config) -> dict:
    """Options of the network that follow from `config.activation`."""
    name, act = config.activation.name, config.model.get("act")
    if not name:
        return {}
    options = config.activation.get(name, ConfigDict()).to_dict()
    try:
        found: dict = {"act_quant": quantizers.create_activation(name, **options)}
    except (ValueError, TypeError) as e:
        raise ValueError(f"config.activation: {e}") from None
    if quantizers.ACTIVATIONS[name].signed:
        if act == "relu":
            raise ValueError(
                f"model.act={act!r} is never negative, so activation.name={name!r} "
                "would make +1 of all activations; expected 'hardtanh' (what a network "
                "gets without model.act), 'identity' or 'prelu'"
            )
        found |= {"act": act or "hardtanh"}
    return found
