"""What the table of the family compares: its rows and the settings of each data set."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import cifar100_resnet20, default
from quantnet_jax import quantizers

FLOAT = "identity"
RATES = (0.03, 0.1, 0.3, 1.0)  # the same for every row, the float one included
SEEDS = (0, 1, 2)


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      method: quantizer of the weights.
      options: of it, in place of those of its recipe.
      activation: quantizer of the activations, '' for float ones.
      activation_bits: of it.
      model: options of the network, such as `bi_real`.
    """

    method: str
    options: Mapping[str, Any] = {}
    activation: str = ""
    activation_bits: int = 32
    model: Mapping[str, Any] = {}

    @property
    def bits(self) -> str:
        """Bits of weights / bits of activations."""
        known = quantizers.MEMBERS[self.method].bits
        wanted = quantizers.recipe(self.method) | dict(self.options)
        weights = wanted.get("bits", known[0] if known else 32)
        return f"{weights}/{self.activation_bits}"


ACTIVATION_ROWS = {
    "W1A1 binary_ste, sign_ste": Row("binary_ste", {}, "sign_ste", 1),
    "W1A1 binary_ste, approx_sign, Bi-Real": Row(
        "binary_ste", {}, "approx_sign", 1, {"bi_real": True}
    ),
    "W1A1 quantnet, approx_sign, Bi-Real": Row(
        "quantnet", {}, "approx_sign", 1, {"bi_real": True}
    ),
    "W1A2 binary_ste, pact": Row("binary_ste", {}, "pact", 2),
    "W2A2 lsq, lsq": Row("lsq", {"bits": 2}, "lsq", 2),
    "W4A4 dorefa, dorefa": Row("dorefa", {"bits": 4}, "dorefa", 4),
}


class Setting(NamedTuple):
    """How the rows are trained on one data set.

    Attributes:
      title: in words.
      epochs: of a final run.
      search_epochs: of a run that tries a learning rate.
      validation_size: training images that such a run is scored on.
      jobs: rows at a time.
      xla_flags: of the processes that train.
    """

    title: str
    epochs: float
    search_epochs: float
    validation_size: int
    jobs: int
    xla_flags: str


SETTINGS = {
    # Half of a run is compilation: level 1 takes half as long to compile as the default
    # and its steps are as fast.
    "bundled": Setting(
        "10,000 + 2,000 images of Fashion-MNIST, ResNet-8 of width 8, batch 64",
        epochs=7.0,
        search_epochs=3.0,
        validation_size=2000,
        jobs=2,
        xla_flags="--xla_backend_optimization_level=1",
    ),
    "cifar100": Setting(
        "CIFAR-100, ResNet-20 of width 16, batch 128",
        epochs=100.0,
        search_epochs=20.0,
        validation_size=5000,
        jobs=1,
        xla_flags="",
    ),
}


def rows() -> dict[str, Row]:
    """All rows by name, in the order of the queue: the most important ones first."""
    members = {name: Row(name) for name in quantizers.MEMBERS}
    variants = {
        f"{name}: {label}": Row(name, options)
        for name, member in quantizers.MEMBERS.items()
        for label, options in member.variants.items()
    }
    return members | ACTIVATION_ROWS | variants


def configuration(row: Row, data: str, folder: str = "") -> Any:
    """The configuration of a row, without learning rate, seed and length."""
    if data == "bundled":
        c = default.get_config()
        c.model.width = 8
    else:
        c = cifar100_resnet20.get_config()
        c.data.folder = folder
    c.layers = "inner"
    c.recalibration_batches = 20
    c.report = c.tensorboard = c.export = False
    c.quantizer.name = row.method
    c.quantizer[row.method] = ConfigDict(
        quantizers.recipe(row.method) | dict(row.options)
    )
    if row.activation:
        c.activation.name = row.activation
        if "bits" in c.activation[row.activation]:
            c.activation[row.activation].bits = row.activation_bits
    for key, value in row.model.items():
        c.model[key] = value
    return c
