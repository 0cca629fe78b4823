"""Tests of the moving average: its closed form, in checkpoints, and without one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import learned_tanh, make_step, normal, ready_task

from quantnet_jax.checkpoint import manager
from quantnet_jax.training import optim
from quantnet_jax.training.state import TrainState, average, create_state, eval_state
from quantnet_jax.trees import tree

STEPS, DECAY = 25, 0.6  # from step 14 on; smaller before


def shares(count, decay):
    """Weight of the parameters after each of `count` steps in the last average."""
    keep = [min(decay, t / (9 + t)) for t in range(count)]
    return [(1 - keep[t]) * np.prod(keep[t + 1 :]) for t in range(count)]


def apply(variables, image, train):
    w, seen = variables["params"], variables["batch_stats"]
    new = {"mean": 0.5 * seen["mean"] + 0.5 * jnp.mean(image, 0)}
    return image @ w["kernel"], {"batch_stats": new}


@functools.cache
def run(decay):
    """The states of some steps of a linear network, first to last."""
    params = {"kernel": jnp.asarray(normal(0, (5, 4)))}
    rule = tree.Rule("kernel", learned_tanh(), "model")
    quantizer = tree.tree_quantizer([rule], params)
    sgd = optim.optimizer("sgd", lambda step: 0.5)
    tx = optim.partition(sgd, sgd)
    variables = {"params": params, "batch_stats": {"mean": jnp.zeros(5)}}
    key = jax.random.key(1)
    state = create_state(variables, quantizer, tx, key, averaged=decay > 0)
    made = make_step(apply, quantizer, tx, ready_task(), decay=decay)
    step, states = jax.jit(made, static_argnums=3), [state]
    for i in range(STEPS):
        label = np.random.default_rng(i).integers(0, 4, 6).astype(np.int32)
        batch = {"image": normal(i, (6, 5)), "label": label}
        batch["mask"] = np.ones(6, np.float32)
        states.append(step(states[-1], None, batch, None)[0])
    return jax.device_get(states)


def test_average_against_its_closed_form():
    """Of latent weights, sub-network and running statistics; of no start."""
    states, weights = run(DECAY), shares(STEPS, DECAY)
    assert sum(weights) == pytest.approx(1.0) and len(weights) == STEPS
    taken = [{"params": s.params, "batch_stats": s.batch_stats} for s in states[1:]]
    wanted = jax.tree.map(
        lambda *xs: sum(w * x.astype(float) for w, x in zip(weights, xs, strict=True)),
        *taken,
    )
    chex.assert_trees_all_close(states[-1].ema, wanted, rtol=1e-5, atol=1e-6)
    assert len(jax.tree.leaves(wanted)) == 3
    for mean, last in zip(
        jax.tree.leaves(wanted), jax.tree.leaves(taken[-1]), strict=True
    ):
        assert np.abs(mean - last).max() > 1e-4  # or equality would say nothing


def test_average_begins_with_the_first_step():
    """Bit for bit, whatever it held before: a warm start need not reset it."""
    first, second = run(DECAY)[:2]
    chex.assert_trees_all_equal(second.ema["params"], second.params)
    other = first._replace(ema=jax.tree.map(lambda x: x + 7.0, first.ema))
    got = average(other, second.params, second.batch_stats, DECAY)
    chex.assert_trees_all_equal(got, second.ema)


def test_decay_is_the_limit():
    keep = [0.0, 1 / 10, 2 / 11, 12 / 21, 13 / 22, 0.6, 0.6]
    x = {"x": jnp.ones(1)}
    for t, wanted in zip((0, 1, 2, 12, 13, 14, 10**6), keep, strict=True):
        step = jnp.asarray(t, jnp.int32)
        state = TrainState(step, x, {}, (), {"params": x, "batch_stats": {}})
        got = average(state, {"x": jnp.zeros(1)}, {}, DECAY)["params"]["x"][0]
        assert float(got) == pytest.approx(wanted), t


def test_without_an_average_nothing_is_held_or_changed():
    plain, averaged = run(0.0)[-1], run(DECAY)[-1]
    assert plain.ema == {} and not jax.tree.leaves(plain.ema)
    assert eval_state(plain) is not plain and eval_state(plain) == plain
    chex.assert_trees_all_close(plain.params, averaged.params, rtol=1e-5, atol=1e-6)
    assert average(plain, {}, {}, 0.0) == {}


def test_what_is_scored():
    state = run(DECAY)[-1]
    got = eval_state(state)
    assert got.params is state.ema["params"] and int(got.step) == STEPS
    assert got.batch_stats is state.ema["batch_stats"] and got.ema == {}


def test_checkpoints_hold_the_average_beside_the_weights(tmp_path):
    """Evaluation reads it without the optimizer; a warm start gets it."""
    state = run(DECAY)[-1]
    with manager.Checkpoints(tmp_path) as saved:
        saved.save(STEPS, state)
    with manager.Checkpoints(tmp_path, read_only=True) as saved:
        whole = saved.restore(state).state
        like = {k: getattr(state, k) for k in ("params", "batch_stats", "ema")}
        part = saved.restore(like).state
        arrays = saved.load_arrays().state
    chex.assert_trees_all_equal(jax.device_get(whole), state)
    chex.assert_trees_all_equal(jax.device_get(part), like)
    assert arrays.keys() == tree.flatten(state.ema).keys()
    for name, wanted in tree.flatten(state.ema).items():
        np.testing.assert_array_equal(arrays[name], wanted)
