"""MetaQuant: a network that predicts gradients, trained through the weight update."""

from typing import Annotated

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Choice
from quantnet_jax.core.combine import scale_by_mean_abs, straight_through
from quantnet_jax.core.quantizer import Quantizer, factory, no_penalty
from quantnet_jax.quantizers.binary.ste import sign_ste
from quantnet_jax.quantizers.multibit.uniform import tanh_over_max
from quantnet_jax.quantizers.options import Width
from quantnet_jax.quantizers.subnet import EXACT, NONLINEARITIES, Nonlinearity

NETWORKS = ("fcgrad", "multifc", "lstmfc")
FORWARDS = ("bwn", "dorefa")


@factory
def metaquant(
    *,
    network: Annotated[str, Choice(NETWORKS)] = "fcgrad",
    forward: Annotated[str, Choice(FORWARDS)] = "bwn",
    width: Width = 100,
    nonlinearity: Nonlinearity = "linear",
) -> Quantizer:
    """MetaQuant: binary weights whose gradient a learned network predicts.

    Forward: with x = w ('bwn') or tanh(w) / max |tanh w| ('dorefa'), s sign(x),
      sign(0) = +1, s = mean |w| of the tensor, held constant ('bwn'), or 1
      ('dorefa').
    Backward: for g = dL/d(s sign(x)) the optimizer of the weights gets dx/dw times
      M(g, x), number by number: 'fcgrad' FC(g), 'multifc' g FC(x), 'lstmfc' g
      FC(LSTM(x)). Without biases and nonlinearity FC is one learned factor. The
      network learns through the weights' update: the next batch's loss is that of w
      - rate * (gradient), and its gradient goes through the clipped
      straight-through, s 1[|x| <= 1], and that subtraction (`Quantizer.gradient`,
      `quantnet_jax.training.steps`).
    Learned: the network, meant to be shared by all layers (share='model').

    Reference: Chen et al., MetaQuant, NeurIPS 2019; reconstruction (ours)
    of the start: FC is a factor of 1 ('fcgrad': g itself; 'multifc': g x, whose sign is
    that of x, so that weights are slow to cross zero), where the published code starts
    at random. The LSTM sees each weight as a sequence of one, from a zero state.
    Deviations: start; the LSTM's state.

    Args:
      network: 'fcgrad', 'multifc' or 'lstmfc'.
      forward: 'bwn' or 'dorefa'.
      width: hidden units.
      nonlinearity: of FC's hidden layer: 'linear' (as in the paper's runs), 'tanh',
        'silu' or 'relu'.

    Raises:
      ValueError: for a value that is not in its range.
    """
    phi = NONLINEARITIES[nonlinearity]
    mapped = tanh_over_max if forward == "dorefa" else lambda w: w

    def init(key, w):
        keys = jax.random.split(key)
        inputs = width if network == "lstmfc" else 1
        encode = jax.random.normal(keys[0], (inputs, width), jnp.float32)
        qparams = {"encode": encode, "compress": encode.T / jnp.sum(encode**2)}
        if network == "lstmfc":
            qparams["compress"] = jnp.sum(encode**2) ** -0.5 * jnp.ones((width, 1))
            qparams["gates"] = jax.random.normal(keys[1], (1, 4 * width), jnp.float32)
        return qparams

    def fc(qparams, x):
        h = phi(jnp.matmul(x, qparams["encode"], precision=EXACT))
        return jnp.matmul(h, qparams["compress"], precision=EXACT)

    def network_gradient(qparams, g, x):
        """M(g, x), column vectors of numbers."""
        if network == "fcgrad":
            return fc(qparams, g)
        if network == "lstmfc":
            x = _lstm(qparams["gates"], x)
        return g * fc(qparams, x)

    def gradient(qparams, w, g, *, step):
        x, vjp = jax.vjp(mapped, w)
        out = network_gradient(qparams, g.reshape(-1, 1), x.reshape(-1, 1))
        return vjp(out.reshape(w.shape))[0]

    q = sign_ste("clip")
    if forward == "bwn":
        q = straight_through(scale_by_mean_abs(q, per="tensor", detach=True))

    def soft(qparams, w, *, step, key=None):
        return q.soft((), mapped(w), step=step, key=key)

    def hard(qparams, w):
        return q.hard((), mapped(w))

    return Quantizer(init, soft, hard, no_penalty, gradient=gradient)


def _lstm(gates: jax.Array, x: jax.Array) -> jax.Array:
    """One step of an LSTM without biases, from a zero state: (n, 1) -> (n, width).

    The forget gate has nothing to forget; its weights are not used.
    """
    i, _, cell, o = jnp.split(jnp.matmul(x, gates, precision=EXACT), 4, axis=1)
    state = jax.lax.logistic(i) * jnp.tanh(cell)
    return jax.lax.logistic(o) * jnp.tanh(state)
