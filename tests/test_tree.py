"""Tests of rules over parameter trees: claims, sharing, batching, errors."""

import collections
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import assert_trees_close, clip_sign, equations, normal

from quantnet_jax.core.base import PerTensor, identity
from quantnet_jax.core.qtensor import QTensor, dequantize, validate
from quantnet_jax.core.tree import (
    Rule,
    dequantize_tree,
    flatten,
    plan,
    quantize_tree,
)
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import tanh_sign
from quantnet_jax.quantizers.ste import binary_ste


class Pair(NamedTuple):
    left: jax.Array
    right: jax.Array


def array(seed, *shape):
    return jnp.asarray(normal(seed, shape))


def small_net():
    """Two kernels of one shape, one of another, a dense one, and what stays float."""
    return {
        "stem": {"kernel": array(0, 2, 2, 1, 2), "bias": array(1, 2)},
        "a": {"kernel": array(2, 2, 2, 2, 2)},
        "b": {"kernel": array(3, 2, 2, 2, 2), "bias": array(4, 2)},
        "c": {"kernel": array(5, 2, 2, 2, 4)},
        "head": {"kernel": array(6, 4, 5)},
        "count": jnp.asarray(3),
    }


CONVS = r"(a|b|c)/kernel"
PATHS = ("a/kernel", "b/kernel", "c/kernel")


def test_paths_of_mixed_containers():
    tree = {"x": [array(0, 2), {"y": array(1, 3)}], "z": Pair(array(2, 4), (5.0,))}
    assert {k: np.size(v) for k, v in flatten(tree).items()} == {
        "x/0": 2,
        "x/1/y": 3,
        "z/left": 4,
        "z/right/0": 1,
    }


def test_mixed_containers_keep_their_structure():
    tree = {"x": [array(0, 2, 3), {"y": array(1, 2, 3)}], "z": Pair(array(2, 4), None)}
    q = quantize_tree([Rule("x/.*", binary_ste())], tree)
    qparams = q.init(jax.random.key(0), tree)
    soft, hard = q.soft(qparams, tree, step=0), q.hard(qparams, tree)
    assert jax.tree.structure(soft) == jax.tree.structure(tree)
    assert isinstance(hard["x"][1]["y"], QTensor) and isinstance(hard["z"], Pair)
    assert soft["z"].left is tree["z"].left
    assert_trees_close(dequantize_tree(hard), soft)
    np.testing.assert_array_equal(flatten(hard)["x/0"].codes, tree["x"][0] >= 0)


def test_plan_groups_equal_shapes():
    buckets = plan([Rule(CONVS, clip_sign()), Rule("head/.*", identity())], small_net())
    assert [b.paths for b in buckets] == [PATHS[:2], PATHS[2:], ("head/kernel",)]
    assert [b.shape for b in buckets] == [(2, 2, 2, 2), (2, 2, 2, 4), (4, 5)]
    assert {b.shared for b in buckets} == {None}
    abstract = jax.eval_shape(small_net)
    assert [b.paths for b in plan([Rule(CONVS, clip_sign())], abstract)] == [
        PATHS[:2],
        PATHS[2:],
    ]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([Rule("conv/.*", identity())], ["'conv/.*' matches no", "a/kernel, b/bias"]),
        ([Rule("kernel", identity())], ["'kernel' matches no"]),
        (
            [Rule(CONVS, identity()), Rule(".*kernel", identity())],
            [f"'{CONVS}'", "'.*kernel'", "both claim", *PATHS],
        ),
        ([Rule("count", identity())], ["'count'", "int32", "floating"]),
        ([Rule("(", identity())], ["'('", "no regular expression"]),
        ([Rule(CONVS, identity(), "none")], ["share is 'none'", "'kernel'", "'shape'"]),
        (
            [Rule("(a|stem)/kernel", quantnet(unit="filter", width=2), "kernel")],
            ["'a/kernel'", "(2, 2, 2, 2)", "'stem/kernel'", "(2, 2, 1, 2)", "'shape'"],
        ),
        (
            [Rule("a/kernel|head/kernel", quantnet(width=2), "model")],
            ["'a/kernel'", "'head/kernel'", "share='model'"],
        ),
    ],
)
def test_wrong_rules_are_errors(rules, words):
    with pytest.raises(ValueError) as error:
        plan(rules, small_net())
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, (word, message)


