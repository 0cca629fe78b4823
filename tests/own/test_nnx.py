"""`qn.nnx`: models of flax.nnx as pure functions, against the models themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import quantnet_jax as qn
from quantnet_jax.trees.paths import flatten


class Block(nnx.Module):
    """Dense, BatchNorm, Dropout."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.dense(x)))


class Net(nnx.Module):
    """A list of 12 layers, a scanned stack of 3 blocks, a tied layer, a plain array."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(12)])
        make = nnx.vmap(Block, in_axes=(0,), out_axes=0)
        self.stack = nnx.split_rngs(splits=3)(make)(rngs)
        self.tied = self.layers[0]
        self.shift = jnp.arange(4.0)

    def __call__(self, x, *, rngs=None):
        forward = nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        x = forward(lambda block, x: block(x))(self.stack, x)
        return self.tied(x) + self.shift[None]


@pytest.fixture(scope="module")
def net():
    """(model, (params, state, apply), inputs)."""
    model = Net(nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(1), (8, 4))
    return model, qn.nnx.split(model), inputs


def test_parts_are_plain_dicts_with_paths_for_rules(net):
    _, (params, state, _), _ = net
    assert list(params) == ["layers", "stack"] and list(state) == ["shift", "stack"]
    assert params["layers"][10]["kernel"].shape == (4, 4)
    assert params["stack"]["dense"]["kernel"].shape == (3, 4, 4)
    assert sorted(state["stack"]["norm"]) == ["mean", "var"]
    q = qn.tree_quantizer([qn.Rule(r"layers/\d+/kernel", qn.binary_ste())], params)
    paths = [f"layers/{i}/kernel" for i in range(12)]
    hard = jax.eval_shape(q.hard, dict.fromkeys(paths, ()), params)
    found = [name for name, x in flatten(hard).items() if isinstance(x, qn.QTensor)]
    assert found == paths


def test_apply_is_the_model_in_both_modes(net):
    model, (params, state, apply), inputs = net
    step = jax.jit(lambda p, s, x, key: apply(p, s, x, train=True, rngs=key))
    outputs, moved = step(params, state, inputs, jax.random.key(3))
    again, _ = step(params, state, inputs, jax.random.key(3))
    other, _ = step(params, state, inputs, jax.random.key(4))
    assert (outputs == again).all() and not np.allclose(outputs, other)
    old, new = state["stack"]["norm"]["mean"], moved["stack"]["norm"]["mean"]
    assert not np.allclose(old, new) and jax.tree.structure(moved) == (
        jax.tree.structure(state)
    )
    # Evaluation: that of a model with these statistics, and nothing moves.
    outputs, same = jax.jit(apply)(params, moved, inputs)
    merged = qn.nnx.merge(model, params, moved)
    merged.eval()
    np.testing.assert_allclose(outputs, merged(inputs), rtol=1e-6, atol=1e-6)
    assert (same["stack"]["norm"]["mean"] == new).all()
    # The model that was split is as it was.
    assert (
        model.stack.norm.mean[...] == old
    ).all() and not model.stack.drop.deterministic
    assert (qn.nnx.merge(model, params).stack.norm.mean[...] == old).all()


def test_statistics_and_masks_against_a_layer_by_hand():
    params, state, apply = qn.nnx.split(Block(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (64, 4))
    y, moved = apply(params, state, x, train=True, rngs=nnx.Rngs(5))
    dense = np.asarray(x) @ np.asarray(params["dense"]["kernel"])
    np.testing.assert_allclose(moved["norm"]["mean"], dense.mean(0) / 2, atol=1e-6)
    want = (dense - dense.mean(0)) / np.sqrt(dense.var(0) + 1e-5)
    kept = np.asarray(y) != 0
    np.testing.assert_allclose(np.asarray(y)[kept], 2 * want[kept], atol=1e-4)
    assert 0.3 < kept.mean() < 0.7


def test_models_that_take_the_mode_and_the_key():
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.drop = nnx.Dropout(0.5)

        def __call__(self, x, power, *, train, rngs=None):
            return (self.drop(x, rngs=rngs) if train else x) ** power

    _, _, apply = qn.nnx.split(Own(nnx.Rngs(0)))
    x, key = jnp.ones(64), jax.random.PRNGKey(0)  # a key of the old kind
    assert (apply({}, {}, 2 * x, power=3)[0] == 8).all()
    y, _ = apply({}, {}, x, 1, train=True, rngs=key)
    assert set(np.unique(y)) == {0.0, 2.0}


def test_what_cannot_be_split_or_trained(net):
    _, (params, state, apply), inputs = net
    with pytest.raises(ValueError, match="^`rngs` is missing: stack draw"):
        apply(params, state, inputs, train=True)
    with pytest.raises(TypeError, match="^`model` is a dict, expected an nnx.Module"):
        qn.nnx.split({})
