"""Calls for own training loops, against the training program and loops by hand."""

import warnings

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear import META_RATE, MOMENTUM, RATE, batches, linear_state, sgd
from util import normal

import quantnet_jax as qn
from quantnet_jax.training import optim

MEMBERS = {
    "proxquant": qn.proxquant(strength=0.05),
    "binaryconnect": qn.binaryconnect(),
    "lq_nets": qn.lq_nets(),
    "metaquant": qn.metaquant(width=3),
    "quantnet": qn.quantnet(width=4, sharpness=2.0, penalty=0.1),
}
PARAMS = {"kernel": jnp.asarray(0.4 * normal(0, (5, 4))), "bias": jnp.zeros(4)}


def loss(weights, batch):
    logits = batch["image"] @ weights["kernel"] + weights["bias"][None]
    p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(p, batch["label"][:, None], -1))


def start(member):
    q = qn.tree_quantizer([qn.Rule("kernel", member, "model")], PARAMS)
    qparams = q.init(jax.random.key(1), PARAMS)
    tx, meta = sgd(RATE, MOMENTUM), sgd(META_RATE)
    update = qn.make_update(q, tx, meta, learning_rate=RATE)
    return q, qparams, update


@pytest.mark.parametrize("name", MEMBERS)
def test_steps_are_those_of_the_training_program(name):
    tx = optim.partition(sgd(RATE, MOMENTUM), sgd(META_RATE))
    ours, step = linear_state(MEMBERS[name], tx)
    _, qparams, update = start(MEMBERS[name])
    params, state, own = (
        PARAMS,
        update.init(PARAMS, qparams),
        jax.jit(update.step, static_argnums=0),
    )
    for batch in batches(3):
        ours, metrics = step(ours, batch)
        params, qparams, state, value = own(loss, params, qparams, state, batch)
        total = metrics["loss"] + metrics["penalty"]
        np.testing.assert_allclose(value, total, rtol=1e-5)
    got = {"model": params, "quant": qparams}
    chex.assert_trees_all_close(got, ours.params, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 3
    assert np.abs(params["kernel"] - PARAMS["kernel"]).max() > 1e-2
    for before, after in zip(
        jax.tree.leaves(start(MEMBERS[name])[1]), jax.tree.leaves(qparams), strict=True
    ):
        assert np.abs(before - after).max() > 1e-5


def test_step_equals_a_loop_by_hand_with_aux_and_the_default_optimizer():
    q, qparams, _ = start(MEMBERS["quantnet"])
    with_aux = lambda weights, batch: (loss(weights, batch), weights["bias"] + 1.0)
    weights, meta = optax.sgd(0.1), optax.adam(3e-4)
    params, p = PARAMS, qparams
    with jax.numpy_dtype_promotion("standard"):  # optax's adam needs it
        update = qn.make_update(q, weights, has_aux=True)
        state, both = update.init(params, p), (PARAMS, qparams)
        states = weights.init(params), meta.init(qparams)
        own = jax.jit(update.step, static_argnums=0)

        @jax.jit
        def by_hand(both, states, step, batch):
            def total(both):
                w, p = both
                soft = q.soft(p, w, step=step)
                return loss(soft, batch) + q.penalty(p, w, step=step)

            value, grads = jax.value_and_grad(total)(both)
            moved = [
                tx.update(g, s, x)
                for tx, g, s, x in zip(
                    (weights, meta), grads, states, both, strict=True
                )
            ]
            new = [
                optax.apply_updates(x, u) for x, (u, _) in zip(both, moved, strict=True)
            ]
            return tuple(new), tuple(s for _, s in moved), value

        for number, batch in enumerate(batches(2)):
            bias = both[0]["bias"]
            both, states, wanted = by_hand(both, states, number, batch)
            params, p, state, (value, aux) = own(with_aux, params, p, state, batch)
            np.testing.assert_allclose(value, wanted, rtol=1e-5)
            np.testing.assert_allclose(aux, bias + 1.0, rtol=1e-6)
    chex.assert_trees_all_close((params, p), both, rtol=1e-4, atol=1e-6)


def test_a_learned_gradient_needs_the_learning_rate():
    q, _, _ = start(MEMBERS["metaquant"])
    with pytest.raises(ValueError, match="learning_rate=None, expected that of `tx`"):
        qn.make_update(q, optax.sgd(0.1))


@pytest.mark.parametrize("name", MEMBERS)
def test_soft_alone_warns_once_where_it_is_not_the_method(name):
    q, qparams, _ = start(MEMBERS[name])
    (batch,) = batches(1)
    grad = jax.jit(jax.grad(lambda p, step: loss(q.soft(qparams, p, step=step), batch)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        jax.jit(q.soft)(qparams, PARAMS, step=0)
        q.hard(qparams, PARAMS)
        assert not caught
        for step in range(3):
            grad(PARAMS, step)
        grad(PARAMS, jnp.float32(1.0))  # traced again
    if name == "quantnet":
        assert not caught
        return
    (warning,) = caught
    text = str(warning.message)
    assert f"train {name}(" in text and "make_update" in text and "\n" not in text
    field = "gradient" if name == "metaquant" else "project"
    assert f"its `{field}`" in text


def test_gap_scores_soft_and_hard_weights():
    q, qparams, _ = start(MEMBERS["quantnet"])
    (batch,) = batches(1)
    score = jax.jit(lambda weights: loss(weights, batch))
    found = qn.gap(score, q, qparams, PARAMS, 0, higher_is_better=False)
    hard = qn.dequantize_tree(q.hard(qparams, PARAMS))
    assert found.soft == pytest.approx(
        float(score(q.soft(qparams, PARAMS, step=0))), rel=1e-5
    )
    assert found.hard == pytest.approx(float(score(hard)), rel=1e-5)
    assert found.gap == found.hard - found.soft
    other = qn.gap(score, q, qparams, PARAMS, 0)
    assert other.gap == -found.gap and repr(other).startswith("Gap(soft=")


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(3, use_bias=False)(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.97)(x)


def test_recalibrated_statistics_are_means_of_those_of_batches():
    rng = np.random.default_rng(0)
    xs = [jnp.asarray(rng.normal(3, 5, (40, 4)), jnp.float32) for _ in range(3)]
    model = Normalized()
    variables = jax.jit(model.init)(jax.random.key(0), xs[0])
    params, stats = variables["params"], variables["batch_stats"]
    q = qn.tree_quantizer([qn.Rule(".*/kernel", qn.binary_ste())], params)
    hard = q.hard(q.init(jax.random.key(0), params), params)

    def update(weights, stats, x, train=True):
        variables = {"params": weights, "batch_stats": stats}
        return model.apply(variables, x, train, mutable="batch_stats")[1]["batch_stats"]

    got = qn.recalibrate(update, hard, stats, xs)["BatchNorm_0"]
    kernel = np.asarray(qn.dequantize(hard["Dense_0"]["kernel"]), np.float64)
    for name, of in (("mean", np.mean), ("var", np.var)):
        wanted = np.mean([of(np.asarray(x) @ kernel, axis=0) for x in xs], axis=0)
        np.testing.assert_allclose(got[name], wanted, rtol=1e-4)
    with pytest.raises(ValueError, match="does not move the statistics as"):
        qn.recalibrate(lambda w, s, x: update(w, s, x, False), hard, stats, xs)
    with pytest.raises(ValueError, match="at least one batch"):
        qn.recalibrate(update, hard, stats, [])


@pytest.mark.parametrize("count", [3, 300])
def test_recalibration_of_debiased_means(count):
    """As haiku keeps them: right once the correction is 1, refused before."""

    def update(weights, stats, x):
        step = stats["step"] + 1
        hidden = 0.9 * stats["hidden"] + 0.1 * (weights * x).mean()
        average = hidden / (1 - 0.9 ** step.astype(jnp.float32))
        return {**stats, "step": step, "hidden": hidden, "average": average}

    numbers = {"hidden": jnp.asarray(1.0), "average": jnp.asarray(1.0)}
    stats = {**numbers, "step": jnp.asarray(count), "key": jax.random.key(3)}
    run = lambda: qn.recalibrate(
        update, jnp.asarray(2.0), stats, [jnp.asarray([1.0, 3.0]), jnp.asarray([6.0])]
    )
    if count == 3:
        with pytest.raises(ValueError, match="does not move the statistics as running"):
            run()
        return
    got = run()
    assert float(got["average"]) == pytest.approx(8.0, rel=1e-4)
    assert int(got["step"]) == count and got["key"] == stats["key"]