def full_parameters(qparams, path, share):
    """Parameters of one tensor of `quantnet(scale='learned')`, put together by hand."""
    if share == "layer":
        return qparams[path]
    shape = {"c/kernel": "2x2x2x4"}.get(path, "2x2x2x2")
    key = {"model": "shared0", "kernel": "shared0:2x2", "shape": f"shared0:{shape}"}
    own, shared = qparams[path], qparams[key[share]]
    assert jax.tree.leaves(own[1:]) == [] == jax.tree.leaves(shared[0])
    assert isinstance(own[0], PerTensor)
    return own[0], shared[1]


def member():
    return quantnet(width=4, sharpness=3.0, penalty=1.0, scale="learned")


@pytest.mark.parametrize("share", ["layer", "shape", "kernel", "model"])
def test_batched_trees_equal_a_loop(share):
    """Soft, hard, penalty and gradients, with every parameter away from its start."""
    params, one = small_net(), member()
    q = quantize_tree([Rule(CONVS, one, share)], params)
    shapes = jax.eval_shape(q.init, jax.random.key(0), params)
    counter = iter(range(100))
    qparams = jax.tree.map(lambda x: 0.5 * array(next(counter), *x.shape), shapes)
    sets = {"layer": 0, "shape": 2, "kernel": 1, "model": 1}[share]
    assert len(qparams) == 3 + sets
    cotangents = {path: array(9, *flatten(params)[path].shape) for path in PATHS}

    def by_tree(qparams, params):
        soft = flatten(q.soft(qparams, params, step=0))
        total = sum(jnp.sum(soft[path] * cotangents[path]) for path in PATHS)
        hard = flatten(q.hard(qparams, params))
        outputs = {path: (soft[path], dequantize(hard[path])) for path in PATHS}
        return total + q.penalty(qparams, params, step=0), outputs

    def by_loop(qparams, params):
        total, outputs, leaves = 0.0, {}, flatten(params)
        for path in PATHS:
            p, w = full_parameters(qparams, path, share), leaves[path]
            soft = one.soft(p, w, step=0)
            outputs[path] = (soft, dequantize(one.hard(p, w)))
            total = total + jnp.sum(soft * cotangents[path])
            total = total + one.penalty(p, w, step=0)
        return total, outputs

    results = []
    floats = {k: v for k, v in params.items() if k != "count"}
    for fn in (by_tree, by_loop):
        inner = lambda p, f, fn=fn: fn(p, f | {"count": params["count"]})
        graded = jax.jit(jax.value_and_grad(inner, argnums=(0, 1), has_aux=True))
        results.append(graded(qparams, floats))
    assert_trees_close(*results, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("share", ["layer", "shape", "kernel", "model"])
def test_sharing_starts_and_deploys(share):
    params, one = small_net(), member()
    q = quantize_tree([Rule(CONVS, one, share)], params)
    key = jax.random.key(0)
    qparams = q.init(key, params)
    assert_trees_close(
        jax.tree.map(jnp.shape, jax.eval_shape(q.init, key, params)),
        jax.tree.map(jnp.shape, qparams),
    )
    for path in PATHS:
        w = flatten(params)[path]
        scale = np.exp(full_parameters(qparams, path, share)[0].value)
        expected = np.abs(w).mean((0, 1, 2), keepdims=True)
        np.testing.assert_allclose(scale, expected, rtol=1e-5)
    encoders = {
        path: full_parameters(qparams, path, share)[1][1][0][0]["w"] for path in PATHS
    }
    same = lambda a, b: np.array_equal(encoders[a], encoders[b])
    assert same("a/kernel", "b/kernel") == (share != "layer")
    assert same("a/kernel", "c/kernel") == (share in ("kernel", "model"))
    hard = q.hard(qparams, params)
    for path in PATHS:
        validate(flatten(hard)[path], path)
    assert hard["stem"]["kernel"] is params["stem"]["kernel"]


def test_members_without_parameters_can_share():
    params = small_net()
    q = quantize_tree([Rule(CONVS, tanh_sign(), "model")], params)
    qparams = q.init(jax.random.key(0), params)
    assert jax.tree.leaves(qparams) == []
    soft = q.soft(qparams, params, step=0)["c"]["kernel"]
    expected = tanh_sign().soft(((), ()), params["c"]["kernel"], step=0)
    np.testing.assert_allclose(soft, expected, rtol=1e-6)


def count_primitives(layers, share):
    params = {f"layer{i}": array(i, 2, 2, 2, 2) for i in range(layers)}
    q = quantize_tree([Rule(".*", member(), share)], params)
    qparams = jax.eval_shape(q.init, jax.random.key(0), params)

    def loss(args, step):
        soft = q.soft(*args, step=step)
        return sum(map(jnp.sum, soft.values())) + q.penalty(*args, step=step)

    graded = lambda args, step: jax.grad(loss)(args, step)
    found = equations(graded, (qparams, params), jnp.asarray(0))
    counts = collections.Counter(eqn.primitive.name for eqn in found)
    return {name: counts[name] for name in ("dot_general", "tanh", "rsqrt", "exp")}


@pytest.mark.parametrize("share", ["layer", "model"])
def test_cost_does_not_grow_with_the_number_of_equal_kernels(share):
    few, many = (count_primitives(layers, share) for layers in (2, 7))
    assert few == many
    assert min(few.values()) > 0


def test_every_tensor_has_a_key_of_its_own():
    q = clip_sign()

    def soft(qparams, w, *, step, key=None):
        return jax.random.uniform(key, w.shape)

    def init(key, w):
        return jax.random.uniform(key, (3,))

    noisy = q._replace(soft=soft, init=init)
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2)), "c": jnp.ones((2, 3))}
    tree = quantize_tree([Rule("c", noisy), Rule("a|b", noisy)], params)
    key = jax.random.key(7)
    qparams = tree.init(key, params)
    out = tree.soft(qparams, params, step=0, key=key)
    for number, path in enumerate(params):
        own = jax.random.fold_in(key, number)
        expected = jax.random.uniform(own, params[path].shape)
        np.testing.assert_array_equal(out[path], expected)
        np.testing.assert_array_equal(qparams[path], jax.random.uniform(own, (3,)))


