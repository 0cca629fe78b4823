"""Tests of tasks and of terms of the loss against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import normal, ready_task

from quantnet_jax.core import regularizers
from quantnet_jax.tasks import Source, reconstruction, terms
from quantnet_jax.tasks.classification import correct, cross_entropy, kl_divergence
from quantnet_jax.training import steps


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
    got = cross_entropy(jnp.asarray(logits), jnp.asarray(label), label_smoothing)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_cross_entropy_of_huge_logits_is_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e30, 1e30, 0.0]])
    for label_smoothing in (0.0, 0.1):
        label = jnp.asarray([0, 1])
        assert np.isfinite(cross_entropy(logits, label, label_smoothing)).all()


def test_kl_divergence(logits):
    other = logits[::-1].copy()
    p, q = log_softmax(logits), log_softmax(other)
    got = kl_divergence(jnp.asarray(logits), jnp.asarray(other))
    np.testing.assert_allclose(got, (np.exp(p) * (p - q)).sum(-1), rtol=1e-4, atol=1e-6)
    assert (np.asarray(got) > 0).all()
    same = kl_divergence(jnp.asarray(logits), jnp.asarray(logits))
    np.testing.assert_array_equal(same, np.zeros(12))  # exactly, for the zero check


def test_correct(logits, label):
    got = correct(jnp.asarray(logits), jnp.asarray(label))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, logits.argmax(-1) == label)


def test_a_tie_counts_for_the_first_class():
    tied = jnp.zeros((2, 4))
    assert correct(tied, jnp.asarray([0, 3])).tolist() == [1.0, 0.0]


def test_weights_make_the_masked_mean():
    x = jnp.asarray([1.0, 2.0, 3.0, 100.0])
    weights = steps.unit_mean(jnp.asarray([1.0, 1.0, 1.0, 0.0]), None)
    assert float(jnp.mean(x * weights)) == pytest.approx(2.0)
    # Whatever equal parts the rows are split into, and also if one holds padding only.
    parts = jnp.mean((x * weights).reshape(2, 2), 1), (x * weights)[jnp.array([3, 0])]
    assert float(jnp.mean(parts[0])) == pytest.approx(2.0)
    assert jnp.isfinite(parts[1]).all()
    assert steps.unit_mean(jnp.ones(3), None).tolist() == [1.0, 1.0, 1.0]


def test_weights_over_devices_weigh_examples_not_devices():
    """Device 0 holds one real example, the others two: the mean is that of all."""
    rng = np.random.default_rng(2)
    x, mask = rng.normal(size=(4, 2)).astype(np.float32), np.ones((4, 2), np.float32)
    mask[0, 1] = 0.0

    def both(x, mask):
        weights = steps.unit_mean(mask, "batch")
        grad = jax.grad(lambda x: jnp.mean(x * weights))(x)
        return jax.lax.pmean(jnp.mean(x * weights), "batch"), grad

    mean, grad = jax.pmap(both, "batch")(x, mask)
    wanted = (x * mask).sum() / mask.sum()
    np.testing.assert_allclose(mean, np.full(4, wanted), rtol=1e-6)
    # The mean over devices of these gradients is the gradient of the global mean.
    np.testing.assert_allclose(np.asarray(grad) / 4, mask / mask.sum(), rtol=1e-6)


def context(outputs, batch, **more):
    """What a term gets of one batch, with a loss of its own."""
    task = ready_task(outputs.shape[-1], more.pop("label_smoothing", 0.0))
    examples = batch | {"mask": jnp.ones(len(outputs))}
    loss = jnp.mean(task.loss(outputs, examples, train=True))
    blank = dict.fromkeys(terms.Context._fields)
    return terms.Context(
        **blank | {"outputs": outputs, "examples": examples} | more
    )._replace(loss=loss)


def distilled(student, teacher, label, label_smoothing, weight, t):
    """(1 - weight) cross-entropy + weight t^2 KL, in float64, the mean."""

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
    return np.mean(found)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 4.0), (1.0, 1.0), (0.9, 2)])
def test_distillation_against_numpy(label_smoothing, weight, temperature):
    rng = np.random.default_rng(5)
    student, teacher = rng.normal(0, 3, size=(2, 7, 5)).astype(np.float32)
    label = rng.integers(0, 5, 7).astype(np.int32)
    given = context(
        jnp.asarray(student),
        {"label": jnp.asarray(label)},
        teacher_outputs=jnp.asarray(teacher),
        label_smoothing=label_smoothing,
    )
    term = terms.weighted([(weight, terms.distillation(temperature=temperature))])
    wanted = distilled(student, teacher, label, label_smoothing, weight, temperature)
    got = given.loss + term(given)
    assert (got.shape, got.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(got, wanted, rtol=2e-5)


def test_mimicking_the_teacher_itself_is_at_its_minimum():
    logits = jnp.asarray(np.random.default_rng(6).normal(size=(4, 3)), jnp.float32)
    params = {"a": {"kernel": jnp.asarray(normal(0, (3, 3, 2, 4)))}}
    batch = {"label": jnp.zeros(4, jnp.int32)}

    def total(logits, params, term):
        given = context(logits, batch, teacher_outputs=TEACHER, params=params)
        given = given._replace(teacher_params=PARAMS, loss=jnp.zeros(()))
        return term(given)

    TEACHER, PARAMS = logits, params
    for term in (
        terms.distillation(temperature=3.0),
        terms.output_mimicking(),
        terms.weight_mimicking(),
    ):
        value, grads = jax.value_and_grad(total, (0, 1))(logits, params, term)
        assert float(value) == pytest.approx(0.0, abs=1e-5)
        for leaf in jax.tree.leaves(grads):
            np.testing.assert_allclose(leaf, 0.0, atol=1e-6)
        far = total(-logits, jax.tree.map(lambda x: x[::-1], params), term)
        assert float(far) > 1e-3


def test_kurtosis_term_per_layer():
    rng = np.random.default_rng(7)
    params = {name: {"kernel": normal(i, (40,))} for i, name in enumerate("abc")}
    params["a"]["bias"] = normal(9, (4,))
    given = terms.Context(*[None] * 8)._replace(params=params)
    targets = {"a": 1.2, "b": 1.8, "c": 1.8}
    term = terms.kurtosis(targets=(("a/.*", 1.2),))
    wanted = []
    for name, target in targets.items():
        w = params[name]["kernel"].astype(float)
        k = np.mean(((w - w.mean()) / w.std()) ** 4)
        wanted.append((k - target) ** 2)
    np.testing.assert_allclose(term(given), np.mean(wanted), rtol=1e-5)
    with pytest.raises(ValueError, match="'d.*' matches no parameter"):
        terms.kurtosis(pattern="d.*")(given)
    # Gradient steps bring the kurtosis to its target.
    w = jnp.asarray(rng.normal(size=200), jnp.float32)
    move = jax.jit(
        jax.grad(lambda w: terms.kurtosis(pattern="w")(given._replace(params={"w": w})))
    )
    for _ in range(200):
        w = w - 2.0 * move(w)
    assert float(regularizers.kurtosis(w)) == pytest.approx(1.8, abs=0.02)


def test_weight_mimicking_against_numpy():
    w, v = normal(0, (2, 1, 3, 4)), normal(1, (2, 1, 3, 4))
    given = terms.Context(*[None] * 8)._replace(
        params={"kernel": w}, teacher_params={"kernel": v}
    )
    got = terms.weight_mimicking(temperature=2.0)(given)

    def softmax(x):
        e = np.exp(x.astype(float) / 2)
        return e / e.sum(2, keepdims=True)

    p, q = softmax(v), softmax(w)
    wanted = 4 * np.mean((p * np.log(p / q)).sum(2))
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    other = given._replace(teacher_params={"kernel": v[:1]})
    with pytest.raises(ValueError, match="same architecture"):
        terms.weight_mimicking()(other)


def test_reconstruction_against_numpy():
    rng = np.random.default_rng(8)
    std = (0.5, 0.25)
    ready = lambda data, batch, *, seed, train: dict(batch)
    task = reconstruction(Source(ready, (3, 4, 2), (0.0, 0.0), std, {}))
    image = rng.normal(size=(5, 3, 4, 2)).astype(np.float32)
    out = image + rng.normal(0, 0.3, image.shape).astype(np.float32)
    batch = {"image": jnp.asarray(image), "label": jnp.zeros(5), "mask": jnp.ones(5)}
    examples = task.prepare(None, batch, seed=0, train=False)
    error = (out - image).astype(float)
    loss = task.loss(jnp.asarray(out), examples, train=True)
    np.testing.assert_allclose(loss, (error**2).mean((1, 2, 3)), rtol=1e-5)
    psnr = -10 * np.log10(((error * std) ** 2).mean((1, 2, 3)))
    got = task.metrics(jnp.asarray(out), examples)[task.primary.name]
    np.testing.assert_allclose(got, psnr, rtol=1e-5)
    assert task.metrics(examples["input"], examples)["psnr"].tolist() == [100.0] * 5
    between = task.compare(jnp.asarray(out), jnp.asarray(image))["psnr_between"]
    np.testing.assert_allclose(between, psnr, rtol=1e-5)
    assert task.same(out, out).all() and not task.same(out, out + 0.1).any()
