"""Post-training quantization of a whole network, layer by layer."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.common.limits import check
from quantnet_jax.posttrain import calibrate, store
from quantnet_jax.posttrain.assemble import assemble, values_of
from quantnet_jax.posttrain.capture import Use, evaluate
from quantnet_jax.posttrain.methods.solver import Solver
from quantnet_jax.quantizers.options import SHARE
from quantnet_jax.trees import layout, paths
from quantnet_jax.trees.tree import Rule, plan

PyTree = Any
Batches = Iterable[PyTree] | Callable[[], Iterable[PyTree]]


class Layer(NamedTuple):
    """What is said of a finished layer.

    Attributes:
      layer, layers: its number, from 1 on, and how many there are.
      path: of the parameter.
      method: that was used.
      error: relative squared error of the outputs on the calibration batches; None of a
        method that does not look at them.
      seconds: that it took.
    """

    layer: int
    layers: int
    path: str
    method: str
    error: float | None
    seconds: float

    def __str__(self) -> str:
        error = "" if self.error is None else f", output error {self.error:.2g}"
        about = f"{self.path} {self.method}{error} ({self.seconds:.1f} s)"
        return f"layer {self.layer}/{self.layers} {about}"


class Unit(NamedTuple):
    """Weights that are quantized at once: a layer, or one iteration of a scanned one.

    Attributes:
      path: of the parameter.
      matrix: as of `Use`.
      visits: numbers of the uses that read them, in the order of the trace.
      solver: the method.
    """

    path: str
    matrix: np.ndarray
    visits: tuple[int, ...]
    solver: Solver


def posttrain(
    apply: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    batches: Batches,
    rules: Sequence[Rule],
    *,
    positions: float = 1.0,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    report: Callable[[Layer], None] | None = None,
) -> PyTree:
    """Quantizes the weights of a trained network, without training.

    Layers are quantized in the order in which `apply` reads them, each with the inputs
    that the float network has there and those of the network whose earlier layers are
    quantized. Of the inputs only three N x N matrices are stored (N: weights of an
    output unit), and the rows of one batch twice: memory is that of any number of them.

    Args:
      apply: `(params, batch) -> outputs`, any traceable function, in evaluation mode.
      params: tree of float arrays.
      batches: what `apply` takes, a list or a function that returns an iterable; it is
        gone through once for each layer.
      rules: as for `tree_quantizer`, with a method of `quantnet_jax.posttrain` in the
        place of the quantizer. Tensors that no rule claims stay float. Which axes count
        output units is read from the products; `out` and `stack` are for tensors that
        no product reads.
      positions: fraction of the places of each batch (rows of X) that is used, drawn at
        random, the same for both networks.
      seed: of the draws.
      folder: finished layers are saved there, and found again by a call with the same
        arguments.
      report: gets the `Layer` of each; prints a line on stderr by default.

    Returns:
      The tree with `QTensor` leaves: for `dequantize_tree`, `evaluate_tree`, `gap`,
      `export_tree` and all else that takes one.

    Raises:
      ValueError: in one line: a rule claims nothing, or two claim a tensor; a weight is
        not finite; a method needs inputs that no product of the tensor has; `batches`
        is empty or can be gone through only once.

    Example:
      >>> from quantnet_jax.posttrain import gpfq
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}
      >>> batches = [jax.random.normal(jax.random.key(1), (16, 8))]
      >>> made = posttrain(lambda p, x: x @ p["kernel"], params, batches,
      ...                  [Rule("kernel", gpfq(bits=4))], report=lambda line: None)
      >>> made["kernel"].bits
      4
    """
    check("positions", positions, SHARE)
    stream = _stream(batches)
    units = _units(apply, params, next(iter(stream()), None), rules)
    leaves = paths.flatten(params)
    about = [[(u.path, repr(u.solver)) for u in units], positions, seed]
    saved = store.Store(folder, leaves, about)
    made: dict[str, list] = {}
    quantized = {u.path: np.array(leaves[u.path], np.float32) for u in units}
    for path, w in quantized.items():
        if not np.isfinite(w).all():
            raise ValueError(f"{path}: not every weight is finite")
    for number, unit in enumerate(units):
        began, found = time.monotonic(), saved.load(number)
        if found is None:
            key = jax.random.fold_in(jax.random.key(seed), number)
            w = np.ravel(np.asarray(leaves[unit.path], np.float32))[unit.matrix]
            sums = None
            if unit.solver.inputs:
                now = _replaced(params, quantized)
                sums = calibrate.gram_sums(
                    apply, params, now, stream, unit.visits, positions, key
                )
            qt, error = jax.device_get(calibrate.solve(unit.solver.solve, w, sums, key))
            found = qt, None if error is None else float(error)
            saved.save(number, *found)
        made.setdefault(unit.path, []).append((unit.matrix, found[0]))
        quantized[unit.path].reshape(-1)[unit.matrix] = values_of(found[0])
        line = Layer(
            number + 1, len(units), unit.path, repr(unit.solver), found[1],
            time.monotonic() - began,
        )  # fmt: skip
        (report or _print)(line)
    return paths.replace(
        params, {p: assemble(np.shape(leaves[p]), x, p) for p, x in made.items()}
    )


def _stream(batches: Batches) -> Callable[[], Iterable[PyTree]]:
    if callable(batches):
        return batches
    if isinstance(batches, Iterator):
        raise ValueError(
            "`batches` is an iterator, which can be gone through once; expected a list "
            "or a function that returns an iterable"
        )
    return lambda: batches


def _units(apply, params: PyTree, batch: PyTree, rules: Sequence[Rule]) -> list[Unit]:
    """What is to be quantized, in the order of the trace."""
    if batch is None:
        raise ValueError("`batches` is empty, expected at least one batch")
    buckets = {path: b for b in plan(rules, params) for path in b.paths}
    methods: dict[str, Any] = {path: b.quantizer for path, b in buckets.items()}
    for path, method in methods.items():
        if not isinstance(method, Solver):
            raise ValueError(
                f"{path!r}: its rule has {method!r}, expected a method of "
                "quantnet_jax.posttrain, such as gpfq(bits=4)"
            )
    uses: list[Use] = []

    def visit(use, x):
        uses.append(use)
        return x

    jax.eval_shape(lambda p, x: evaluate(apply, p, x, visit), params, batch)
    found: dict[tuple, Unit] = {}
    for number, use in enumerate(uses):
        if use.path in buckets:
            name = use.path, use.matrix.shape, use.matrix.tobytes()
            old = found.get(name)
            visits = (*(old.visits if old else ()), number)
            found[name] = Unit(use.path, use.matrix, visits, methods[use.path])
    units = list(found.values())
    for path in sorted(set(buckets) - {unit.path for unit in units}):
        method, where = methods[path], buckets[path].layout
        if method.inputs:
            raise ValueError(
                f"{path!r}: {method!r} needs the inputs of a convolution or matrix "
                "product that reads it as it is; there is none; expected another "
                "method, such as rtn, or a narrower rule"
            )
        size = np.arange(math.prod(where.shape), dtype=np.int32).reshape(where.shape)
        parts = np.asarray(layout.split(jnp.asarray(size), where))
        units.append(
            Unit(path, parts.reshape(len(parts), -1, parts.shape[-1]), (), method)
        )
    return units


def _replaced(params: PyTree, values: dict[str, np.ndarray]) -> PyTree:
    leaves = paths.flatten(params)
    return paths.replace(
        params, {k: x.astype(leaves[k].dtype) for k, x in values.items()}
    )


def _print(line: Layer) -> None:
    print(line, file=sys.stderr, flush=True)