def test_trees_work_under_jit_and_eval_shape():
    params, one = small_net(), member()
    q = quantize_tree([Rule(CONVS, one, "kernel")], jax.eval_shape(small_net))
    qparams = jax.eval_shape(q.init, jax.random.key(0), params)
    soft = jax.eval_shape(lambda p, w: q.soft(p, w, step=0), qparams, params)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(soft) == shapes(jax.eval_shape(small_net))
    hard = jax.eval_shape(q.hard, qparams, params)
    assert hard["a"]["kernel"].codes.shape == (2, 2, 2, 2)
    assert shapes(jax.eval_shape(dequantize_tree, hard)) == shapes(soft)


def test_penalty_is_the_sum_over_tensors():
    params = small_net()
    one = tanh_sign(penalty=2.0)
    q = quantize_tree([Rule(CONVS, one), Rule("head/kernel", identity())], params)
    leaves = flatten(params)
    expected = sum(one.penalty(((), ()), leaves[path], step=0) for path in PATHS)
    qparams = q.init(jax.random.key(0), params)
    np.testing.assert_allclose(q.penalty(qparams, params, step=0), expected, rtol=1e-6)


def test_no_rules_leave_everything_as_it_is():
    params = small_net()
    q = quantize_tree([], params)
    assert q.init(jax.random.key(0), params) == {}
    for tree in (q.soft({}, params, step=0), q.hard({}, params)):
        assert_trees_close(tree, params)
    assert float(q.penalty({}, params, step=0)) == 0.0
