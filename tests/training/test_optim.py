"""Tests of schedules and optimizers against closed forms and NumPy loops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from quantnet_jax.config import ranges
from quantnet_jax.core import schedules
from quantnet_jax.training import optim

TOTAL, PEAK = 40, 0.3
SCHEDULES, OPTIMIZERS = ("constant", "cosine", "linear", "steps"), ("sgd", "adam")


def closed_form(schedule, step, rising, milestones=(0.5, 0.75), factor=0.1):
    """The learning rate, from the definition."""
    if step < rising:
        return PEAK * step / rising
    part = min((step - rising) / (TOTAL - rising), 1.0)
    if schedule == "cosine":
        return PEAK * (1 + np.cos(np.pi * part)) / 2
    if schedule == "linear":
        return PEAK * (1 - part)
    if schedule == "steps":
        return PEAK * factor ** sum(step >= m * TOTAL for m in milestones)
    return PEAK


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_against_closed_forms(schedule, warmup):
    rate = optim.learning_rate(PEAK, TOTAL, schedule=schedule, warmup=warmup)
    for step in range(TOTAL + 5):  # and stays at its last value
        wanted = closed_form(schedule, step, round(warmup * TOTAL))
        for form in (step, jnp.asarray(step, jnp.int32)):
            assert float(rate(form)) == pytest.approx(wanted, rel=1e-5, abs=1e-8), step


def test_steps_schedule_with_other_milestones():
    rate = optim.learning_rate(
        PEAK, TOTAL, schedule="steps", milestones=(0.1, 0.2, 0.9), factor=0.5
    )
    for step in range(TOTAL):
        wanted = closed_form("steps", step, 0, (0.1, 0.2, 0.9), 0.5)
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-6), step


def test_steps_schedule_whose_milestone_lies_in_the_warm_up():
    rate = optim.learning_rate(
        PEAK, TOTAL, schedule="steps", warmup=0.5, milestones=(0.25, 0.75)
    )
    # The first milestone is over when the warm-up ends.
    assert float(rate(25)) == pytest.approx(0.1 * PEAK)
    assert float(rate(35)) == pytest.approx(0.01 * PEAK)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_of_very_short_runs_are_finite(schedule, steps):
    for warmup in (0.0, 0.5, 0.99):
        rate = optim.learning_rate(PEAK, steps, schedule=schedule, warmup=warmup)
        values = [float(rate(step)) for step in range(steps)]
        assert all(0 <= value <= PEAK + 1e-6 for value in values), (warmup, values)


def test_a_schedule_of_optax_by_name():
    """Numbers of steps among its arguments are fractions of the run."""
    options = (("transition_steps", 0.5), ("decay_rate", 0.25))
    rate = optim.learning_rate(
        PEAK, TOTAL, schedule="exponential_decay", warmup=0.1, options=options
    )
    for step in range(4, TOTAL):
        wanted = PEAK * 0.25 ** ((step - 4) / 18)
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-5), step
    rate = optim.learning_rate(PEAK, TOTAL, schedule="cosine_decay_schedule")
    same = optim.learning_rate(PEAK, TOTAL)
    assert [float(rate(s)) for s in (0, 9, 39)] == [float(same(s)) for s in (0, 9, 39)]
    with pytest.raises(ValueError, match="^schedule_options=.*end_vaule"):
        optim.learning_rate(
            PEAK, TOTAL, schedule="linear_schedule", options=(("end_vaule", 0.1),)
        )


def test_boundaries_of_optax_are_pairs_as_in_schedules_of_quantizers():
    options = (("boundaries_and_scales", ((0.25, 0.5), (0.75, 0.1))),)
    name = "piecewise_constant_schedule"
    rate = optim.learning_rate(PEAK, TOTAL, schedule=name, options=options)
    spec = {"schedule": f"optax:{name}", "init_value": PEAK, **dict(options)}
    same = schedules.from_spec(spec, TOTAL)
    for step, factor in ((0, 1.0), (9, 1.0), (11, 0.5), (29, 0.5), (31, 0.05)):
        assert float(rate(step)) == pytest.approx(factor * PEAK), step
        assert float(rate(step)) == float(same(step))
    of_steps = (("boundaries_and_scales", {10: 0.5, 30: 0.1}),)
    rate = optim.learning_rate(PEAK, TOTAL, schedule=name, options=of_steps)
    assert [float(rate(s)) for s in range(40)] == [float(same(s)) for s in range(40)]


@pytest.mark.parametrize("name", sorted(set(ranges.OPTIMIZERS) - {"sgd", "adam"}))
def test_every_optimizer_that_may_be_named_can_be_made(name):
    tx = optim.optimizer(name, lambda step: 0.1, weight_decay=0.01, clip=1.0)
    params = parameters()
    state = jax.eval_shape(tx.init, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_adamw_of_optax_is_adam_here():
    rate = lambda step: 0.02
    ours = optim.optimizer("adam", rate, momentum=0.8, weight_decay=0.1)
    options = (("b1", 0.8),)
    other = optim.optimizer("adamw", rate, weight_decay=0.1, options=options)
    a, b = walk(ours, parameters())[0], walk(other, parameters())[0]
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6)
    with pytest.raises(ValueError, match="^options=.*optax.lion: .*b3"):
        optim.optimizer("lion", rate, options=(("b3", 0.1),))


def test_rows_take_the_paths_that_match_first():
    params = both()
    rows = [(".*/bias", 3.0), ("model/(bias|conv)", 5.0)]
    sgd = lambda rate: optim.optimizer("sgd", lambda step: rate, momentum=0.0)
    made = [(pattern, sgd(rate)) for pattern, rate in rows]
    tx = optim.partition(sgd(1.0), sgd(2.0), made)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    wanted = {"kernel": -1.0, "bias": -3.0, "conv": -5.0}
    for name, value in wanted.items():
        assert (np.asarray(updates["model"][name]) == value).all()
    np.testing.assert_array_equal(updates["quant"]["net"]["w"], np.full((2, 3), -2.0))
    with pytest.raises(ValueError, match=r"optimizers\[0\].pattern='head' matches no"):
        optim.partition(sgd(1.0), sgd(2.0), [("head", sgd(3.0))]).init(params)


def walk(tx, params, steps=4):
    """The parameters after some steps on gradients that depend on nothing but the step.

    Returns:
      (final parameters, list of the gradients).
    """
    rng = np.random.default_rng(0)
    state, grads = tx.init(params), []
    for _ in range(steps):
        g = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
        grads.append(g)
        with jax.numpy_dtype_promotion("standard"):  # optax's adam needs it
            updates, state = tx.update(jax.tree.map(jnp.asarray, g), state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params), grads


def parameters():
    rng = np.random.default_rng(1)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"kernel": make(3, 2), "conv": make(1, 1, 2, 2), "bias": make(2)}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_against_a_loop(momentum):
    """Nesterov momentum (Sutskever et al., 2013), decay of matrices in the gradient."""
    rate, decay = optim.learning_rate(0.1, TOTAL), 0.01
    tx = optim.optimizer("sgd", rate, momentum=momentum, weight_decay=decay)
    got, grads = walk(tx, parameters())
    for name, start in jax.device_get(parameters()).items():
        w, velocity = start.astype(np.float64), 0.0
        for step, g in enumerate(grads):
            total = g[name] + decay * w * (w.ndim > 1)
            velocity = momentum * velocity + total
            w = w - closed_form("cosine", step, 0) / 3 * (total + momentum * velocity)
        np.testing.assert_allclose(got[name], w, rtol=1e-5, atol=1e-6, err_msg=name)


def test_adam_against_a_loop():
    """Kingma & Ba, 2015; decay apart from the gradient (Loshchilov & Hutter, 2019)."""
    rate, decay, b1, b2 = 0.02, 0.1, 0.8, 0.999
    tx = optim.optimizer("adam", lambda s: rate, momentum=b1, weight_decay=decay)
    got, grads = walk(tx, parameters())
    for name, start in jax.device_get(parameters()).items():
        w, m, v = start.astype(np.float64), 0.0, 0.0
        for t, g in enumerate(grads, 1):
            m, v = b1 * m + (1 - b1) * g[name], b2 * v + (1 - b2) * g[name] ** 2
            step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
            w = w - rate * (step + decay * w * (w.ndim > 1))
        np.testing.assert_allclose(got[name], w, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_spares_scales_and_biases(name):
    params = parameters()
    tx = optim.optimizer(name, lambda step: 0.1, weight_decay=0.5)
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(zero, tx.init(params), params)
    moved = {k: bool(np.any(np.asarray(u) != 0)) for k, u in updates.items()}
    assert moved == {"kernel": True, "conv": True, "bias": False}


def both():
    """Parameters of the two labels."""
    return {"model": parameters(), "quant": {"net": {"w": jnp.ones((2, 3))}}}


def test_clipping_is_per_label():
    """The norm of one label does not shrink the step of the other."""
    tx = optim.partition(
        optim.optimizer("sgd", lambda s: 1.0, momentum=0.0, clip=0.5),
        optim.optimizer("sgd", lambda s: 1.0, momentum=0.0, clip=2.0),
    )
    params = both()
    grads = {
        "model": jax.tree.map(lambda p: jnp.full_like(p, 100.0), params["model"]),
        "quant": jax.tree.map(lambda p: jnp.full_like(p, 0.25), params["quant"]),
    }
    updates, _ = tx.update(grads, tx.init(params), params)
    assert float(optax.tree.norm(updates["model"])) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_array_equal(updates["quant"]["net"]["w"], np.full((2, 3), -0.25))
    model = jax.tree.leaves(updates["model"])
    assert len({round(float(x), 6) for u in model for x in u.ravel()}) == 1


@pytest.mark.parametrize(("weights", "meta"), [(0.1, 0.0), (0.0, 0.1), (0.1, 0.2)])
def test_labels_have_rates_of_their_own(weights, meta):
    params = both()
    tx = optim.partition(
        optim.optimizer("sgd", lambda step: weights, momentum=0.0),
        optim.optimizer("sgd", lambda step: meta, momentum=0.0),
    )
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    for label, rate in (("model", weights), ("quant", meta)):
        for update in jax.tree.leaves(updates[label]):
            np.testing.assert_array_equal(update, np.full_like(update, -rate))


@pytest.mark.parametrize("empty", [(), {}, {"conv1/kernel": ()}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_quantizers_without_parameters_pass(name, empty):
    params = {"model": parameters(), "quant": empty}
    tx = optim.partition(
        optim.optimizer("sgd", lambda step: 0.1),
        optim.optimizer(name, lambda step: 0.1, weight_decay=0.1, clip=1.0),
    )
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert params["quant"] == empty
    chex.assert_tree_all_finite(params)
