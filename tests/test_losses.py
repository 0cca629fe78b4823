"""Tests of losses and counts against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantnet_jax.tasks import classification as losses


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


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy(logits, label, label_smoothing):
    target = np.eye(5)[label] * (1 - label_smoothing) + label_smoothing / 5
    wanted = -(target * log_softmax(logits)).sum(-1)
    got = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(label), label_smoothing)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_cross_entropy_of_huge_logits_is_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e30, 1e30, 0.0]])
    for label_smoothing in (0.0, 0.1):
        label = jnp.asarray([0, 1])
        assert np.isfinite(losses.cross_entropy(logits, label, label_smoothing)).all()


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


def test_weights_make_the_masked_mean():
    x = jnp.asarray([1.0, 2.0, 3.0, 100.0])
    weights = losses.weights(jnp.asarray([1.0, 1.0, 1.0, 0.0]), None)
    assert float(jnp.mean(x * weights)) == pytest.approx(2.0)
    # Whatever equal parts the rows are split into, and also if one holds padding only.
    parts = jnp.mean((x * weights).reshape(2, 2), 1), (x * weights)[jnp.array([3, 0])]
    assert float(jnp.mean(parts[0])) == pytest.approx(2.0)
    assert jnp.isfinite(parts[1]).all()
    assert losses.weights(jnp.ones(3), None).tolist() == [1.0, 1.0, 1.0]


def test_weights_over_devices_weigh_examples_not_devices():
    """Device 0 holds one real example, the others two: the mean is that of all."""
    rng = np.random.default_rng(2)
    x, mask = rng.normal(size=(4, 2)).astype(np.float32), np.ones((4, 2), np.float32)
    mask[0, 1] = 0.0

    def both(x, mask):
        weights = losses.weights(mask, "batch")
        grad = jax.grad(lambda x: jnp.mean(x * weights))(x)
        return jax.lax.pmean(jnp.mean(x * weights), "batch"), grad

    mean, grad = jax.pmap(both, "batch")(x, mask)
    wanted = (x * mask).sum() / mask.sum()
    np.testing.assert_allclose(mean, np.full(4, wanted), rtol=1e-6)
    # The mean over devices of these gradients is the gradient of the global mean.
    np.testing.assert_allclose(np.asarray(grad) / 4, mask / mask.sum(), rtol=1e-6)


def distilled(student, teacher, label, label_smoothing, weight, t):
    """Hinton et al. 2015, in float64, example by example."""

    def softmax(z):
        e = np.exp(z - z.max())
        return e / e.sum()

    found = []
    for z, v, y in zip(
        student.astype(float), teacher.astype(float), label, strict=True
    ):
        target = np.full(len(z), label_smoothing / len(z))
        target[y] += 1 - label_smoothing
        hard = -(target * np.log(softmax(z))).sum()
        p, q = softmax(v / t), softmax(z / t)
        soft = (p * (np.log(p) - np.log(q))).sum()
        found.append((1 - weight) * hard + weight * t * t * soft)
    return np.array(found)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 4.0), (1.0, 1.0), (0.9, 2)])
def test_distillation_against_numpy(label_smoothing, weight, temperature):
    rng = np.random.default_rng(5)
    student, teacher = rng.normal(0, 3, size=(2, 7, 5)).astype(np.float32)
    label = rng.integers(0, 5, 7).astype(np.int32)
    options = {
        "label_smoothing": label_smoothing,
        "weight": weight,
        "temperature": temperature,
    }
    batch = {"label": jnp.asarray(label), "teacher": jnp.asarray(teacher)}
    got = losses.criterion(jnp.asarray(student), batch, **options)
    wanted = distilled(student, teacher, label, label_smoothing, weight, temperature)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=2e-5)


def test_distillation_of_the_teacher_itself_is_at_its_minimum():
    logits = jnp.asarray(np.random.default_rng(6).normal(size=(4, 3)), jnp.float32)
    batch = {"label": jnp.zeros(4, jnp.int32), "teacher": logits}
    loss = lambda z: losses.criterion(z, batch, weight=1.0, temperature=3.0).sum()
    assert float(loss(logits)) == pytest.approx(0.0, abs=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(logits), 0.0, atol=1e-6)


def test_criterion_without_a_teacher_or_without_its_weight_is_the_cross_entropy():
    rng = np.random.default_rng(7)
    logits = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    batch = {"label": jnp.asarray([0, 1, 2, 2], jnp.int32)}
    wanted = losses.cross_entropy(logits, batch["label"], 0.1).tolist()
    alone = losses.criterion(logits, batch, label_smoothing=0.1, weight=0.5)
    both = losses.criterion(logits, batch | {"teacher": -logits}, label_smoothing=0.1)
    assert alone.tolist() == both.tolist() == wanted
