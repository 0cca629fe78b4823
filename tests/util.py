"""Helpers that several test files share: weights, a quantizer, a walk over jaxprs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import Quantizer, no_params, no_penalty
from quantnet_jax.quantizers.binary.ste import hard_sign
from quantnet_jax.tasks import Source, classification
from quantnet_jax.training import steps
from quantnet_jax.training.estimators import gradients


def normal(seed, shape):
    """float32 NumPy array of standard normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_zeros(seed, shape):
    """The same with exact zeros, ones and minus ones among them."""
    w = normal(seed, shape)
    w.flat[::5] = 0.0
    w.flat[1::7] = 1.0
    w.flat[2::11] = -1.0
    return w


def noisy(tree, seed=0, spread=0.3):
    """The tree with normal noise on every leaf, so that no leaf stays at zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + jnp.asarray(spread * rng.normal(size=x.shape), x.dtype), tree
    )


def binary_qtensor(shape, seed=0, scale=None):
    """Random signs, with a scale."""
    rng = np.random.default_rng(seed)
    return QTensor(
        codes=jnp.asarray(rng.integers(0, 2, shape), jnp.uint8),
        levels=jnp.asarray([-1.0, 1.0], jnp.float32),
        scale=jnp.ones((), jnp.float32) if scale is None else jnp.asarray(scale),
    )


def clip_sign():
    """soft: clip(w, -1, 1), slope 1 inside and at +-1, 0 outside; hard: sign(w)."""

    def soft(qparams, w, *, step, key=None):
        return jnp.where(jnp.abs(w) <= 1.0, w, jax.lax.stop_gradient(jnp.sign(w)))

    return Quantizer(no_params, soft, hard_sign, no_penalty)


def learned_tanh():
    """soft: tanh(q w) with one learned q, 0.7 at first; hard: sign(w); penalty q^2.

    The cheapest quantizer to compile that has all that a training step can meet.
    """

    def soft(qparams, w, *, step, key=None):
        return jnp.tanh(qparams * w)

    return Quantizer(
        init=lambda key, w: jnp.full(1, 0.7)[0],
        soft=soft,
        hard=hard_sign,
        penalty=lambda qparams, w, *, step: 0.3 * qparams**2,
    )


def learns(q):
    """Whether a quantizer has parameters."""
    w = jax.ShapeDtypeStruct((3, 3, 2, 2), jnp.float32)
    return bool(jax.tree.leaves(jax.eval_shape(q.init, jax.random.key(0), w)))


def ready_task(classes=4, label_smoothing=0.0):
    """Classification of batches {'image', 'label', 'mask'}, ready as they are."""
    names = [str(number) for number in range(classes)]
    ready = lambda data, batch, *, seed, train: dict(batch)
    source = Source(ready, (0, 0, 0), (), (), {"classes": names})
    return classification(source, label_smoothing=label_smoothing)


def make_step(
    apply, quantizer, tx, task, estimator=gradients.joint, *, terms=None, decay=0.0
):
    """`train_step(state, data, batch, axis_name)`; `estimator(loss, prepare)`."""
    prepare = functools.partial(task.prepare, seed=0, train=True)
    loss = steps.make_loss(apply, quantizer, task, seed=0, terms=terms)
    return steps.make_train_step(estimator(loss, prepare), tx, decay=decay)


def equations(fn, args, constants=()):
    """Equations of `fn(args, constants)` that the gradient for `args` runs through.

    Walks the jaxpr and every jaxpr inside it (jit, scan, cond, remat, custom rules).
    An equation counts if one of its inputs depends on a leaf of `args`; what depends on
    `constants` alone (a schedule of the step, say) does not.

    Returns:
      A list of jaxpr equations.
    """
    closed = jax.make_jaxpr(fn)(args, constants)
    n = len(jax.tree.leaves(args))
    marks = [i < n for i in range(len(closed.jaxpr.invars))]
    found = []
    _walk(closed.jaxpr, marks, found)
    return found


def _walk(jaxpr, marks, found):
    """Appends dependent equations to `found`; returns the marks of the outputs."""
    marked = {v for v, mark in zip(jaxpr.invars, marks, strict=True) if mark}
    is_marked = lambda v: not hasattr(v, "val") and v in marked
    for eqn in jaxpr.eqns:
        inputs = [is_marked(v) for v in eqn.invars]
        if not any(inputs):
            continue
        found.append(eqn)
        marked |= set(eqn.outvars)
        for inner in _inner(eqn.params):
            same = len(inner.invars) == len(inputs)
            _walk(inner, inputs if same else [True] * len(inner.invars), found)


def _inner(value):
    """Jaxprs in the parameters of an equation."""
    if isinstance(value, Jaxpr):
        return [value]
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, dict | list | tuple) or hasattr(value, "mapping"):
        return [jaxpr for x in value for jaxpr in _inner(x)]
    return []
