"""Post-training quantization of a run of this package: its network, data and scores."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import jax
from ml_collections import ConfigDict

from quantnet_jax import config as config_lib
from quantnet_jax import models
from quantnet_jax.common.limits import Number, check
from quantnet_jax.distributed import runners
from quantnet_jax.evaluation import forward, recalibration
from quantnet_jax.evaluation.scoring import make_apply
from quantnet_jax.posttrain.driver import Layer, posttrain
from quantnet_jax.posttrain.sites import calibrate_sites
from quantnet_jax.training.experiment import Experiment
from quantnet_jax.training.feed import with_rows
from quantnet_jax.training.state import TrainState, eval_state
from quantnet_jax.trees.tree import Rule, dequantize_tree

PyTree = Any
CLIP = "learned_clip"


class Run:
    """A trained network with its data.

    Args:
      exp: of the run.
      params, batch_stats: of the network, on the host.
      images: training images for calibration, in whole batches of the run.
    """

    def __init__(
        self, exp: Experiment, params: PyTree, batch_stats: PyTree, images: int
    ):
        self.exp, self.images = exp, images
        self.params, self.batch_stats = params, batch_stats

    def batches(self) -> Iterator[jax.Array]:
        """Inputs of the network: training images, not augmented."""
        size, feed = self.exp.config.batch_size, self.exp.feed
        for batch in itertools.islice(feed.train(0), -(-self.images // size)):
            yield self._prepare(with_rows(batch, feed.train_data))

    @cached_property
    def _prepare(self) -> Callable:
        prepare = self.exp.prepare["test"]
        return jax.jit(lambda batch: prepare(None, batch)["input"])

    @cached_property
    def apply(self) -> Callable:
        """`(params, inputs) -> outputs`, with the statistics of the float network."""
        model, stats = self.exp.model, self.batch_stats
        return lambda params, x: model.apply(
            {"params": params, "batch_stats": stats}, x, train=False
        )

    def quantize(
        self,
        rules: Sequence[Rule],
        *,
        positions: float = 1.0,
        folder: str | os.PathLike | None = None,
        report: Callable[[Layer], None] | None = None,
    ) -> PyTree:
        """The parameters with `QTensor` leaves; see `posttrain`."""
        return posttrain(
            *(self.apply, self.params, self.batches, rules),
            positions=positions,
            folder=folder,
            report=report,
            seed=self.exp.config.seed,
        )

    def with_activations(self, params: PyTree, bits: int, quantile: float) -> "Run":
        """This network with quantized activations, calibrated for these parameters.

        Args:
          params: may have `QTensor` leaves.
          bits: of activations, at the sites of the network.
          quantile: see `calibrate_sites`.
        """
        config = self.exp.config.copy_and_resolve_references()
        options = {"bits": bits, "signed": False, "warmup": 0, "quantile": 1.0}
        config.activation.name = CLIP
        config.activation[CLIP] = ConfigDict(options | {"calibration": 0.0})
        devices = runners.dividing_devices(config.batch_size, config.eval_batch_size)
        exp = Experiment(config, devices)
        start = jax.device_get(exp.state.params["model"])
        apply = lambda p, x: exp.model.apply(
            {"params": p, "batch_stats": self.batch_stats}, x, train=False
        )
        floats = calibrate_sites(
            apply,
            _merged(start, dequantize_tree(params)),
            self.batches(),
            quantile=quantile,
        )
        made = _merged(jax.device_get(floats), params)
        return Run(exp, made, self.batch_stats, self.images)

    def recalibrated(self, params: PyTree) -> PyTree:
        """BatchNorm statistics of quantized weights, or those of the float network.

        From `config.recalibration_batches` augmented training batches, as evaluation
        does it; without any, or without BatchNorm, nothing changes.
        """
        count = self.exp.config.recalibration_batches
        if not count or not jax.tree.leaves(self.batch_stats):
            return self.batch_stats
        runner, some = self.exp.runner, self.exp.feed.train(0)
        sharded = (runner.shard(next(some)) for _ in range(count))
        return recalibration.average_statistics(
            self._statistics, runner.place(dequantize_tree(params)),
            runner.place(self.batch_stats), self.exp.data["train"], sharded,
        )  # fmt: skip

    @cached_property
    def _statistics(self) -> Callable:
        exp = self.exp
        apply = make_apply(exp.model.clone(momentum=0.0), exp.runner)
        made = forward.make_statistics(apply, exp.prepare["train"])
        return exp.runner.compile(made, replicated=3, out=runners.STATE)

    def folded(self, params: PyTree, batch_stats: PyTree | None = None) -> PyTree:
        """Parameters of the network that ships: BatchNorm put into scale and bias."""
        stats = self.batch_stats if batch_stats is None else batch_stats
        return jax.device_get(models.fold(params, jax.device_get(stats)))

    def score(self, folded: PyTree) -> float:
        """The primary metric on the test images."""
        scoring = self.exp.scoring
        placed = self.exp.runner.place(dequantize_tree(folded))
        return float(scoring.measure(scoring.predict(placed)))


def _merged(base: Any, over: Any) -> Any:
    """`base` with the entries of `over`, which may have fewer."""
    if not isinstance(over, dict):
        return over
    return {k: _merged(v, over[k]) if k in over else v for k, v in base.items()}


def of_state(exp: Experiment, state: TrainState, images: int = 1024) -> Run:
    """The `Run` of a restored state of a float run.

    Raises:
      ValueError: the run is quantized already; no images.
    """
    if found := config_lib.quantizing(exp.config):
        raise ValueError(f"{found}: only a float run can be quantized afterwards")
    check("images", images, Number(1, 2**31 - 1, whole=True))
    found = jax.device_get(eval_state(state))
    return Run(exp, found.params["model"], found.batch_stats, images)
