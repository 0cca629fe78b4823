"""The vocabulary of tasks: what a batch is, its loss and its metrics.

A task is a NamedTuple of pure functions, made by a factory, like a quantizer. Training,
evaluation, checkpoints, deployment and reports see it through these fields alone.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

PyTree = Any
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Task(NamedTuple):
    """A task as pure functions of batches and of what a model returns.

    `outputs` is what the model returns: an array whose first axis counts examples, or a
    dict of such arrays. `examples` is a dict of arrays of the same first axis, among
    them 'input' (what the model gets) and 'mask' (float32, 0 for padding).

    Attributes:
      name: as in the registry.
      primary: the metric by which the best checkpoint is selected and results are
        compared; a key of what `metrics` returns.
      higher_is_better: whether more of the primary metric is better.
      unit: how a person reads the primary metric: '%' for a fraction, else a suffix
        such as ' dB'.
      prepare: `(data, batch, *, key, train) -> examples`: augmentation (if `train`) and
        normalization, on the device. `data` is what the devices hold, None if streamed.
      loss: `(outputs, examples) -> float32 (N,)`, one number an example.
      metrics: `(outputs, examples) -> {name: float32 (N,)}`; means are over real
        examples, each counted exactly once.
      compare: `(soft outputs, hard outputs) -> {name: float32 (N,)}`: how far the two
        are apart (KL divergence, PSNR between them, ...).
      model_options: options of the model that follow from the data, such as
        {'outputs': 10} for a head of ten logits.
      info: JSON data that ships with an exported network, such as names of its outputs.
    """

    name: str
    primary: str
    higher_is_better: bool
    unit: str
    prepare: Callable[..., dict[str, Any]]
    loss: Callable[..., Any]
    metrics: Callable[..., dict[str, Any]]
    compare: Callable[..., dict[str, Any]]
    model_options: Mapping[str, Any] = NOTHING
    info: Mapping[str, Any] = NOTHING
