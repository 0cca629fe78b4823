"""Correlations of layer inputs, and what BiTAT's training step makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config
from util import normal

from quantnet_jax.activations.lq import lq_activation
from quantnet_jax.tasks.layer_inputs import LayerInput, correlation
from quantnet_jax.training import experiment
from quantnet_jax.trees.paths import flatten


@pytest.mark.parametrize(
    ("size", "strides", "groups"), [(3, 1, 1), (3, 2, 4), (1, 2, 1), (1, 1, 1)]
)
def test_correlation_is_that_of_the_products(size, strides, groups):
    """w^T H w is the mean square of the convolution's output, for any kernel."""
    x, before = normal(0, (3, 6, 5, 4)), (size - 1) // 2
    pad = (before, size - 1 - before)
    h = correlation(LayerInput(jnp.asarray(x), size, strides, groups, (pad, pad)))
    kernel = normal(1, (size, size, 4 // groups, 8 if groups == 1 else 4))
    y = jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        (strides, strides),
        (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    flat = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    for c in range(flat.shape[1]):
        of = np.asarray(h, np.float64)[c % h.shape[0]]
        wanted = np.mean(np.asarray(y)[..., c].astype(np.float64) ** 2)
        assert flat[:, c] @ of @ flat[:, c] == pytest.approx(wanted, rel=1e-4)


def test_training_moves_correlations_as_an_average():
    """One step of rate r brings H to (1 - r) H + r X^T X / m; nothing else moves it."""
    config = tiny_config(quantizer__name="bitat", model__width=2)
    config.terms = ({"name": "input_correlation"},)
    row = {"optimizer": "sgd", "schedule": "constant", "weight_decay": 0.0}
    row |= {"pattern": "quant/.*correlation", "momentum": 0.0, "learning_rate": 0.25}
    config.optimizers = (row,)
    exp = experiment.build(config, jax.devices()[:1])
    before = flatten(jax.device_get(exp.state).params["quant"])
    state, _ = exp.train_step(exp.state, exp.train_data, next(exp.train_batches(0)))
    after = flatten(jax.device_get(state).params["quant"])
    held = [p for p in before if p.endswith("correlation")]
    assert len(held) == 2
    for path in held:
        old, new = before[path], after[path]
        np.testing.assert_array_equal(old[0], np.eye(old.shape[1]))
        moved = (new - 0.75 * old) / 0.25  # X^T X / m
        np.testing.assert_allclose(moved, moved.swapaxes(1, 2), atol=1e-5)
        assert np.linalg.eigvalsh(moved).min() > -1e-4 and np.abs(moved).max() > 0
    assert before[held[0]].shape == (1, 18, 18)


@pytest.mark.parametrize("balanced", [False, True])
def test_levels_of_activations_are_the_weighted_fit(balanced):
    scale = np.asarray([0.2, 1.0, 0.5, 6.0], np.float32)
    x = np.maximum(normal(0, (40, 3, 3, 4)), 0) * scale
    q = lq_activation(bits=2, balanced=balanced, momentum=0.5)
    v = np.asarray([0.7, 1.6], np.float64)
    change = q.observe(jnp.asarray(v, jnp.float32), jnp.asarray(x), step=0)
    levels = np.asarray([0, v[0], v[1], v.sum()])
    parts = np.asarray([[0, 0], [1, 0], [0, 1], [1, 1]])
    b = parts[np.abs(x[..., None] - levels).argmin(-1)]
    root = 1 / x.std((0, 1, 2)) if balanced else np.ones(4)
    root = np.broadcast_to(root, x.shape).ravel()[:, None]
    best, *_ = np.linalg.lstsq(root * b.reshape(-1, 2), root[:, 0] * x.ravel())
    np.testing.assert_allclose(change, 0.5 * (best - v), rtol=2e-2, atol=2e-3)
    value = q.value(jnp.asarray(v, jnp.float32), jnp.asarray(x))
    np.testing.assert_allclose(value, b @ v, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda x: jnp.sum(q.soft(jnp.asarray(v, jnp.float32), x, step=0)))(
        jnp.asarray(x - 0.1)
    )
    np.testing.assert_array_equal(
        slope, (x - np.float32(0.1) >= 0) & (x - np.float32(0.1) <= 2.3)
    )
