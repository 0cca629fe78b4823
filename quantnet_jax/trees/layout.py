"""Where a kernel has its output units, and which leading axes are stacked tensors.

Quantizers take one tensor whose last axis counts output units. A layout brings a
tensor that is arranged otherwise into that form, and what they return back.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.core.qtensor import QTensor


class Layout(NamedTuple):
    """The axes of one tensor, all non-negative.

    Attributes:
      shape: of the tensor.
      stack: axes that count separate tensors (`nn.scan`, `vmap`, experts).
      out: axes that together count output units; none if all is one unit.
      inputs: axes that together count inputs, the others being windows; None if the
        axes in between stay as they are.
    """

    shape: tuple[int, ...]
    stack: tuple[int, ...]
    out: tuple[int, ...]
    inputs: tuple[int, ...] | None = None

    @property
    def order(self) -> tuple[int, ...]:
        """Stacked axes, the others (windows before inputs), output axes."""
        inputs = self.inputs or ()
        named = (*self.stack, *inputs, *self.out)
        others = [i for i in range(len(self.shape)) if i not in named]
        return (*self.stack, *others, *inputs, *self.out)

    @property
    def copies(self) -> int:
        """How many tensors are stacked."""
        return math.prod(self.shape[i] for i in self.stack)

    @property
    def one(self) -> tuple[int, ...]:
        """Shape of one tensor as a quantizer sees it."""
        inputs, size = self.inputs or (), lambda axes: [self.shape[i] for i in axes]
        last = len(self.shape) - len(inputs) - len(self.out)
        others = size(self.order[len(self.stack) : last])
        merged = [] if self.inputs is None else [math.prod(size(inputs))]
        return (*others, *merged, math.prod(size(self.out)))

    @property
    def plain(self) -> bool:
        """Whether a quantizer sees the tensor as it is."""
        ordered = self.order == tuple(range(len(self.shape)))
        return not self.stack and ordered and self.one == self.shape


def make(
    shape: Sequence[int],
    out: int | Sequence[int],
    stack: int | Sequence[int],
    inputs: Sequence[int] | None = None,
) -> Layout:
    """The layout of a tensor of this shape.

    Args:
      shape: of the tensor.
      out: axis, or axes, of the output units; negative ones count from the end.
      stack: axis, or axes, of stacked tensors; () for none.
      inputs: axes that a quantizer sees as one, before the output units.

    Raises:
      ValueError: an axis does not exist or is named twice.
    """
    rank = len(shape)
    found = {}
    for name, axes in (("out", out), ("stack", stack), ("inputs", inputs or ())):
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        if not all(-rank <= i < rank for i in axes):
            raise ValueError(f"{name}={axes}, but a tensor of shape {tuple(shape)}")
        found[name] = tuple(sorted(i % rank for i in axes))
    named = (*found["out"], *found["stack"], *found["inputs"])
    if len(set(named)) < len(named):
        raise ValueError(
            f"out={out} and stack={stack} for shape {tuple(shape)}: expected each axis "
            "once"
        )
    merged = None if inputs is None else found["inputs"]
    return Layout(tuple(shape), found["stack"], found["out"], merged)


def split(w: jax.Array, layout: Layout) -> jax.Array:
    """(copies, *layout.one): the stacked tensors, each with its units last."""
    return w.transpose(layout.order).reshape(layout.copies, *layout.one)


def join(x: jax.Array, layout: Layout) -> jax.Array:
    """The inverse of `split`."""
    arranged = x.reshape([layout.shape[i] for i in layout.order])
    return arranged.transpose(_inverse(layout))


def join_qtensor(qt: QTensor, layout: Layout) -> QTensor:
    """A QTensor like the tensor, of one whose fields have `copies` in front."""
    rank = len(layout.shape)
    # A scale, or the index of a table, as an array that broadcasts to the tensor.
    scale = qt.scale.reshape(layout.copies, *([1] * (rank - 1) + [-1])[-rank:])
    units = scale.shape[-1] > 1
    scale = _broadcastable(scale.reshape(layout.copies, -1), layout, units)
    levels = qt.levels
    if levels.ndim > 1:  # tables of tensors, or of their units
        units = levels.ndim > 2
        flat = levels.reshape(layout.copies, -1, levels.shape[-1])
        levels = jnp.stack(
            [
                _broadcastable(flat[..., i], layout, units)
                for i in range(levels.shape[-1])
            ],
            axis=-1,
        )
    return QTensor(join(qt.codes, layout), levels, scale)


def _broadcastable(x: jax.Array, layout: Layout, units: bool) -> jax.Array:
    """(copies, units or 1) numbers as an array that broadcasts to the tensor."""
    sizes = []
    for i in layout.order:
        own = i in layout.stack or (units and i in layout.out)
        sizes.append(layout.shape[i] if own else 1)
    return x.reshape(sizes).transpose(_inverse(layout))


def _inverse(layout: Layout) -> list[int]:
    order = layout.order
    return [order.index(i) for i in range(len(order))]
