"""Tests of rules over parameter trees: claims, sharing, batching, errors."""

import collections
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import clip_sign, equations, normal

from quantnet_jax.core.qtensor import QTensor, dequantize, validate
from quantnet_jax.core.quantizer import PerTensor, identity
from quantnet_jax.quantizers.binary.metaquant import metaquant
from quantnet_jax.quantizers.binary.ste import binary_ste, binaryconnect
from quantnet_jax.quantizers.multibit.lq_nets import lq_nets
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import tanh_sign
from quantnet_jax.trees.tree import (
    Rule,
    dequantize_tree,
    flatten,
    plan,
    tree_quantizer,
)


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
    q = tree_quantizer([Rule("x/.*", binary_ste())], tree)
    qparams = q.init(jax.random.key(0), tree)
    soft, hard = q.soft(qparams, tree, step=0), q.hard(qparams, tree)
    assert jax.tree.structure(soft) == jax.tree.structure(tree)
    assert isinstance(hard["x"][1]["y"], QTensor) and isinstance(hard["z"], Pair)
    assert soft["z"].left is tree["z"].left
    chex.assert_trees_all_close(dequantize_tree(hard), soft, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(flatten(hard)["x/0"].codes, tree["x"][0] >= 0)


def test_rule_that_claims_biases_too_says_so():
    params = {"a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
    with pytest.warns(UserWarning, match="rule '.*' claims vectors .* 'a/bias'"):
        tree_quantizer([Rule(".*", binary_ste())], params)
    tree_quantizer([Rule(".*/bias", binary_ste())], params)  # asked for


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
        ([Rule("(", identity())], ["'('", "not a regular expression"]),
        ([Rule(CONVS, identity(), "none")], ["share is 'none'", "'kernel'", "'shape'"]),
        (
            [Rule("a/kernel|head/kernel", quantnet(unit="filter", width=2), "model")],
            ["'a/kernel'", "(2, 2, 2, 2)", "'head/kernel'", "(4, 5)", "share='model'"],
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
    q = tree_quantizer([Rule(CONVS, one, share)], params)
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
    chex.assert_trees_all_close(*results, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("share", ["layer", "shape", "kernel", "model"])
def test_sharing_starts_and_deploys(share):
    params, one = small_net(), member()
    q = tree_quantizer([Rule(CONVS, one, share)], params)
    key = jax.random.key(0)
    qparams = q.init(key, params)
    chex.assert_trees_all_close(
        jax.tree.map(jnp.shape, jax.eval_shape(q.init, key, params)),
        jax.tree.map(jnp.shape, qparams),
        rtol=1e-5,
        atol=1e-6,
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


def test_kernels_of_one_size_share_where_they_need_the_same():
    rule = Rule("(a|b|stem)/kernel", quantnet(unit="filter", width=2), "kernel")
    keys = {b.paths: b.shared for b in plan([rule], small_net())}
    assert keys == {
        ("a/kernel", "b/kernel"): "shared0:2x2x2x2",
        ("stem/kernel",): "shared0:2x2x1x2",
    }


def test_members_without_parameters_can_share():
    params = small_net()
    q = tree_quantizer([Rule(CONVS, tanh_sign(), "model")], params)
    qparams = q.init(jax.random.key(0), params)
    assert jax.tree.leaves(qparams) == []
    soft = q.soft(qparams, params, step=0)["c"]["kernel"]
    expected = tanh_sign().soft(((), ()), params["c"]["kernel"], step=0)
    np.testing.assert_allclose(soft, expected, rtol=1e-6)


def count_primitives(layers, share):
    params = {f"layer{i}": array(i, 2, 2, 2, 2) for i in range(layers)}
    q = tree_quantizer([Rule(".*", member(), share)], params)
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
    tree = tree_quantizer([Rule("c", noisy), Rule("a|b", noisy)], params)
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
    q = tree_quantizer([Rule(CONVS, one, "kernel")], jax.eval_shape(small_net))
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
    q = tree_quantizer([Rule(CONVS, one), Rule("head/kernel", identity())], params)
    leaves = flatten(params)
    expected = sum(one.penalty(((), ()), leaves[path], step=0) for path in PATHS)
    qparams = q.init(jax.random.key(0), params)
    np.testing.assert_allclose(q.penalty(qparams, params, step=0), expected, rtol=1e-6)


def test_no_rules_leave_everything_as_it_is():
    params = small_net()
    q = tree_quantizer([], params)
    assert q.init(jax.random.key(0), params) == {}
    for tree in (q.soft({}, params, step=0), q.hard({}, params)):
        chex.assert_trees_all_close(tree, params, rtol=1e-5, atol=1e-6)
    assert float(q.penalty({}, params, step=0)) == 0.0


# Quantizers with rules of their own


def mixed_rules():
    """One network for a, b and c; and a projection on the stem."""
    return [
        Rule(CONVS, metaquant(network="fcgrad", width=3), "model"),
        Rule("stem/kernel", lq_nets(bits=2, momentum=0.5)),
        Rule("head/kernel", binary_ste()),
    ]


def test_rules_are_there_if_one_member_has_them():
    fields = lambda rules: tuple(
        getattr(tree_quantizer(rules, small_net()), name) is not None
        for name in ("gradient", "project")
    )
    meta, stem, head = mixed_rules()
    assert fields([meta, stem, head]) == (True, True)
    assert fields([meta, head]) == (True, False)
    assert fields([stem, head]) == (False, True)
    assert fields([head]) == fields([]) == (False, False)


def test_gradients_of_a_mixed_tree():
    """Of the network: its factor; of the others: the derivative of soft, or itself."""
    params = {k: v for k, v in small_net().items() if k != "count"}
    q = tree_quantizer(mixed_rules(), params)
    qparams = q.init(jax.random.key(0), params)
    qparams["shared0"] = {k: 1.5 * x for k, x in qparams["shared0"].items()}
    g = jax.tree.map(lambda x: array(11, *x.shape), params)
    got = q.gradient(qparams, params, g, step=0)
    assert jax.tree.structure(got) == jax.tree.structure(g)
    got, g, leaves = flatten(got), flatten(g), flatten(params)
    for path in PATHS:
        np.testing.assert_allclose(got[path], 2.25 * g[path], rtol=1e-5)
    np.testing.assert_array_equal(got["stem/kernel"], g["stem/kernel"])
    head = leaves["head/kernel"]
    slope = np.where(np.abs(head) <= 1, np.abs(head).mean(0, keepdims=True), 0)
    np.testing.assert_allclose(got["head/kernel"], g["head/kernel"] * slope, rtol=1e-5)
    for path in ("stem/bias", "b/bias"):
        np.testing.assert_array_equal(got[path], g[path])


def test_gradients_without_a_rule_are_the_vjp_of_soft():
    """Of annealed members with parameters too, at the given step."""
    params = {k: v for k, v in small_net().items() if k in "ac"}
    soft_member = quantnet(width=2, sharpness=lambda step: 1.0 + step, penalty=1.0)
    rules = [Rule("a/kernel", soft_member), Rule("c/kernel", metaquant(width=2))]
    q = tree_quantizer(rules, params)
    qparams = q.init(jax.random.key(0), params)
    g = jax.tree.map(lambda x: array(12, *x.shape), params)
    step = jnp.asarray(2.0)
    got = jax.jit(lambda *args: q.gradient(*args, step=step))(qparams, params, g)
    loss = lambda w: jnp.sum(
        soft_member.soft(qparams["a/kernel"], w, step=step) * g["a"]["kernel"]
    )
    expected = jax.jit(jax.grad(loss))(params["a"]["kernel"])
    np.testing.assert_allclose(got["a"]["kernel"], expected, rtol=1e-4, atol=1e-5)


def test_projection_of_a_mixed_tree_changes_only_its_own():
    params = small_net()
    q = tree_quantizer(mixed_rules(), params)
    qparams = q.init(jax.random.key(0), params)
    moved, new = q.project(qparams, params, step=0)
    assert jax.tree.structure((moved, new)) == jax.tree.structure((qparams, params))
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(new)[path], leaf)
    assert moved["shared0"] is qparams["shared0"]
    for path in set(qparams) - {"stem/kernel"}:
        chex.assert_trees_all_equal(moved[path], qparams[path])
    one, _ = lq_nets(bits=2, momentum=0.5).project(
        qparams["stem/kernel"], params["stem"]["kernel"], step=0
    )
    chex.assert_trees_all_close(moved["stem/kernel"], one, rtol=1e-5, atol=1e-6)
    assert not np.allclose(one.value, qparams["stem/kernel"].value, rtol=1e-3)


def test_projection_of_weights():
    params = {k: v for k, v in small_net().items() if k != "head"}
    params = jax.tree.map(lambda x: 3 * x, params)
    rules = [Rule("(a|b)/kernel", binaryconnect()), Rule("c/.*", binary_ste())]
    q = tree_quantizer(rules, params)
    qparams, new = q.project(q.init(jax.random.key(0), params), params, step=0)
    assert jax.tree.leaves(qparams) == []
    for path, leaf in flatten(params).items():
        expected = np.clip(leaf, -1, 1) if path in PATHS[:2] else leaf
        np.testing.assert_array_equal(flatten(new)[path], expected)


@pytest.mark.parametrize("share", ["layer", "shape", "kernel", "model"])
def test_projection_keeps_what_is_shared(share):
    """The part that tensors share stays; what is each one's own moves by its tensor."""

    def project(qparams, w, *, step):
        common, own = qparams["common"], qparams["own"]
        moved = PerTensor(own.value + common + jnp.max(w) + step)
        return {"common": common + jnp.sum(w), "own": moved}, w * common

    init = lambda key, w: {"common": jnp.float32(2.0), "own": PerTensor(jnp.mean(w))}
    params = small_net()
    rule = Rule(CONVS, clip_sign()._replace(init=init, project=project), share)
    q = tree_quantizer([rule], params)
    before = q.init(jax.random.key(0), params)
    after, new = q.project(before, params, step=jnp.asarray(7.0))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    leaves, new = flatten(params), flatten(new)
    for path, leaf in leaves.items():
        w = np.asarray(leaf)
        np.testing.assert_array_equal(new[path], 2 * w if path in PATHS else w)
    for path in PATHS:
        w = np.asarray(leaves[path], np.float64)
        expected = w.mean() + 2 + w.max() + 7
        np.testing.assert_allclose(after[path]["own"].value, expected, rtol=1e-5)
        if share == "layer":
            np.testing.assert_allclose(after[path]["common"], 2 + w.sum(), rtol=1e-5)
        else:
            assert after[path]["common"] is None
    for key in set(before) - set(PATHS):
        assert after[key] is before[key]
