"""The vocabulary of tasks: what a batch is, its loss and its metrics.

A task is a NamedTuple of pure functions, made by a factory, like a quantizer. Training,
evaluation, checkpoints, deployment and reports see it through these fields alone.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

PyTree = Any
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Metric(NamedTuple):
    """The number that a task is judged by.

    Attributes:
      name: a key of what `Task.metrics` returns.
      unit: how a person reads it: '%' for a fraction, else a suffix such as ' dB'.
      higher_is_better: whether more of it is better.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True


class Task(NamedTuple):
    """A task as pure functions of batches and of what a model returns.

    `outputs` is what the model returns: an array whose first axis counts examples, or a
    dict of such arrays. `examples` is a dict of arrays of the same first axis, among
    them 'input' (what the model gets) and 'mask' (float32, 0 for padding).

    Attributes:
      primary: selects the best checkpoint, and is what results are compared by.
      prepare: `(data, batch, *, seed, train) -> examples`: augmentation (if `train`)
        and normalization, on the device. `data` is what the devices hold of the
        dataset, None if it is streamed.
      loss: `(outputs, examples, *, train) -> float32 (N,)`, one number an example;
        without `train` nothing that only regularizes, such as label smoothing.
      metrics: `(outputs, examples) -> {name: float32 (N,)}`; means are over real
        examples, each counted exactly once.
      compare: `(soft outputs, hard outputs) -> {name: float32 (N,)}`: how far the two
        are apart (KL divergence, PSNR between them, ...).
      same: `(outputs, outputs) -> bool (N,)`, for NumPy arrays of two programs of one
        network: whether they decide alike; what an export is verified by.
      model_options: options of the model that follow from the data, such as
        {'outputs': 10} for a head of ten logits.
      info: JSON data that ships with an exported network, such as names of its outputs.
      panels: `(outputs, examples) -> JSON data`, NumPy arrays of test examples: what a
        report shows of predictions, {} for nothing. 'matrix' is {'title', 'names',
        'counts'}, a square of numbers; 'samples' are {'index' of the example, 'title',
        'text', 'good'}, perhaps with 'images', {caption: uint8 (H, W, C)}, in place of
        the example's.
      inner: None, or the optax transformation of the steps by which the network is
        adapted to each example before it is scored. Examples then have 'support',
        arrays (B, M, ...) of M inputs with their targets, and 'order', int (B, steps,
        batch size), the inputs of each step; 'input' has an axis more, (B, n, ...), as
        have the outputs, while in a step of the adaptation they are those of M inputs.
      test_size: examples of an evaluation; None: the test examples of the dataset.
    """

    primary: Metric
    prepare: Callable[..., dict[str, Any]]
    loss: Callable[..., Any]
    metrics: Callable[..., dict[str, Any]]
    compare: Callable[..., dict[str, Any]]
    same: Callable[..., Any]
    model_options: Mapping[str, Any] = NOTHING
    info: Mapping[str, Any] = NOTHING
    panels: Callable[..., Mapping[str, Any]] = lambda outputs, examples: {}
    inner: Any = None
    test_size: int | None = None


class Drawing(NamedTuple):
    """How a network that returns images is applied to an image of any size.

    Attributes:
      before: `(image uint8 (H, W, C), info) -> uint8 (H', W', C)`, what goes into it;
        `info` are that of the task.
      after: `(outputs (H'', W'', C), what went in, info, mean, std) -> uint8`, the
        image to be saved; ValueError if the outputs are not those of `info`.
      suffix: `info -> str` of the name of its file.
    """

    before: Callable[..., Any]
    after: Callable[..., Any]
    suffix: Callable[..., str]


class Source(NamedTuple):
    """What a task is made from: the dataset as far as a task needs to know it.

    Attributes:
      prepare: `(data, batch, *, seed, train) -> {'image', 'label', 'mask'}`: gathers,
        augments and normalizes the images of a batch.
      shape: (H, W, C) of an image.
      mean, std: of each channel, of pixels scaled to [0, 1].
      info: JSON data of the dataset, such as {'classes': names}.
      held: {'train', 'test'}: arrays of the dataset, 'label' among them, where it is
        held in memory.
    """

    prepare: Callable[..., dict[str, Any]]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    info: Mapping[str, Any]
    held: Mapping[str, Any] | None = None


def inputs_of(source: Source) -> Callable[..., dict[str, Any]]:
    """A `Task.prepare` whose 'input' is the image."""

    def prepare(data, batch, *, seed, train):
        made = source.prepare(data, batch, seed=seed, train=train)
        return {"input": made.pop("image"), **made}

    return prepare
