"""Merging: the same values and gradients, with equal operations only once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from quantnet_jax import quantizers
from quantnet_jax.core import tree
from quantnet_jax.core.merge import merged
from quantnet_jax.training import experiment


def count(jaxpr, name):
    """Operations of a name in a program and in all programs inside it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    found = 0
    for eqn in jaxpr.eqns:
        found += eqn.primitive.name == name
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                found += count(value, name)
    return found


def test_only_equal_operations_are_merged():
    def fn(x, y):
        a, b = jnp.sin(x), jnp.sin(x)
        c = jnp.sin(y)
        d = jax.lax.reduce_sum(x, (0,)) + jax.lax.reduce_sum(x, (1,))
        e = (x * 2.0) + (x * 2.0) + (x * 3.0)
        return {"ab": a * b, "c": c, "d": d, "e": e, "x": x, "k": jnp.float32(7)}

    x = jnp.arange(9.0).reshape(3, 3)
    y = x + 1
    program = jax.make_jaxpr(merged(fn))(x, y)
    counts = {n: count(program, n) for n in ("sin", "reduce_sum", "mul")}
    assert counts == {"sin": 2, "reduce_sum": 2, "mul": 3}
    for wrap in (lambda f: f, jax.jit):
        got, wanted = wrap(merged(fn))(x, y), fn(x, y)
        assert jax.tree.structure(got) == jax.tree.structure(wanted)
        for name in wanted:
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-6)


def test_effects_and_rules_of_gradients_stay():
    seen = []

    @jax.custom_vjp
    def seven(x):
        return x

    seven.defvjp(lambda x: (x, None), lambda _, g: (7.0 * g,))

    def fn(x):
        jax.debug.callback(lambda v: seen.append(float(v)), x)
        jax.debug.callback(lambda v: seen.append(float(v)), x)
        return seven(x) + seven(x) + jax.lax.stop_gradient(x)

    value, slope = jax.value_and_grad(merged(fn))(2.0)
    jax.effects_barrier()
    assert (float(value), float(slope)) == (6.0, 14.0) and seen == [2.0, 2.0]


OPTIONS = {
    "quantnet": {"penalty": 0.5},
    "quantnet, 2 planes": {"penalty": 0.5, "bits": 2, "multibit": "planes"},
    "quantnet, conv": {"penalty": 0.5, "unit": "conv", "width": 2},
    "quantnet, scaled": {"penalty": 0.5, "scale": "learned", "orthogonality": 0.1},
    "tanh_sign": {"penalty": 0.5, "bits": 2},
    "clipped_ste": {},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_soft_and_penalty_are_those_taken_apart(name, key):
    member = quantizers.create(name.split(",")[0], total_steps=10, **OPTIONS[name])
    shapes = {"a": (3, 3, 2, 4), "b": (3, 3, 2, 4), "c": (3, 3, 4, 2)}
    params = {
        n: jax.random.normal(jax.random.fold_in(key, i), s)
        for i, (n, s) in enumerate(shapes.items())
    }
    share = "shape" if "conv" in name else "kernel"
    q = tree.quantize_tree([tree.Rule(".", member, share)], params)
    qparams = q.init(key, params)
    # Not the identity that a sub-network begins as.
    qparams = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(key, x.shape, x.dtype), qparams
    )
    soft = lambda p, w: q.soft(p, w, step=3)
    penalty = lambda p, w: q.penalty(p, w, step=3)
    total = lambda w: sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(w))

    def apart(p, w):
        first = jax.grad(lambda *a: total(soft(*a)), (0, 1))(p, w)
        second = jax.grad(penalty, (0, 1))(p, w)
        return jax.tree.map(jnp.add, first, second)

    @merged
    def both(p, w):
        return soft(p, w), penalty(p, w)

    def together(p, w):
        weights, extra = both(p, w)
        return total(weights) + extra

    wanted = jax.jit(apart)(qparams, params)
    got = jax.jit(jax.grad(together, (0, 1)))(qparams, params)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["joint", "bilevel"])
def test_penalty_costs_no_further_pass_through_the_sub_network(mode):
    def products(penalty):
        exp = experiment.build(tiny_config(
            runner="jit", quantizer__quantnet__penalty=penalty, meta__mode=mode
        ))  # fmt: skip
        (batch,) = exp.train_batches(0, [1])
        text = exp.train_step.lower(exp.state, exp.train_data, batch).as_text()
        return text.count("stablehlo.dot_general"), text.count("stablehlo.tanh")

    without, with_penalty = products(0.0), products(0.5)
    assert without == with_penalty and min(without) > 0
