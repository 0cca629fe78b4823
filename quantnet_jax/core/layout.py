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
      out: axes that together count output units.
    """

    shape: tuple[int, ...]
    stack: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """Stacked axes, the others, output axes."""
        axes = range(len(self.shape))
        inner = [i for i in axes if i not in (*self.stack, *self.out)]
        return (*self.stack, *inner, *self.out)

    @property
    def copies(self) -> int:
        """How many tensors are stacked."""
        return math.prod(self.shape[i] for i in self.stack)

    @property
    def one(self) -> tuple[int, ...]:
        """Shape of one tensor as a quantizer sees it."""
        inner = self.order[len(self.stack) : len(self.shape) - len(self.out)]
        units = math.prod(self.shape[i] for i in self.out)
        return (*(self.shape[i] for i in inner), units)

    @property
    def plain(self) -> bool:
        """Whether a quantizer sees the tensor as it is."""
        return not self.stack and self.out == (len(self.shape) - 1,)


def make(shape: Sequence[int], out: int | Sequence[int], stack: int | Sequence[int]):
    """The layout of a tensor of this shape.

    Args:
      shape: of the tensor.
      out: axis, or axes, of the output units; negative ones count from the end.
      stack: axis, or axes, of stacked tensors; () for none.

    Raises:
      ValueError: an axis does not exist or is named twice, or no output axis is named.
    """
    rank = len(shape)
    found = {}
    for name, axes in (("out", out), ("stack", stack)):
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        if not all(-rank <= i < rank for i in axes):
            raise ValueError(f"{name}={axes}, but a tensor of shape {tuple(shape)}")
        found[name] = tuple(sorted(i % rank for i in axes))
    both = (*found["out"], *found["stack"])
    if len(set(both)) < len(both) or not found["out"]:
        raise ValueError(
            f"out={out} and stack={stack} for shape {tuple(shape)}: expected at least "
            "one output axis, and each axis once"
        )
    return Layout(tuple(shape), found["stack"], found["out"])


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
