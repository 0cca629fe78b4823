"""BiTAT: binary weights that make good each other's errors, given a layer's inputs."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number, Scheduled
from quantnet_jax.core.combine import mix, straight_through, uniform_levels
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    ScalarOrSchedule,
    factory,
    no_penalty,
)

EPS = 1e-12


@factory
def bitat(
    *,
    amount: Annotated[ScalarOrSchedule, Scheduled(Number(0, 1))] = 1.0,
    damping: Annotated[float, Number(1e-4, 1e3)] = 0.1,
) -> Quantizer:
    """BiTAT: binarization in order of importance, with feedback of the error.

    Forward: a sign(w) per output channel, a = mean |w|, where element after element, in
      the order of the input correlation's diagonal, gives its error to those not yet
      binarized: with H = V diag(h) V^T, h the importance, and U upper triangular,
      U^T U = H^-1 in that order: w_rest <- w_rest - (w_j - a sign(w_j)) U_j,rest /
      U_jj; sign(0) = +1. At first H = 1: no feedback. Mixed with w: (1 - amount) w +
      amount (...), a schedule of a layer's own for training layer by layer.
    Backward: 1.
    Learned: H of the layer's inputs, (1, n, n) for n inputs of an output, (channels, n,
      n) for a depthwise kernel; no gradient of the task reaches it: the term
      'input_correlation' moves it towards the batch's X^T X / m, by plain SGD of rate
      r that is a moving average of 1 - r.

    Reference: Park et al., BiTAT, arXiv 2207.01394. Its objective is not public: a
    reconstruction, the update is that of OBS (Hassibi and Stork, 1993).
    Deviations: objective, feedback, order.

    Args:
      amount: from 0 (float) to 1; a number or a schedule of the step.
      damping: added to h, as a share of its mean.
    """

    def init(key, w):
        n = math.prod(w.shape[:-1])
        copies = w.shape[-1] if depthwise(w.shape) else 1
        eye = jnp.eye(n, dtype=jnp.float32)[None]
        return PerTensor({"correlation": jnp.repeat(eye, copies, axis=0)})

    def hard(qparams, w):
        columns = w.reshape(-1, w.shape[-1])
        a = jnp.mean(jnp.abs(columns), axis=0)
        order, feedback = jax.vmap(plan)(qparams.value["correlation"])
        size = jnp.where(a > 0, a, 1.0)
        signs = jax.vmap(binarized, (1, *2 * (0 if len(order) > 1 else None,)), 1)
        if len(order) == 1:
            order, feedback = order[0], feedback[0]
        codes = signs(columns / size[None], order, feedback).reshape(w.shape)
        scale = a.reshape((1,) * (w.ndim - 1) + (-1,))
        return QTensor(codes, uniform_levels(1), scale)

    def plan(h):
        """Order of the elements, and U_j,rest / U_jj in that order."""
        share, v = jnp.linalg.eigh((h + h.T) / 2)
        share = jnp.maximum(share, 0.0)
        share = share + damping * jnp.mean(share) + EPS
        order = jnp.argsort(-jnp.sum(v * v * share[None], axis=1))
        v = v[order]
        upper = jnp.linalg.cholesky((v / share[None]) @ v.T).T
        return order, upper / jnp.diagonal(upper)[:, None]

    def binarized(x, order, feedback):
        """Codes of one output channel, in units of its scale."""

        def one(x, row):
            number, rest = row
            bit = x[number] >= 0
            error = x[number] - jnp.where(bit, 1.0, -1.0)
            return x - error * jnp.where(jnp.arange(x.size) > number, rest, 0.0), bit

        _, bits = jax.lax.scan(one, x[order], (jnp.arange(x.size), feedback))
        return jnp.zeros(x.shape, jnp.uint8).at[order].set(bits.astype(jnp.uint8))

    quantizer = Quantizer(init, lambda *a, **k: a[1], hard, no_penalty)
    whole = straight_through(quantizer)
    return whole if amount == 1.0 else mix(whole, amount)


def depthwise(shape: tuple[int, ...]) -> bool:
    """Whether a kernel (H, W, 1, channels) has one input channel for each output."""
    return len(shape) == 4 and shape[-2] == 1
