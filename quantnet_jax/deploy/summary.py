"""Bits, bytes and multiply-accumulates of a network, layer by layer."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.activations import ActivationQuantizer
from quantnet_jax.core.qtensor import is_qtensor, trim
from quantnet_jax.deploy.format import sparse
from quantnet_jax.deploy.format.artifact import NO_FILE
from quantnet_jax.deploy.format.packed import Words, is_quantized, leaves
from quantnet_jax.deploy.spec import NetworkSpec
from quantnet_jax.deploy.stablehlo import inputs_of
from quantnet_jax.deploy.summary_text import to_text
from quantnet_jax.trees import macs

PyTree = Any
NO_PARAMETER = "(no parameter)"
"""The row of products of two activations, or of an activation and a constant."""


class Row(NamedTuple):
    """A layer: one tensor with two axes or more, and its vectors.

    Attributes:
      path: '/'-joined, of the layer; of the tensor where a layer has several.
      shape: of the tensor.
      bits: of one of its numbers in the file.
      activation: bits of its inputs; None without multiplications.
      output: shape of its (first) result; None without multiplications.
      weights: numbers of all tensors of the row.
      quantized: those that are stored as codes.
      codes, levels, scales, floats: bytes in the file.
      macs: {'weight bits/activation bits': multiply-accumulates}.
      pruned: weights of the level 0 that the file holds as a mask, part of `codes`.
    """

    path: str
    shape: tuple[int, ...]
    bits: int
    activation: int | None
    output: tuple[int, ...] | None
    weights: int
    quantized: int
    codes: int
    levels: int
    scales: int
    floats: int
    macs: Mapping[str, int]
    pruned: int = 0


class Summary(NamedTuple):
    """A network, layer by layer; `print` shows the table.

    Attributes:
      rows: in the order in which the network uses them.
      float_bytes: of the float32 network that it is compared with.
    """

    rows: tuple[Row, ...]
    float_bytes: int

    def __str__(self) -> str:
        return to_text(self)

    def __repr__(self) -> str:
        return (
            f"Summary({len(self.rows)} rows, {self.payload:,} bytes, "
            f"compression {self.compression:.2f})"
        )

    def total(self, name: str) -> int:
        """Sum over the rows of 'weights', 'codes' or another number of `Row`."""
        return sum(getattr(row, name) for row in self.rows)

    @property
    def payload(self) -> int:
        """Bytes of all tensors in the file: the 'payload' of `deploy.write`."""
        return sum(map(self.total, ("codes", "levels", "scales", "floats")))

    @property
    def compression(self) -> float:
        """Bytes of the float32 network over those of the payload."""
        return self.float_bytes / max(1, self.payload)

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-accumulates by 'weight bits/activation bits', fewest bits first."""
        found: collections.Counter[str] = collections.Counter()
        for row in self.rows:
            found.update(row.macs)
        order = lambda item: tuple(map(int, item[0].split("/")))
        return dict(sorted(found.items(), key=order))


class _Tensor(NamedTuple):
    """A leaf of the parameter tree."""

    path: str
    shape: tuple[int, ...]
    bits: int
    quantized: bool
    codes: int
    levels: int
    scales: int
    floats: int
    pruned: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def summarize(
    apply: Callable,
    params: PyTree,
    example: PyTree,
    *,
    dtype: str = "float32",
    float_network: PyTree = None,
) -> Summary:
    """Sizes and products of any network; nothing is computed, shapes suffice.

    Of shapes alone, sparse tensors count as dense ones: at most so many bytes.

    Args:
      apply: the network, `(params, *inputs) -> anything`, a traceable function that
        takes an array in the place of each quantized leaf.
      params: tree of `QTensor`, `Packed`, arrays, `jax.ShapeDtypeStruct`s and Python
        numbers: what is saved, including state that ships (running statistics).
      example: input of the network, or a tuple of inputs: arrays or shapes, or trees of
        them, with their batch axis: the products are those of the whole batch.
      dtype: of float32 leaves in the file.
      float_network: arrays or shapes of the whole float32 network, if it has more than
        `params`, such as statistics that were folded.

    Returns:
      The summary. Activations count as 32 bits unless marked by `mark_activation`.

    Raises:
      ValueError: the products cannot be counted, see `macs.count`; or `params` holds
        `Words`, which are in no file.

    Example:
      >>> params = {"w": jax.ShapeDtypeStruct((4, 2), jnp.float32)}
      >>> image = jax.ShapeDtypeStruct((1, 4), jnp.float32)
      >>> summary = summarize(lambda p, x: x @ p["w"], params, image)
      >>> summary.payload, summary.macs
      (32, {'32/32': 8})
    """
    size = jnp.dtype(dtype).itemsize
    sized = lambda leaf: hasattr(leaf, "shape")  # no Python number
    tensors = {path: _tensor(path, x, size) for path, x in leaves(params) if sized(x)}
    shape = lambda x: jax.ShapeDtypeStruct(tuple(x.shape), jnp.float32)
    seen = lambda x: shape(x) if is_quantized(x) else x
    floats = jax.tree.map(seen, params, is_leaf=is_quantized)
    traced = jax.tree.map(lambda x: x if sized(x) else None, floats)

    def network(traced, inputs):
        pick = lambda x, given: given if x is None else x
        whole = jax.tree.map(pick, traced, floats, is_leaf=lambda x: x is None)
        return apply(whole, *inputs)

    uses = macs.count(network, traced, inputs_of(example))
    if float_network is None:
        numbers = sum(t.size for t in tensors.values())
    else:
        numbers = sum(x.size for x in jax.tree.leaves(float_network))
    return Summary(_rows(tensors, uses), 4 * numbers)


