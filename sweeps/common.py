"""What the studies share: initializations, and the one place that knows config keys."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from quantnet_jax import quantizers
from quantnet_jax.experiments.study import FLOAT, Initialization, Row, Run, Study
from quantnet_jax.quantizers import members
from quantnet_jax.tasks.terms import TERMS

INNER = "all but the first and the last layer"
CPU_FLAGS = "--xla_backend_optimization_level=1"
"""Compiling takes half as long at this level, and the steps are as fast."""


EARLIER = {"schedule": "exponential", "start": 0.3, "end": 10.0, "until": 0.9}
"""The sharpness of the recipe when the first studies were run, see `earlier`."""


def configure(
    study: Study,
    run: Run,
    *,
    folder: str = "",
    init_from: str = "",
    dtype: str = "",
    sharpness: Mapping[str, Any] = members.SHARPNESS,
) -> Any:
    """The configuration of one run whose initialization is decided.

    Args:
      study, run: what is configured.
      folder: of the dataset's files.
      init_from: workdir of the float network, which is the teacher too.
      dtype: of the network, '' for that of the base.
      sharpness: of members whose recipe has that of QuantNet.
    """
    start, row, c = run.initialization, study.rows[run.row], study.base()
    assert start is not None and run.learning_rate is not None
    c.init_from = init_from
    c.report = c.tensorboard = c.export = False
    c.seed = run.seed
    c.epochs = float(start.epochs * run.scale)
    whole = run.kind == "final" or (run.kind == "float" and run.scale == 1.0)
    c.eval_every = study.eval_every if whole and study.eval_every else c.epochs
    c.data.folder = folder
    c.data.validation_size = study.validation_size if run.validate else 0
    c.dtype = dtype or c.dtype
    c.weights.learning_rate = run.learning_rate
    c.quantizer.name = row.method
    section = quantizers.options(row.method)
    if section.get("sharpness") == members.SHARPNESS:
        section["sharpness"] = dict(sharpness)
    if "sharpness" in section:
        section["sharpness"]["start"] *= start.sharpness
    if row.method in quantizers.MEMBERS:  # others have their options in the name
        c.quantizer[row.method] = ConfigDict(section)
    with c.unlocked():  # an option may be one that neither recipe nor base has
        c.update_from_flattened_dict(dict(row.changes))
    if any(TERMS[term["name"]].teacher for term in c.terms):
        c.teacher = init_from
    return c


earlier = functools.partial(configure, sharpness=EARLIER)
"""`configure` of the studies that were run before the recipe of today; rows of these
with that one say it, see `rows.schedule`."""


def scratch(epochs: float) -> tuple[Initialization, ...]:
    """From random weights alone."""
    return (Initialization("scratch", 0.0, epochs),)


def both(total: float) -> tuple[Initialization, ...]:
    """From scratch, nearly linear at first; and from a float network: equal totals."""
    return (
        Initialization("scratch", 0.0, total, 1 / 3),
        Initialization("warm", total / 2, total / 2),
    )


def single(get_config: Callable[..., Any], *variant: str) -> Callable[[], Any]:
    """A base that keeps one checkpoint."""

    def base():
        c = get_config(*variant)
        c.recalibration_batches = min(c.recalibration_batches, 20)
        c.keep_latest = 1
        return c

    return base


def small(title: str, rows: dict[str, Row], total: float = 20.0, **options: Any):
    """A study of the size of two CPU cores."""
    from configs import cifar100_small

    given = {
        "base": single(cifar100_small.get_config),
        "initializations": both(total),
        "learning_rates": (0.1, 0.2, 0.4, 0.8),
        "search": 0.4,
        "validation_size": 2000,
        "eval_every": 2.0,
        "jobs": 2,
        "xla_flags": CPU_FLAGS,
    }
    return Study(title, INNER, earlier, rows=rows, **given | options)


def resnet20(
    title: str, rows: dict[str, Row], total: float, base: Callable, **options: Any
) -> Study:
    """A study of ResNet-20 on CIFAR by the conventions of IR-Net."""
    given = {
        "base": single(base),
        "initializations": both(total),
        "learning_rates": (0.03, 0.1, 0.3),
        "eval_every": 10.0,
    }
    return Study(title, INNER, earlier, rows=rows, **given | options)


def metaquant(title: str, base: Callable, published: dict[str, float]) -> Study:
    """A study by the protocol of MetaQuant: all layers, from a float network."""
    from sweeps import rows

    return Study(
        title,
        "all layers",
        earlier,
        single(base),
        rows.all_layers(),
        (Initialization("warm", 200.0, 100.0),),
        (0.01, 0.03, 0.1),
        float_initializations=scratch(200.0),
        eval_every=1.0,
        last=10,
        published=published,
    )


def quick(
    title: str,
    rows: dict[str, Row],
    epochs: float = 4.0,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> Study:
    """A study of minutes, of the bundled images.

    At one learning rate, without a search, unless `options` has `learning_rates`: then
    each row searches its own.

    Args:
      title: of what is compared.
      rows: all but the float one, the first and those with an initialization of
        their own are `like` the first.
      epochs: of a run.
      changes: of the base, ResNet-8 of width 8, by dotted key.
      **options: of `Study`.
    """
    from configs import default

    def base():
        c = single(default.get_config)()
        c.model.width = 8
        c.layers = "inner"
        c.update_from_flattened_dict(changes or {})
        return c

    ahead = ("quantnet - row",) * ("quantnet" in rows)
    searched = "learning_rates" in options
    given = {
        "base": base,
        "initializations": scratch(epochs),
        "learning_rates": (0.1,),
        "search": 0.1,
        "validation_size": 2000,
        "xla_flags": CPU_FLAGS,
        "columns": ("W/A", "soft", "hard", "hard + BN", *ahead),
    }
    rows = dict(rows)
    first = next(row for row in rows if row != FLOAT)
    for name, row in rows.items():
        alone = searched or name in (first, FLOAT) or row.initialization
        rows[name] = row if alone else row._replace(like=first)
    if not searched:
        title = f"{title}; learning rate 0.1 for all rows, not searched"
    return Study(title, INNER, configure, rows=rows, **given | options)
