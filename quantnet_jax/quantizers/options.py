"""Options that several quantizers share, each with its range."""

from typing import Annotated

from quantnet_jax.common.limits import Choice, Number, Scheduled
from quantnet_jax.core.quantizer import ScalarOrSchedule

Bits = Annotated[int, Number(1, 8, whole=True)]
"""Of a code."""
FewBits = Annotated[int, Number(1, 4, whole=True)]
"""Of a code, where the number of levels is paid for in time or memory."""
ManyBits = Annotated[int, Number(2, 8, whole=True)]
"""Of a code, where one bit is the sign or makes no grid."""
Width = Annotated[int, Number(1, 2**14, whole=True)]
"""The largest hidden layer: beyond it a sub-network outweighs all it quantizes."""
Sharpness = Annotated[ScalarOrSchedule, Scheduled(Number(1e-6, 1e6))]
"""A positive number or a schedule of the step."""
Weight = Annotated[ScalarOrSchedule, Scheduled(Number(0, 1e6))]
"""A non-negative number or a schedule of the step."""
SHARE = Number(0, 1, above=True)
Share = Annotated[float, SHARE]
"""A positive part of a whole, such as a quantile."""
Per = Annotated[str, Choice(("channel", "tensor"))]
"""Which numbers share a scale: an output channel's, or all."""
Norm = Annotated[str, Choice(("rms", "standard", "none"))]
"""See `quantnet_jax.quantizers.subnet.normalize`."""
