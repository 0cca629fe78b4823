"""Batch normalization, and its folding into scale and bias."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from quantnet_jax.activations.sites import (
    fold_running,
)


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, in float32 whatever the dtype.

    Running statistics: `momentum * old + (1 - momentum) * batch`, variance biased.

    Attributes:
      axis_name: mapped axis over which batch statistics are averaged, or None.
      momentum: decay of the running statistics; 0.0 stores the statistics of the last
        batch, for an outside average.
      epsilon: added to the variance.
      zero_init: start the scale at zero, so that a residual block starts as identity.
      folded: there are no running statistics; scale and bias hold them (`fold`).
    """

    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    zero_init: bool = False
    folded: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """Same shape and dtype as `x`; `train` selects and updates batch statistics.

        Statistics are of what `mask`, where there is one, does not exclude.
        """
        if self.folded:
            if train:
                raise ValueError("a folded BatchNorm has no statistics to train")
            size, across = x.shape[-1:], (1,) * (x.ndim - 1) + (-1,)
            scale = self.param("scale", nn.initializers.ones, size, jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, size, jnp.float32)
            y = x.astype(jnp.float32) * scale.reshape(across) + bias.reshape(across)
            return y.astype(x.dtype)
        norm = nn.BatchNorm(
            use_running_average=not train,
            axis_name=self.axis_name,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=jnp.float32,
            scale_init=nn.initializers.zeros
            if self.zero_init
            else nn.initializers.ones,
        )
        # The inner module owns no name of its own: parameters sit right below this one.
        nn.share_scope(self, norm)
        return norm(x.astype(jnp.float32), mask=mask).astype(x.dtype)


def fold(params: Any, batch_stats: Any, epsilon: float = BatchNorm.epsilon) -> Any:
    """Parameters of the network with `folded=True`: statistics put into scale and bias.

    Args:
      params: of a network of this room; kernels may be QTensors.
      batch_stats: its running statistics, {'mean', 'var'} for each {'scale', 'bias'},
        and {'qparams'} for activation quantizers with running state.
      epsilon: of `BatchNorm`.

    Returns:
      A tree like `params`, with scale / sqrt(var + epsilon) in the place of each scale
      and bias - mean * (that) in the place of each bias; and the parameters of
      activation quantizers with the running state put in.
    """
    if not isinstance(params, Mapping):
        return params
    if "qparams" in batch_stats:
        folded = fold_running(params["qparams"], batch_stats["qparams"])
        return dict(params) | {"qparams": folded}
    if "mean" in batch_stats and "scale" in params:
        scale = params["scale"] * lax.rsqrt(batch_stats["var"] + epsilon)
        bias = params["bias"] - batch_stats["mean"] * scale
        return dict(params) | {"scale": scale, "bias": bias}
    return {k: fold(v, batch_stats.get(k, {}), epsilon) for k, v in params.items()}
