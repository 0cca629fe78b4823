"""Gradients through standardized channels and small networks against NumPy, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import (
    KEY,
    SHAPE,
    channels,
    close,
    drawn,
    each,
    released,
    results,
    sign,
    weights,
)
from util import noisy, normal

from quantnet_jax.core.quantizer import PerTensor
from quantnet_jax.quantizers import create

# Standardized channels: x = (w - m) / s; a gradient h for x becomes (h - mean(h) - x
# mean(h x)) / s for w.


def standardized(w):
    s = np.sqrt(((w - w.mean()) ** 2).mean())
    return (w - w.mean()) / s, s


def through(x, s, h):
    return (h - h.mean() - x * (h * x).mean()) / s


def ede(x, t):
    return max(1 / t, 1) * t * (1 - np.tanh(t * x) ** 2)


@pytest.mark.parametrize("t", [0.3, 3.0])
def test_irnet(t):
    def by_hand(w, g):
        x, s = standardized(w)
        scale = 2.0 ** np.rint(np.log2(np.abs(x).mean()))
        return scale * np.where(x >= 0, 1, -1), through(x, s, g * scale * ede(x, t))

    w, g = weights(), normal(1, SHAPE)
    w[..., 1] = np.abs(w[..., 1]) ** 3  # skewed, so that the scales differ
    value, expected = channels(by_hand, w, g)
    soft, dw, _ = results(create("irnet", t=t), (), w, g)
    close(soft, value)
    close(dw, expected)
    assert len(np.unique(np.abs(value))) > 1


@pytest.mark.parametrize("t", [0.3, 3.0])
def test_adabin(t):
    """y_i = m + s b_i, db_i = e_i dx_i, dm = mean(dw), ds = mean(x dw)."""

    def by_hand(w, g):
        x, s = standardized(w)
        b, e = np.where(x >= 0, 1, -1), ede(x, t)
        gradient = e * g + (g * (1 - e)).mean() + x * (g * (b - x * e)).mean()
        return w.mean() + s * b, gradient

    w, g = weights(), normal(1, SHAPE)
    w[..., 1] += 2.0
    value, expected = channels(by_hand, w, g)
    soft, dw, _ = results(create("adabin", t=t), (), w, g)
    close(soft, value)
    close(dw, expected)


@pytest.mark.parametrize(("progress", "tau"), [(0.0, 0.85), (1.0, 0.99)])
def test_recu(progress, tau):
    """x is sqrt(8) times the standardized channel; Q is of the whole tensor."""
    w, g = weights((4, 4, 3, 4)), normal(1, (4, 4, 3, 4))
    w[0, 0] *= 2.5
    log_scale = normal(2, (1, 1, 1, 4))
    every = [standardized(w[..., c].ravel().astype(float))[0] for c in range(4)]
    mean = np.sqrt(8) * np.abs(every).mean()
    edge = -mean * np.log(2 - 2 * tau)

    def by_hand(w, g):
        x, s = standardized(w)
        h = g * (np.abs(np.sqrt(8) * x) <= edge)
        assert (np.abs(np.abs(np.sqrt(8) * x) - edge) > 1e-4).all()
        return np.where(x >= 0, 1.0, -1.0), through(x, s, np.sqrt(8) * h)

    scale = np.exp(log_scale.astype(np.float64))
    value, expected = channels(by_hand, w, g * scale)
    beyond = np.abs(np.sqrt(8) * np.asarray(every)) > edge
    assert 0 < beyond.sum() < beyond.size / 2
    qparams = (PerTensor(jnp.asarray(log_scale)), ())
    soft, dw, dp = results(create("recu", progress=progress), qparams, w, g)
    close(soft, scale * value)
    close(dw, expected)
    slope = (g * scale * value).sum((0, 1, 2), keepdims=True)
    close(dp[0].value, slope)


# Networks


def mlp_by_hand(p, w, g):
    """u = w - mean; z = B tanh(A u + a) + b; +1 where z1 >= z0; c = mean |w|.

    g c goes to z1, -g c to z0, where |z| <= 1; from there by the chain rule.
    """
    grads = {k: np.zeros(v.shape) for k, v in p.items()}
    value, gradient = np.zeros(w.shape), np.zeros(w.shape)
    undecided = 0
    for channel in range(w.shape[-1]):
        column = w[..., channel].ravel().astype(np.float64)
        c, mean, du = np.abs(column).mean(), column.mean(), []
        for x, y in zip(column, g[..., channel].ravel(), strict=True):
            h = np.tanh((x - mean) * p["A"][0] + p["a"])
            z = h @ p["B"] + p["b"]
            value.flat[len(du) * w.shape[-1] + channel] = c if z[1] >= z[0] else -c
            dz = y * c * np.asarray([-1.0, 1.0]) * (np.abs(z) <= 1)
            undecided += np.sum(np.abs(z) <= 1)
            before = p["B"] @ dz * (1 - h**2)
            grads["B"] += np.outer(h, dz)
            grads["b"] += dz
            grads["A"][0] += (x - mean) * before
            grads["a"] += before
            du.append(before @ p["A"][0])
        du = np.asarray(du) - np.mean(du)
        gradient[..., channel] = du.reshape(w.shape[:-1])
    assert 0 < undecided < 2 * w.size
    return value, gradient, grads


def test_binarizing_by_classification():
    w, g = weights() * 2, normal(1, SHAPE)
    q = create("binarizing_by_classification", width=5)
    qparams = drawn(q, w) | {"b": jnp.asarray([0.2, -0.3])}
    p = {k: np.asarray(v, np.float64) for k, v in qparams.items()}
    value, expected, grads = mlp_by_hand(p, w, g)
    soft, dw, dp = results(q, qparams, w, g)
    close(soft, value)
    close(dw, expected)
    for k, x in grads.items():
        close(dp[k], x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x),
    "relu": lambda x: np.maximum(x, 0),
}


def meta_by_hand(p, network, nonlinearity, g, x):
    """M(g, x) of one number."""
    phi = ACTIVATIONS[nonlinearity]
    fc = lambda y: (phi(np.atleast_1d(y) @ p["encode"]) @ p["compress"])[0]
    if network == "fcgrad":
        return fc(g)
    if network == "multifc":
        return g * fc(x)
    i, _, cell, o = np.split(x * p["gates"][0], 4)
    state = sigmoid(i) * np.tanh(cell)  # the state before is zero
    return g * fc(sigmoid(o) * np.tanh(state))


def tanh_over_max(w, out):
    """tanh(w) / max |tanh w| and its transposed Jacobian times `out`."""
    t = np.tanh(w.astype(np.float64))
    m = np.unravel_index(np.argmax(np.abs(t)), t.shape)
    largest = abs(t[m])
    back = out * (1 - t**2) / largest
    back[m] -= np.sum(out * t) * np.sign(t[m]) * (1 - t[m] ** 2) / largest**2
    return t / largest, back


@pytest.mark.parametrize(
    ("network", "nonlinearity", "forward"),
    [
        ("fcgrad", "tanh", "dorefa"),
        ("multifc", "linear", "dorefa"),
        ("multifc", "relu", "bwn"),
        ("lstmfc", "linear", "bwn"),
        ("lstmfc", "silu", "dorefa"),
    ],
)
def test_metaquant_puts_out_gradients(network, nonlinearity, forward):
    w, g = weights(), normal(1, SHAPE)
    q = create(
        "metaquant",
        network=network,
        forward=forward,
        width=3,
        nonlinearity=nonlinearity,
    )
    qparams = drawn(q, w)
    p = {k: np.asarray(v, np.float64) for k, v in qparams.items()}
    x = tanh_over_max(w, 0 * w)[0] if forward == "dorefa" else w.astype(np.float64)
    out = each(lambda g, x: meta_by_hand(p, network, nonlinearity, g, x), g, x)
    expected = tanh_over_max(w, out)[1] if forward == "dorefa" else out
    got = released(q, qparams, w, g)
    close(got, expected)


@pytest.mark.parametrize("forward", ["bwn", "dorefa"])
def test_metaquant_keeps_the_clipped_straight_through(forward):
    """soft's own derivative: s 1[|w| <= 1], or that behind DoReFa's tanh."""
    w, g = weights(), normal(1, SHAPE)
    q = create("metaquant", forward=forward, width=3)
    soft, dw, dp = results(q, drawn(q, w), w, g)
    if forward == "bwn":
        s = sum(abs(float(x)) for x in w.flat) / w.size
        close(dw, g * s * each(lambda x: abs(x) <= 1, w))
    else:
        s = 1.0
        close(dw, tanh_over_max(w, g.astype(np.float64))[1])
    close(soft, s * each(sign, w))
    assert not any(x.any() for x in jax.tree.leaves(dp))


@pytest.mark.parametrize("forward", ["bwn", "dorefa"])
def test_linear_fcgrad_is_one_factor(forward):
    """The product of the two matrices; at the start 1."""
    w, g = weights(), normal(1, SHAPE)
    q = create("metaquant", forward=forward, width=5)
    start = q.init(KEY, jnp.asarray(w))
    through = lambda out: tanh_over_max(w, out)[1] if forward == "dorefa" else out
    for qparams in (start, noisy(start)):
        factor = np.asarray(qparams["encode"], float) @ np.asarray(qparams["compress"])
        got = released(q, qparams, w, g)
        close(got, through(factor.item() * g.astype(np.float64)))
    assert (np.asarray(start["encode"]) @ start["compress"]).item() == pytest.approx(1)
