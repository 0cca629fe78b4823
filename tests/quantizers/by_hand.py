"""Weights for the gradient tests of the family, and sums by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from util import normal, with_zeros

SHAPE = (3, 2, 2, 4)
KEY = jax.random.key(0)


def weights(shape=SHAPE):
    """Normal numbers with exact zeros, ones, halves and quarters among them."""
    w = with_zeros(0, shape)
    for i, x in enumerate((-0.75, -0.5, -0.25, 0.25, 0.5, 0.75)):
        w.flat[3 + 7 * i] = x
    return w


def results(q, qparams, w, g):
    """(soft, gradient for w, gradient for qparams) of sum(g * soft)."""

    @jax.jit
    def run(qparams, w, g):
        soft, vjp = jax.vjp(lambda p, w: q.soft(p, w, step=0), qparams, w)
        dp, dw = vjp(g)
        return soft, dw, dp

    return run(qparams, jnp.asarray(w), jnp.asarray(g, jnp.float32))


def drawn(q, w):
    """Normal numbers in the shapes of what `init` gives."""
    shapes = jax.tree.leaves_with_path(jax.eval_shape(q.init, KEY, w))
    found = {path[0].key: x.shape for path, x in shapes}
    return {k: jnp.asarray(normal(i, s)) for i, (k, s) in enumerate(found.items())}


def released(q, qparams, w, g):
    """The result of `gradient`."""
    return jax.jit(lambda *args: q.gradient(*args, step=0))(
        qparams, jnp.asarray(w), jnp.asarray(g)
    )


def close(got, expected):
    expected = np.asarray(expected)
    size = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-6 * size)


def each(fn, w, *args):
    """fn(number, ...) for every number of an array, as float64."""
    flat = [fn(float(x), *(float(a) for a in more)) for x, *more in _zip(w, *args)]
    return np.asarray(flat, np.float64).reshape(w.shape)


def _zip(w, *args):
    return zip(w.flat, *(np.broadcast_to(a, w.shape).flat for a in args), strict=True)


def channels(fn, w, g):
    """fn(w_c, g_c) -> (value, gradient), of every output channel on its own."""
    value, gradient = np.zeros(w.shape), np.zeros(w.shape)
    for c in range(w.shape[-1]):
        pair = fn(*(x[..., c].ravel().astype(np.float64) for x in (w, g)))
        value[..., c], gradient[..., c] = (x.reshape(w.shape[:-1]) for x in pair)
    return value, gradient


def sign(x):
    return 1.0 if x >= 0 else -1.0
