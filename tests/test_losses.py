"""Tests of losses and counts against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantnet_jax.training import losses


@pytest.fixture(scope="module")
def logits():
    rng = np.random.default_rng(0)
    return (3 * rng.normal(size=(12, 5))).astype(np.float32)


@pytest.fixture(scope="module")
def label():
    return np.random.default_rng(1).integers(0, 5, 12).astype(np.int32)


def log_softmax(x):
    x = x.astype(np.float64)
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - (x.max(-1, keepdims=True))
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy(logits, label, smoothing):
    target = np.eye(5)[label] * (1 - smoothing) + smoothing / 5
    wanted = -(target * log_softmax(logits)).sum(-1)
    got = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(label), smoothing)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_cross_entropy_of_huge_logits_is_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e30, 1e30, 0.0]])
    for smoothing in (0.0, 0.1):
        label = jnp.asarray([0, 1])
        assert np.isfinite(losses.cross_entropy(logits, label, smoothing)).all()


def test_kl_divergence(logits):
    other = logits[::-1].copy()
    p, q = log_softmax(logits), log_softmax(other)
    got = losses.kl_divergence(jnp.asarray(logits), jnp.asarray(other))
    np.testing.assert_allclose(got, (np.exp(p) * (p - q)).sum(-1), rtol=1e-4, atol=1e-6)
    assert (np.asarray(got) > 0).all()
    same = losses.kl_divergence(jnp.asarray(logits), jnp.asarray(logits))
    np.testing.assert_array_equal(same, np.zeros(12))  # exactly, for the zero check


def test_correct(logits, label):
    got = losses.correct(jnp.asarray(logits), jnp.asarray(label))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, logits.argmax(-1) == label)


def test_a_tie_counts_for_the_first_class():
    tied = jnp.zeros((2, 4))
    assert losses.correct(tied, jnp.asarray([0, 3])).tolist() == [1.0, 0.0]


def test_masked_mean():
    x = jnp.asarray([1.0, 2.0, 3.0, 100.0])
    mask = jnp.asarray([1.0, 1.0, 1.0, 0.0])
    assert float(losses.masked_mean(x, mask, None)) == 2.0


def test_masked_mean_over_devices_weighs_examples_not_devices():
    """Device 0 holds one real example, the others two: the mean is that of all."""
    rng = np.random.default_rng(2)
    x, mask = rng.normal(size=(4, 2)).astype(np.float32), np.ones((4, 2), np.float32)
    mask[0, 1] = 0.0

    def both(x, mask):
        part = losses.masked_mean(x, mask, "batch")
        grad = jax.grad(lambda x: losses.masked_mean(x, mask, "batch"))(x)
        return jax.lax.pmean(part, "batch"), grad

    mean, grad = jax.pmap(both, "batch")(x, mask)
    wanted = (x * mask).sum() / mask.sum()
    np.testing.assert_allclose(mean, np.full(4, wanted), rtol=1e-6)
    # The mean over devices of these gradients is the gradient of the global mean.
    np.testing.assert_allclose(np.asarray(grad) / 4, mask / mask.sum(), rtol=1e-6)
