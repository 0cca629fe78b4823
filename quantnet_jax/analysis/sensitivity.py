"""Sensitivity of each layer to its width, and the widths that fit a budget of bytes.

`measure` scores a network with one layer alone quantized; `propose` then chooses a
width for each layer; the result goes into `config.rules`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from quantnet_jax.core.qtensor import QTensor, dequantize, trim
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.trees import paths

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Option:
    """One layer quantized in one way.

    Attributes:
      score: of the network with this layer alone quantized.
      nbytes: of the layer, packed.
    """

    score: float
    nbytes: int


class Choice(NamedTuple):
    """What `propose` returns.

    Attributes:
      labels: {path: label of a quantizer}.
      loss: sum of the losses of score of the layers alone.
      nbytes: of the layers.
    """

    labels: dict[str, str]
    loss: float
    nbytes: int


def measure(
    score: Callable[[PyTree], float],
    params: PyTree,
    layers: Iterable[str],
    quantizers: Mapping[str, Quantizer],
) -> dict[str, dict[str, Option]]:
    """{path: {label: `Option`}}: each layer alone, quantized after training.

    Args:
      score: `params -> number`, such as accuracy; the more the better.
      params: float weights of a trained network.
      layers: '/'-joined paths.
      quantizers: label -> what to quantize with; their parameters start from the
        weights.

    Raises:
      ValueError: a path that the network does not have.
    """
    leaves, found = paths.flatten(params), {}
    for path in layers:
        if path not in leaves:
            known = ", ".join(sorted(leaves))
            raise ValueError(f"layer {path!r} is none of the network's: {known}")
        found[path] = {}
        for label, q in quantizers.items():
            w = leaves[path]
            made = q.hard(q.init(jax.random.key(0), w), w)
            alone = paths.replace(params, {path: dequantize(made)})
            size = trim(made).nbytes if isinstance(made, QTensor) else made.nbytes
            found[path][label] = Option(float(score(alone)), int(size))
    return found


def propose(
    options: Mapping[str, Mapping[str, Option]], whole: float, budget: int
) -> Choice:
    """The least loss of score within a budget, if losses of layers add up.

    Exact: layer by layer, of all choices so far those that no other one beats in both
    loss and bytes are kept.

    Args:
      options: of `measure`.
      whole: score of the float network; a layer that scores higher loses nothing.
      budget: bytes of the layers together.

    Raises:
      ValueError: not even the smallest choice fits.
    """
    best = [Choice({}, 0.0, 0)]
    for path, given in options.items():
        tried = [
            Choice(
                c.labels | {path: label},
                c.loss + max(0.0, whole - option.score),
                c.nbytes + option.nbytes,
            )
            for c in best
            for label, option in given.items()
        ]
        best, least = [], float("inf")
        for c in sorted(tried, key=lambda c: (c.nbytes, c.loss)):
            if c.loss < least:
                best.append(c)
                least = c.loss
    fitting = [c for c in best if c.nbytes <= budget]
    if not fitting:
        raise ValueError(
            f"budget={budget} bytes, expected {best[0].nbytes} at least for "
            f"{len(options)} layers"
        )
    return fitting[-1]


def rules(
    choice: Choice, rows: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """The choice as `config.rules`.

    Args:
      choice: of `propose`.
      rows: label -> keys of a row, such as {"quantizer": "lsq", "bits": 4}.
    """
    return tuple({"pattern": p, **rows[x]} for p, x in choice.labels.items())
