"""Options that several networks share, each with its range."""

from typing import Annotated

from quantnet_jax.common.limits import Choice, Flag, Number
from quantnet_jax.models.nonlinearities import ACTS, ActFactory

OUTPUTS = Number(1, 2**20, whole=True)
Outputs = Annotated[int, OUTPUTS]
"""Channels of what a network returns; they follow from the task."""
Width = Annotated[int, Number(1, 2**14, whole=True)]
"""Channels of a convolution."""
Depth = Annotated[int, Number(0, 2**10, whole=True)]
"""Blocks or convolutions of a kind, one after another."""
Strides = Annotated[int, Number(1, 64, whole=True)]
"""Of a convolution that sees the image."""
Momentum = Annotated[float, Number(0, 1, below=True)]
"""Of running statistics: with 1 they would stay at their start."""
Switch = Annotated[bool, Flag()]
"""A part of a network that there is or is not."""
Act = Annotated[ActFactory, Choice(tuple(ACTS))]
"""A nonlinearity, once for each site; by its name in `create` and configurations."""
