"""The protocols of the CIFAR comparisons, as data: what is trained, how long, by whom.

A row is searched over the starts and the rates of its protocol on held-out training
images, and its best start and rate are then trained with all seeds. Every row of a
protocol has the same number of runs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from benchmarks import protocol_rows
from benchmarks.protocol_rows import FLOAT, Row
from configs import (
    cifar100_resnet20,
    cifar100_resnet20_bits,
    cifar100_resnet56,
    cifar100_resnet110,
    cifar100_small,
)
from quantnet_jax import quantizers


class Start(NamedTuple):
    """How a run begins.

    Attributes:
      name: of it.
      float_epochs: of the float network that it takes its weights from, 0 for none.
      epochs: of the run itself.
      sharpness: factor of the first sharpness of annealed quantizers; 1/3 makes the
        usual 0.3 a 0.1, at which they are nearly linear.
    """

    name: str
    float_epochs: float
    epochs: float
    sharpness: float = 1.0


class Protocol(NamedTuple):
    """One table.

    Attributes:
      title: in words.
      base: makes the configuration that all rows share.
      layers: which ones are quantized, in words.
      starts: that are tried; `float_starts` those of the float row.
      rates: learning rates that are tried.
      rows: the most important ones first, the float one before all.
      float_starts: () for `starts`.
      search: lengths of a run of the search, as a fraction of the final ones.
      validation_size: training images that the search is scored on.
      score_held_out: whether the final runs are scored on them too, not on the test
        images: where rows are choices of ours that the test images must not make.
      seeds: of the final runs.
      seeds_first: whether all rows have their first seed before one has its second.
      eval_every: epochs between the evaluations of a final run.
      last: evaluations at the end whose mean is the accuracy.
      jobs: runs at a time.
      xla_flags: of the processes that train.
      published: {what: accuracy in percent}, from the paper of the protocol.
    """

    title: str
    base: Callable[[], Any]
    layers: str
    starts: tuple[Start, ...]
    rates: tuple[float, ...]
    rows: Mapping[str, Row]
    float_starts: tuple[Start, ...] = ()
    search: float = 0.2
    validation_size: int = 5000
    score_held_out: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    seeds_first: bool = False
    eval_every: float = 10.0
    last: int = 1
    jobs: int = 1
    xla_flags: str = ""
    published: Mapping[str, float] = {}

    def starts_of(self, row: str) -> tuple[Start, ...]:
        """The starts that a row is tried with."""
        starts = self.float_starts if row == FLOAT and self.float_starts else None
        wanted = self.rows[row].start
        return tuple(s for s in starts or self.starts if not wanted or s.name == wanted)

    def rates_of(self, row: str) -> tuple[float, ...]:
        """The learning rates that a row is tried with."""
        return self.rows[row].rates or self.rates


def both(total: float) -> tuple[Start, ...]:
    """From scratch, nearly linear at first; and from a float network: equal totals."""
    return (
        Start("scratch", 0.0, total, 1 / 3),
        Start("warm", total / 2, total / 2),
    )


INNER = "all but the first and the last layer"
# Compiling takes half as long at this level, and the steps are as fast.
CPU_FLAGS = "--xla_backend_optimization_level=1"
SMALL_RATES = (0.1, 0.2, 0.4, 0.8)
RATES = (0.03, 0.1, 0.3)


def _small(title: str, base: Callable, rows: Mapping[str, Row], **more: Any):
    options = {"search": 0.4, "validation_size": 2000, "eval_every": 2.0, "jobs": 2}
    options |= {"rates": SMALL_RATES, "xla_flags": CPU_FLAGS, "starts": both(20.0)}
    return Protocol(title, base, INNER, rows=rows, **options | more)


def _resnet20(title: str, base: Callable, total: float, rows: Mapping[str, Row]):
    return Protocol(title, base, INNER, both(total), RATES, rows)


def _metaquant(title: str, base: Callable, published: Mapping[str, float]):
    return Protocol(
        title,
        base,
        "all layers",
        starts=(Start("warm", 200.0, 100.0),),
        float_starts=(Start("scratch", 0.0, 200.0),),
        rates=(0.01, 0.03, 0.1),
        rows=protocol_rows.all_layers(),
        eval_every=1.0,
        last=10,
        published=published,
    )


def _ladder(title: str, base: Callable, total: float, rates, **more: Any) -> Protocol:
    return Protocol(
        title,
        base,
        INNER,
        starts=both(total),
        rates=rates,
        rows=protocol_rows.ladder(),
        score_held_out=True,
        seeds_first=True,
        **more,
    )


PROTOCOLS: dict[str, Protocol] = {
    "small": _small(
        "20 classes of CIFAR-100 (10,000 + 2,000 images), ResNet-8 of width 16 with a "
        "stem of stride 2, batch 64, 20 epochs in total: the size of two CPU cores",
        cifar100_small.get_config,
        protocol_rows.family(),
    ),
    "small_full": _small(
        "20 classes of CIFAR-100 (10,000 + 2,000 images), ResNet-8 of width 16, batch "
        "64, 20 epochs in total: as 'small', the stem with stride 1",
        lambda: cifar100_small.get_config("full"),
        protocol_rows.few(SMALL_RATES[1:]),
        rates=SMALL_RATES[:3],
        seeds_first=True,
        eval_every=4.0,
    ),
    "small_ladder": _ladder(
        "What each part of QuantNet is worth: as 'small' with 10 epochs in total, one "
        "factor at a time, accuracy on 2,000 held-out training images",
        cifar100_small.get_config,
        10.0,
        (0.1, 0.2, 0.4),
        search=0.6,
        validation_size=2000,
        seeds=(0, 1),
        eval_every=2.0,
        jobs=2,
        xla_flags=CPU_FLAGS,
    ),
    "small_short": _small(
        "20 classes of CIFAR-100, as 'small' with 10 epochs in total, each member as "
        "the ladder above likes it (those without a name: quantnet): "
        f"{', '.join(protocol_rows.SMALL_TUNED.values())}",
        cifar100_small.get_config,
        protocol_rows.tuned(),
        starts=both(10.0),
        search=0.6,
        seeds=(0, 1, 2, 3, 4),
    ),
    "B200": _resnet20(
        "CIFAR-100, ResNet-20, 200 epochs in total (protocol of IR-Net)",
        cifar100_resnet20.get_config,
        200.0,
        protocol_rows.family(),
    ),
    "A56": _metaquant(
        "CIFAR-100, ResNet-56, 100 epochs from a float network of 200 (protocol of "
        "MetaQuant)",
        cifar100_resnet56.get_config,
        {
            "float": 71.22,
            "best binary (BWN, Adam, FCGrad)": 67.02,
            "STE with Adam (DoReFa)": 66.42,
        },
    ),
    "ladder": _ladder(
        "What each part of QuantNet is worth: CIFAR-100, ResNet-20, 60 epochs in total,"
        " one factor at a time, accuracy on 5,000 held-out training images",
        cifar100_resnet20.get_config,
        60.0,
        RATES,
        search=0.5,
    ),
    "C": _resnet20(
        "CIFAR-100, ResNet-20, 2 to 4 bits, 200 epochs in total",
        cifar100_resnet20_bits.get_config,
        200.0,
        protocol_rows.more_bits(),
    ),
    "B400": _resnet20(
        "CIFAR-100, ResNet-20, 400 epochs in total (protocol of IR-Net)",
        cifar100_resnet20.get_config,
        400.0,
        protocol_rows.family(protocol_rows.KEY),
    ),
    "A110": _metaquant(
        "CIFAR-100, ResNet-110, 100 epochs from a float network of 200 (protocol of "
        "MetaQuant)",
        cifar100_resnet110.get_config,
        {
            "float": 72.54,
            "best binary (BWN, Adam, FCGrad)": 69.11,
            "STE with Adam (DoReFa)": 66.84,
        },
    ),
}
ON_CPU = ("small_ladder", "small_short", "small_full", "small")
ON_ACCELERATOR = ("B200", "A56", "ladder", "C", "B400", "A110", "small")


def configuration(
    protocol: Protocol,
    row: str,
    start: Start,
    *,
    rate: float,
    seed: int,
    held_out: bool,
    scale: float = 1.0,
) -> Any:
    """The configuration of one run; data, folder and float network are still to be set.

    Args:
      protocol: of the run.
      row: one of its rows.
      start: how it begins.
      rate: learning rate of the weights.
      seed: of everything.
      held_out: whether it is scored on held-out training images.
      scale: of its length.
    """
    c = protocol.base()
    found = protocol.rows[row]
    c.init_from = ""
    c.report = c.tensorboard = c.export = False
    c.recalibration_batches = min(c.recalibration_batches, 20)
    c.keep_latest = 1
    c.seed = seed
    c.epochs = float(start.epochs * scale)
    c.eval_every = c.epochs if scale != 1.0 else protocol.eval_every
    c.data.validation_size = protocol.validation_size if held_out else 0
    c.weights.learning_rate = rate
    c.quantizer.name = found.method
    section = quantizers.recipe(found.method)
    if "sharpness" in section:
        section["sharpness"]["start"] *= start.sharpness
    c.quantizer[found.method] = ConfigDict(section)
    c.update_from_flattened_dict(dict(found.changes))
    return c
