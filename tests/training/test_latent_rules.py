"""Gradient networks and projections in the training step, against loops in NumPy."""

import chex
import jax
import numpy as np
import pytest
from linear import (
    META_RATE,
    MOMENTUM,
    RATE,
    batches,
    linear_state,
    sgd,
)
from tiny import tiny_config

from quantnet_jax import quantizers
from quantnet_jax.checkpoint import manager
from quantnet_jax.training import experiment, optim


def softmax_gradients(kernel, bias, batch):
    """(loss, gradient for the kernel used, for the bias) of the cross-entropy."""
    x, label = (np.asarray(batch[k], np.float64) for k in ("image", "label"))
    z = x @ kernel + bias
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    one_hot = np.eye(4)[label.astype(int)]
    loss = -np.mean(np.log((p * one_hot).sum(-1)))
    g = (p - one_hot) / len(x)
    return loss, x.T @ g, g.sum(0)


def stretched(w):
    """DoReFa's map and its vector-Jacobian product, the maximum differentiated."""
    t = np.tanh(w)
    at = np.unravel_index(np.abs(t).argmax(), t.shape)
    top = np.abs(t[at])

    def vjp(g):
        dt = g / top
        dt[at] -= np.sign(t[at]) * (g * t).sum() / top**2
        return dt * (1 - t**2)

    return t / top, vjp


def fcgrad_by_hand(kernel, encode, compress, dorefa, count):
    """MetaQuant's FCGrad as its algorithm says, one batch after the other, float64."""
    w, b = np.float64(kernel), np.zeros(4)
    a, c = np.float64(encode)[0], np.float64(compress)[:, 0]
    waiting_w, waiting_b = np.zeros_like(w), np.zeros_like(b)
    speed_w, speed_b = np.zeros_like(w), np.zeros_like(b)
    losses = []
    for batch in batches(count):
        # The update of the batch before, through the network.
        factor = a @ c
        through = stretched(w)[1] if dorefa else lambda g: g
        g = through(factor * waiting_w)
        g_of_factor = through(1.0 * waiting_w)
        speed_w = MOMENTUM * speed_w + g
        speed_b = MOMENTUM * speed_b + waiting_b
        w = w - RATE * (g + MOMENTUM * speed_w)
        b = b - RATE * (waiting_b + MOMENTUM * speed_b)
        # The loss of this batch, and what it says of the factor.
        x, back = stretched(w) if dorefa else (w, lambda g: g)
        scale = 1.0 if dorefa else np.abs(w).mean()
        loss, waiting_w, waiting_b = softmax_gradients(
            scale * np.where(x >= 0, 1.0, -1.0), b, batch
        )
        losses.append(loss)
        straight = back(scale * (np.abs(x) <= 1) * waiting_w)
        d_factor = np.sum(straight * -RATE * g_of_factor)
        a, c = a - META_RATE * d_factor * c, c - META_RATE * d_factor * a
    return losses, w, b, a, c


@pytest.mark.parametrize("forward", ["bwn", "dorefa"])
def test_metaquant_against_its_algorithm(forward):
    q = quantizers.create("metaquant", width=3, forward=forward)
    tx = optim.partition(sgd(RATE, MOMENTUM), sgd(META_RATE))
    state, step = linear_state(q, tx)
    quant = state.params["quant"]["shared0"]
    losses, w, b, a, c = fcgrad_by_hand(
        state.params["model"]["kernel"],
        quant["encode"],
        quant["compress"],
        forward == "dorefa",
        5,
    )
    for batch, loss in zip(batches(5), losses, strict=True):
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    model, quant = state.params["model"], state.params["quant"]["shared0"]
    np.testing.assert_allclose(model["kernel"], w, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(model["bias"], b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(quant["encode"][0], a, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(quant["compress"][:, 0], c, rtol=1e-3, atol=1e-5)
    start = linear_state(q, tx)[0].params["quant"]["shared0"]
    assert np.max(np.abs(start["compress"] - quant["compress"])) > 1e-4


@pytest.mark.parametrize("name", ["binaryconnect", "proxquant"])
def test_projection_follows_the_update(name):
    """Two steps of SGD, each followed by the projection's formula."""
    options = {"strength": 0.05} if name == "proxquant" else {}
    state, step = linear_state(
        quantizers.create(name, **options), optim.partition(sgd(6.0), sgd(0.0))
    )
    w, b = np.float64(state.params["model"]["kernel"]), np.zeros(4)
    for batch in batches(2):
        used = w if name == "proxquant" else np.where(w >= 0, 1.0, -1.0)
        _, g, gb = softmax_gradients(used, b, batch)
        w, b = w - 6.0 * g, b - 6.0 * gb
        if name == "proxquant":
            side = np.where(w >= 0, 1.0, -1.0)
            far = w - side
            w = side + np.sign(far) * np.maximum(np.abs(far) - 0.05, 0)
        else:
            assert np.abs(w).max() > 1
            w = np.clip(w, -1, 1)
        state, _ = step(state, batch)
    model = state.params["model"]
    np.testing.assert_allclose(model["kernel"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model["bias"], b, rtol=1e-4, atol=1e-5)


def test_proxquant_ends_on_its_signs():
    """What the pull has reached stays there exactly, and the gap is gone."""
    q = quantizers.create("proxquant", strength=0.5)
    state, step = linear_state(q, optim.partition(sgd(0.1), sgd(0.0)))
    for batch in batches(4):
        state, _ = step(state, batch)
    assert set(np.unique(state.params["model"]["kernel"])) == {-1.0, 1.0}


@pytest.mark.parametrize("name", ["metaquant", "lq_nets"])
def test_devices_and_checkpoints_keep_the_latent_state(name, tmp_path):
    """One device and four under pmap agree; a saved state comes back bit for bit."""
    config = tiny_config(quantizer__name=name, meta__learning_rate=1e-3)
    states = []
    for devices in (jax.devices()[:1], jax.devices()):
        exp = experiment.build(config, devices)
        state, data = exp.state, exp.train_batches(0)
        for _ in range(3):
            state, _ = exp.train_step(state, exp.train_data, next(data))
        states.append(jax.device_get(state))
    chex.assert_trees_all_close(*states, rtol=1e-3, atol=1e-5)
    start = jax.device_get(experiment.build(config, jax.devices()[:1]).state)
    moved = [
        bool(np.any(a != b))
        for a, b in zip(
            *(jax.tree.leaves(s.params["quant"]) for s in (start, states[0])),
            strict=True,
        )
    ]
    assert all(moved)
    with manager.Checkpoints(tmp_path) as saved:
        saved.save(3, states[0], {"hard": 0.5}, {"seconds": 1.0})
    with manager.Checkpoints(tmp_path) as saved:
        restored = saved.restore(start).state
    chex.assert_trees_all_equal(restored, states[0])


def test_gradient_networks_refuse_bilevel():
    with pytest.raises(ValueError, match="meta.mode='bilevel', expected 'joint'"):
        experiment.build(tiny_config(quantizer__name="metaquant", meta__mode="bilevel"))
