"""From a configuration to everything that training and evaluation need."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.config import Config, check
from quantnet_jax.core.quantizer import Quantizer, prepared
from quantnet_jax.distributed import hosts, runners
from quantnet_jax.evaluation import gap
from quantnet_jax.evaluation.scoring import Scoring, make_apply, make_scoring
from quantnet_jax.tasks import Source, Task
from quantnet_jax.tasks.terms import TERMS
from quantnet_jax.training import build_check, dispatch, distillation, parts, steps
from quantnet_jax.training.estimators import estimator, gradients, reptile
from quantnet_jax.training.feed import Feed, dispatches, make_feed, test_rows
from quantnet_jax.training.state import TrainState, eval_state, first_state
from quantnet_jax.trees import tree

PyTree = Any
PARTS = "runner feed steps steps_per_call task shapes gradients train_step".split()
"""Of an `Experiment`, which can fail."""
ONES = itertools.repeat(1)
STEPPED = (runners.STATE, runners.REPLICATED)  # where the results of a step go


class Experiment:
    """A built configuration; each part is made when it is first asked for.

    Args:
      config: see `quantnet_jax.config`.
      devices: to run on; default all.

    Raises:
      ValueError, FileNotFoundError: one line that names the key or the file, here or
        when a part is made; `build` makes all that can fail.
    """

    def __init__(self, config: Config, devices: list | None = None):
        check(config)
        self.config = config
        self._devices = devices

    # Data and task --------------------------------------------------------------------
    @cached_property
    def runner(self) -> runners.Runner:
        """What compiles for the devices."""
        c = self.config
        runner = runners.make_runner(c.runner, self._devices, c.fsdp)
        runners.check_batch("batch_size", c.batch_size, runner)
        runners.check_batch("eval_batch_size", c.eval_batch_size, runner)
        build_check.check_devices(c, runner.devices)
        return runner

    @cached_property
    def feed(self) -> Feed:
        """The batches."""
        return make_feed(self.config, self.runner)

    @cached_property
    def task(self) -> Task:
        """What a batch is, its loss and its metrics."""
        f = self.feed
        source = Source(f.prepare, f.shape, f.mean, f.std, f.info, f.held())
        return parts.make_task(self.config, source)

    @cached_property
    def _sizes(self) -> tuple[float, int]:
        return build_check.check_data(self.config, self.feed)

    @property
    def test_size(self) -> int:
        """Examples of an evaluation."""
        return self.task.test_size or self.feed.test_size

    def test_batches(self) -> Iterator:
        """This process' batches of an evaluation, each example once."""
        if (size := self.task.test_size) is None:
            return self.feed.test()
        return test_rows(size, self.config, self.runner)

    # Steps of one epoch, a fraction in general, and of the whole run.
    epoch_steps = property(lambda self: self._sizes[0])
    steps = property(lambda self: self._sizes[1])

    @cached_property
    def data(self) -> dict[str, PyTree]:
        """'train' and 'test': what the devices hold of the dataset; None: streamed."""
        arrays = self.feed.held() or {"train": None, "test": None}
        replicate = self.runner.replicate
        return {k: None if x is None else replicate(x) for k, x in arrays.items()}

    @cached_property
    def prepare(self) -> dict[str, Callable]:
        """'train' (augments) and 'test': `(data, batch) -> examples`."""
        prepare = self.task.prepare
        return {
            "train": functools.partial(prepare, seed=self.config.seed, train=True),
            "test": functools.partial(prepare, seed=0, train=False),
        }

    def train_batches(self, first: int, counts: Iterable[int] = ONES) -> Iterator:
        """Sharded batches from a step on; see `feed.dispatches`."""
        return dispatches(self.feed, self.runner, first, counts)

    # Network and quantizer ------------------------------------------------------------
    @cached_property
    def model(self):
        """The linen network."""
        c, options = self.config, self.task.model_options
        # A network that adapts to each example normalizes by that example alone.
        axis_name = self.runner.axis_name if self.task.inner is None else None
        return parts.make_model(c, options, axis_name, self.steps)

    @cached_property
    def _trace(self) -> tuple[PyTree, list[str]]:
        return parts.trace_network(self.model, self.feed.shape)

    @cached_property
    def buckets(self) -> tuple[tree.Bucket, ...]:
        """Which tensors are quantized, by what."""
        rules = parts.make_rules(self.config, self.steps)
        return build_check.plan(self.config, rules, self._trace[0])

    @cached_property
    def quantizer(self) -> Quantizer:
        """Over the tree of the model's parameters."""
        return prepared(tree.bucket_quantizer(self.buckets), self.runner.all_gather)

    def init_qparams(self, params: PyTree) -> PyTree:
        """(Re)initializes `qparams` from the weights of the model, on the host."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        return jax.device_get(jax.jit(self.quantizer.init)(key, params))

    @cached_property
    def state(self) -> TrainState:
        """Before the first step, on the devices."""
        c = self.config
        images = jnp.zeros((1, *self.feed.shape))
        if real := bool(c.activation.name):  # then BatchNorm takes its statistics
            images = self.prepare["test"](None, self.feed.sample())["input"]
        args = (self.model, self.quantizer, self.tx, images, c.seed)
        averaged = c.ema_decay > 0
        return self.runner.place(first_state(*args, train=real, averaged=averaged))

    @cached_property
    def shapes(self) -> dict[str, PyTree]:
        """{'model', 'quant'}: of what is trained, all of which has an optimizer."""
        parts.check_activation(self.config, self._trace[1], self.steps)
        return build_check.trained(self._trace[0], self.quantizer, self.tx)

    # Training -------------------------------------------------------------------------
    @cached_property
    def learning_rate(self) -> Callable:
        """Of the weights, a schedule of the step."""
        return parts.make_rate("weights", self.config.weights, self.steps)

    @cached_property
    def tx(self):
        """The optimizer over {'model', 'quant'}."""
        args = (self.config, self.steps, self.learning_rate, self.quantizer)
        return parts.make_tx(*args)

    @cached_property
    def teacher(self) -> distillation.Teacher | None:
        """The trained network of `config.teacher`."""
        if not self.config.teacher:
            return None
        return distillation.load_teacher(self.config, self.feed, self.task, self.runner)

    @cached_property
    def train_data(self) -> PyTree:
        """The second argument of the training step."""
        if self.teacher is None:
            return self.data["train"]
        return distillation.beside(self.data["train"], self.teacher, self.runner)

    @cached_property
    def gradients(self) -> gradients.Gradients:
        """The gradient estimator of `config.meta.mode`, or of the quantizer."""
        c, prepare = self.config, self.prepare["train"]
        if self.teacher is not None:
            prepare = distillation.with_teacher(prepare, self.teacher.outputs)
        return estimator.choose(
            *(c, self._loss, prepare, self.learning_rate, self.quantizer, self.tx),
            self.runner.devices,
            self._adapt,
        )

    @cached_property
    def _apply(self) -> Callable:
        apply = make_apply(self.model, self.runner)
        loops = self.task.inner is not None and hosts.backend() == "cpu"
        return reptile.in_loops(apply) if loops else apply

    @cached_property
    def _loss(self) -> Callable:
        c = self.config
        return steps.make_loss(
            *(self._apply, self.quantizer, self.task),
            seed=c.seed,
            terms=parts.make_terms(c),
            inputs=any(TERMS[row["name"]].inputs for row in c.terms),
        )

    @cached_property
    def _adapt(self) -> Callable | None:
        inner = self.task.inner
        return None if inner is None else reptile.make_adapt(self._loss, inner)

    @cached_property
    def steps_per_call(self) -> int:
        """Most steps of one dispatch."""
        c, held = self.config, self.feed.train_data is not None
        return dispatch.steps_per_call(
            c.steps_per_call, c.log_every, in_memory=held, backend=hosts.backend()
        )

    @cached_property
    def _step(self) -> Callable:
        decay = self.config.ema_decay
        return steps.make_train_step(self.gradients, self.tx, decay=decay)

    @cached_property
    def train_step(self) -> Callable:
        """`(state, train_data, batch) -> (state, metrics)`; donates the state."""
        return self.runner.compile(self._step, 2, out=STEPPED, donate=True)

    @cached_property
    def train_chunk(self) -> Callable:
        """As `train_step`, of stacked batches, with the metrics of each step."""
        chunk = steps.make_chunk(self._step, hosts.backend() == "cpu")
        return self.runner.compile(chunk, 2, out=STEPPED, donate=True, axis=1)

    @cached_property
    def is_finite(self) -> Callable[[TrainState], bool]:
        """Whether no number of a state is infinite or NaN."""
        finite = self.runner.compile(steps.all_finite, replicated=1)
        return lambda state: bool(finite(state))

    # Evaluation: of averaged parameters, where there are some -------------------------
    @cached_property
    def _realize(self) -> Callable:
        realize = gap.make_realize(self.quantizer)
        return self.runner.compile(realize, replicated=1, out=gap.REALIZED)

    @cached_property
    def scoring(self) -> Scoring:
        """The compiled functions of evaluation."""
        batches = {"train": lambda: self.feed.train(0), "test": self.test_batches}
        return make_scoring(
            *(self.model, self._realize, self.runner, self.task, self.data),
            *(self.prepare, batches, self.config.recalibration_batches, self._adapted),
        )

    @cached_property
    def _adapted(self) -> Callable | None:
        adapt, more = self._adapt, (self._apply, self.quantizer, self.prepare["test"])
        return adapt and reptile.make_outputs(adapt, *more)

    def evaluate(self, state: TrainState, codes: dict | None = None):
        """(scores, layers, codes); `codes` are those of the evaluation before."""
        return self.scoring.evaluate(eval_state(state), codes)

    def codes(self, state: TrainState) -> dict[str, np.ndarray]:
        """{path: uint8 codes} of the quantized tensors, on the host."""
        return jax.device_get(self._realize(eval_state(state)).codes)

    @cached_property
    def _fold_hard(self) -> Callable:
        return self.runner.compile(gap.make_fold(self.quantizer), replicated=2)

    def deployed(self, state: TrainState, bn: bool = False) -> PyTree:
        """Parameters of the folded network, with QTensor leaves.

        Args:
          state: of the run.
          bn: recalibrate the BatchNorm statistics for the hard weights.
        """
        state = eval_state(state)
        stats = self.scoring.statistics(state) if bn else state.batch_stats
        return self._fold_hard(state.params, stats)


def build(config: Config, devices: list | None = None) -> Experiment:
    """An experiment whose parts that can fail are made; nothing is written.

    Raises:
      ValueError, FileNotFoundError: one line that names the key or the file.
    """
    exp = Experiment(config, devices)
    for part in PARTS:
        getattr(exp, part)
    return exp
