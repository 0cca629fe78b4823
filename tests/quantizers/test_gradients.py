"""Gradients of the members without sub-network against formulas derived by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import normal, with_zeros

from quantnet_jax.core.regularizers import (
    binarization_distance,
    kurtosis,
    orthogonality,
)
from quantnet_jax.quantizers.binary.ste import binary_ste
from quantnet_jax.quantizers.sign import RANGES, tanh_sign

pytestmark = pytest.mark.optimized  # smallest gradients are compared

SHAPE = (3, 2, 2, 4)


def gradient(q, qparams, w, cotangent):
    """Gradient of sum(soft * cotangent) for the weights."""
    loss = lambda w: jnp.sum(q.soft(qparams, w, step=0) * cotangent)
    return jax.jit(jax.grad(loss))(w)


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_binary_ste(per):
    """Slope of one weight: alpha where |w| <= 1, alpha itself held constant."""
    w, cotangent = with_zeros(0, SHAPE), normal(1, SHAPE)
    assert {-1.0, 0.0, 1.0} <= set(w.flat) and np.abs(w).max() > 1
    alpha = np.zeros(SHAPE)
    for c in range(SHAPE[-1]):
        numbers = w[..., c] if per == "channel" else w
        alpha[..., c] = sum(abs(float(x)) for x in numbers.flat) / numbers.size
    slope = np.vectorize(lambda w, a: a if -1.0 <= w <= 1.0 else 0.0)
    value = np.vectorize(lambda w, a: a if w >= 0.0 else -a)
    q = binary_ste(per=per)
    got = gradient(q, (), jnp.asarray(w), cotangent)
    np.testing.assert_allclose(got, slope(w, alpha) * cotangent, rtol=1e-5)
    soft = q.soft((), jnp.asarray(w), step=0)
    np.testing.assert_allclose(soft, value(w, alpha), rtol=1e-5)


def tanh_sign_by_hand(w, g, v, bits, norm, eps=1e-12):
    """Values and gradient in float64, one channel at a time.

    c = u s / d with s = (mean(u^2) + eps)^(-1/2) and d the range; u = w, or w - mean(w)
    for 'standard'. dc_j/du_i = (s delta_ij - s^3 u_i u_j / n) / d; taking the mean off
    the weights takes it off the gradient.
    """
    value, gradient = np.zeros(w.shape), np.zeros(w.shape)
    levels = 2**bits
    cuts = (np.arange(levels - 1) - (levels - 2) / 2) * 2 / (levels - 1)
    for k in range(w.shape[-1]):
        u, n = w[..., k].ravel(), w[..., k].size
        u = u - u.mean() if norm == "standard" else u
        s, d = (u @ u / n + eps) ** -0.5, RANGES[bits]
        if norm == "none":
            s = d = 1.0
        slope = (levels - 1) * v
        t = np.tanh(slope * (u[:, None] * s / d - cuts))
        value[..., k] = t.mean(-1).reshape(w.shape[:-1])
        dc = g[..., k].ravel() * (slope * (1 - t**2)).mean(-1)
        du = s / d * dc
        if norm != "none":
            du = du - s**3 / d / n * u * (dc @ u)
        if norm == "standard":
            du = du - du.mean()
        gradient[..., k] = du.reshape(w.shape[:-1])
    return value, gradient


@pytest.mark.parametrize("norm", ["rms", "standard", "none"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_tanh_sign(bits, norm):
    w, g = with_zeros(0, SHAPE), normal(1, SHAPE)
    w[..., 2] *= 1e-3  # a channel of small weights
    double = (x.astype(np.float64) for x in (w, g))
    value, expected = tanh_sign_by_hand(*double, v=1.3, bits=bits, norm=norm)
    q = tanh_sign(bits=bits, norm=norm, sharpness=1.3)
    soft = q.soft(((), ()), jnp.asarray(w), step=0)
    np.testing.assert_allclose(soft, value, rtol=2e-5, atol=1e-6)
    got = gradient(q, ((), ()), jnp.asarray(w), jnp.asarray(g))
    size = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6 * size)


@pytest.mark.parametrize("bits", [1, 2])
def test_penalty_of_tanh_sign(bits):
    """v = 1.3, c = w: the sum over steps of the mean of 1 - tanh^2, and its slope."""
    w = normal(0, (5, 4))
    n, x = 2**bits - 1, w.astype(np.float64)
    cuts = np.linspace(-1, 1, n + 1)[1:] - 1 / n
    t = np.tanh(n * 1.3 * (x[..., None] - cuts))
    q = tanh_sign(bits=bits, norm="none", sharpness=1.3, penalty=0.7)
    fn = lambda w: q.penalty(((), ()), w, step=0)
    value, slope = jax.value_and_grad(fn)(jnp.asarray(w))
    np.testing.assert_allclose(value, 0.7 * (1 - t**2).mean((0, 1)).sum(), rtol=1e-5)
    expected = (-2 * t * (1 - t**2) * n * 1.3).sum(-1) * 0.7 / w.size
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-7)


def test_regularizers():
    """Values by definition; gradients by central differences in float64."""
    x = normal(0, (4, 3)).astype(np.float64)
    centred = x - x.mean()
    cases = [
        (binarization_distance, (1 - x**2).mean()),
        (kurtosis, (centred**4).mean() / (centred**2).mean() ** 2),
        (orthogonality, ((x.T @ x - np.eye(3)) ** 2).sum() / 3),
        (lambda a: orthogonality(a.T), ((x.T @ x - np.eye(3)) ** 2).sum() / 3),
    ]
    with jax.enable_x64(True):
        for fn, expected in cases:
            value, slope = jax.value_and_grad(fn)(jnp.asarray(x))
            np.testing.assert_allclose(value, expected, rtol=1e-9)
            direction = normal(1, x.shape).astype(np.float64)
            rise = fn(jnp.asarray(x + 1e-6 * direction))
            fall = fn(jnp.asarray(x - 1e-6 * direction))
            measured = (rise - fall) / 2e-6
            np.testing.assert_allclose((slope * direction).sum(), measured, rtol=1e-6)


def test_regularizers_at_special_points():
    assert kurtosis(jnp.asarray([1.0, -1.0, 1.0, -1.0])) == pytest.approx(1.0)
    assert float(orthogonality(jnp.eye(3)[:2])) == 0.0
    slope = jax.grad(kurtosis)(jnp.ones((3, 2)))
    chex.assert_tree_all_finite(slope)