def summarize_network(params: PyTree, spec: NetworkSpec, batch: int = 1) -> Summary:
    """The summary of a shipped network, from the content of its artifact.

    It is compared with the network of float weights and activations as it is trained:
    parameters, and running statistics of BatchNorm, all float32.

    Args:
      params: tree of `Packed` or `QTensor` and float leaves, normalizations folded;
        shapes suffice.
      spec: what the network is.
      batch: number of images.
    """
    trained = dataclasses.replace(spec, activation=None).network(folded=False)
    model, images = spec.network(wrap=_marked), spec.input(batch)
    return summarize(
        lambda params, x: model.apply({"params": params}, x),
        params,
        images,
        dtype=spec.floats,
        float_network=jax.eval_shape(trained.init, jax.random.key(0), images),
    )


def to_dict(summary: Summary) -> dict[str, Any]:
    """The summary as plain data, for JSON."""
    totals = ("weights", "quantized", "codes", "levels", "scales", "floats", "pruned")
    return {
        "layers": [row._asdict() | {"macs": dict(row.macs)} for row in summary.rows],
        **{name: summary.total(name) for name in totals},
        "payload": summary.payload,
        "float_bytes": summary.float_bytes,
        "compression": summary.compression,
        "macs": summary.macs,
    }


def _tensor(path: str, leaf: Any, float_size: int) -> _Tensor:
    shape = tuple(leaf.shape)
    if isinstance(leaf, Words):
        raise ValueError(f"{path}: {NO_FILE}")
    if not is_quantized(leaf):
        dtype = jnp.dtype(leaf.dtype)
        size = float_size if dtype == jnp.float32 else dtype.itemsize
        floats = size * math.prod(shape)
        return _Tensor(path, shape, 8 * size, False, 0, 0, 0, floats)
    leaf = trim(leaf) if is_qtensor(leaf) else leaf  # as it is saved
    codes = -(-math.prod(shape) * leaf.bits // 8)
    levels, scale = (4 * math.prod(x.shape) for x in (leaf.levels, leaf.scale))
    pruned = 0
    if made := sparse.split_leaf(leaf):
        codes, pruned = made["mask"].size + made["codes"].size, made["pruned"]
    return _Tensor(path, shape, leaf.bits, True, codes, levels, scale, 0, pruned)


def _rows(tensors: Mapping[str, _Tensor], uses: Sequence[macs.Use]) -> tuple[Row, ...]:
    order: dict[str, None] = {}  # paths, by first use
    products: dict[str, list[tuple[str, macs.Use]]] = {}
    for use in uses:
        within = [tensors[path] for path in tensors if path in use.params]
        order |= dict.fromkeys(t.path for t in within)
        if not use.macs:
            continue
        owner = max(within, key=lambda t: t.size).path if within else NO_PARAMETER
        bits = _weight_bits(within) if within else use.bits[1]
        products.setdefault(owner, []).append((f"{bits}/{use.bits[0]}", use))
    order |= dict.fromkeys(tensors)
    wide = lambda path: tensors[path].quantized or _axes(tensors[path]) > 1
    folder = lambda path: path.rpartition("/")[0]
    main = {path for path in tensors if path in products or wide(path)}
    mains = collections.Counter(map(folder, main))
    groups: dict[str, list[_Tensor]] = {}
    for path in order:
        alone = not folder(path) or (path in main and mains[folder(path)] > 1)
        groups.setdefault(path if alone else folder(path), []).append(tensors[path])
    rows = [_row(path, group, main, products) for path, group in groups.items()]
    if NO_PARAMETER in products:
        rows.append(_row(NO_PARAMETER, [], main, products))
    return tuple(rows)


def _row(path: str, group: list[_Tensor], main: set[str], products: dict) -> Row:
    """One row; `group` has at most one tensor of `main`."""
    first = max(group, key=lambda t: (t.path in main, t.size), default=None)
    products_of = products.get(first.path if first else NO_PARAMETER, [])
    found: collections.Counter[str] = collections.Counter()
    for precision, use in products_of:
        found[precision] += use.macs
    total = lambda name: sum(getattr(t, name) for t in group)
    return Row(
        path=path,
        shape=first.shape if first else (),
        bits=first.bits if first else 0,
        activation=max((use.bits[0] for _, use in products_of), default=None),
        output=products_of[0][1].shape if products_of else None,
        weights=total("size"),
        quantized=sum(t.size for t in group if t.quantized),
        codes=total("codes"),
        levels=total("levels"),
        scales=total("scales"),
        floats=total("floats"),
        macs=dict(found),
        pruned=total("pruned"),
    )


def _weight_bits(tensors: Sequence[_Tensor]) -> int:
    """Bits of a product of tensors; a factor per channel does not count."""
    wide = [t for t in tensors if _axes(t) > 1] or tensors
    return max(t.bits if t.quantized else macs.FLOAT for t in wide)


def _axes(t: _Tensor) -> int:
    return sum(n > 1 for n in t.shape)


def _marked(quantizer: ActivationQuantizer) -> ActivationQuantizer:
    """The same activation quantizer, its results marked for `macs.count`."""

    def value(qparams, x):
        bits = jax.eval_shape(quantizer.hard, qparams, x).bits
        return macs.mark_activation(quantizer.value(qparams, x), bits)

    return quantizer._replace(value=value)
