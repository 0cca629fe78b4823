"""Kernels whose output units are not last, and stacked ones: one scale a unit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import normal

from quantnet_jax import quantizers
from quantnet_jax.core.packing import pack, unpack
from quantnet_jax.core.qtensor import dequantize, validate
from quantnet_jax.trees import layout
from quantnet_jax.trees.axes import Axes
from quantnet_jax.trees.tree import Rule, dequantize_tree, tree_quantizer

KERNELS = {
    "Dense": ((32, 64), -1, ()),
    "Conv": ((3, 3, 4, 8), -1, ()),
    "depthwise": ((3, 3, 1, 8), -1, ()),
    "attention query": ((16, 4, 8), (1, 2), ()),
    "attention out": ((4, 8, 16), -1, ()),
    "scanned Dense": ((6, 8, 16), -1, 0),
    "scanned query": ((6, 8, 4, 2), (-2, -1), 0),
    "scanned Conv": ((4, 3, 3, 2, 8), -1, 0),
    "experts of a scan": ((2, 3, 8, 4), -1, (0, 1)),
    "transposed Conv": ((3, 3, 8, 4), -2, ()),
    "Embed": ((40, 8), 0, ()),
    "equinox Conv": ((8, 4, 3, 3), 0, ()),
    "heads first": ((4, 16, 8), (0, 2), ()),
    "one unit": ((16, 8), (), ()),
}


def sized(shape, out, stack):
    """Weights whose units, of each stacked tensor, differ much in size."""
    found = layout.make(shape, out, stack)
    own = (*found.out, *found.stack)
    sizes = [n if i in own else 1 for i, n in enumerate(shape)]
    return normal(0, shape) * np.exp(normal(1, sizes)), own


@functools.cache
def made(name, **options):
    return quantizers.create(name, **options)


def tree_of(name, w, out, stack, **options):
    """(hard QTensor, soft value) of one tensor by a rule."""
    params = {"w": jnp.asarray(w)}
    q = tree_quantizer([Rule("w", made(name, **options), "layer", out, stack)], params)
    qparams = q.init(jax.random.key(0), params)
    hard = jax.jit(q.hard)(qparams, params)["w"]
    soft = jax.jit(lambda p, w: q.soft(p, w, step=0))(qparams, params)["w"]
    return hard, soft


@pytest.mark.parametrize("name", KERNELS)
def test_one_scale_for_each_unit(name):
    """The error is the least that a sign with a scale per unit can have."""
    shape, out, stack = KERNELS[name]
    w, own = sized(shape, out, stack)
    hard, soft = tree_of("binary_ste", w, out, stack)
    others = tuple(i for i in range(len(shape)) if i not in own)
    best = np.where(w >= 0, 1.0, -1.0) * np.abs(w).mean(others, keepdims=True)
    validate(hard)
    assert hard.shape == shape and hard.levels.shape == (2,)
    np.testing.assert_allclose(dequantize(hard), best, rtol=1e-5)
    np.testing.assert_array_equal(soft, dequantize(hard))
    back = unpack(pack(hard.codes, 1), 1, shape)
    np.testing.assert_array_equal(back, hard.codes)


@pytest.mark.parametrize("name", ["attention query", "scanned query", "Embed"])
def test_tables_of_units_stay_with_them(name):
    """AdaBin has a table for each unit: its mean and deviation as two levels."""
    shape, out, stack = KERNELS[name]
    w, own = sized(shape, out, stack)
    hard, _ = tree_of("adabin", w, out, stack)
    validate(hard)
    others = tuple(i for i in range(len(shape)) if i not in own)
    mean, std = w.mean(others, keepdims=True), w.std(others, keepdims=True)
    wanted = mean + np.where(w >= mean, std, -std)
    np.testing.assert_allclose(dequantize(hard), wanted, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("member", ["quantnet", "lsq", "adabin", "irnet", "twn"])
def test_a_stack_equals_its_tensors(member):
    """One network as a loop and as a scan, its parameters shared: the same values."""
    w = jnp.asarray(normal(2, (3, 5, 4)))
    options = {"width": 4} if member == "quantnet" else {}
    q = made(member, **options)
    stacked = {"w": w}
    loop = {f"w{i}": w[i] for i in range(3)}
    one = tree_quantizer([Rule("w", q, "kernel", -1, 0)], stacked)
    many = tree_quantizer([Rule("w.", q, "kernel")], loop)
    key = jax.random.key(0)
    a, b = one.init(key, stacked), many.init(key, loop)
    if member == "quantnet":  # their keys differ, and the first layer is random
        b = a | {f"w{i}": a["w"] for i in range(3)}
    hard = one.hard(a, stacked)["w"]
    validate(hard)
    for i in range(3):
        other = dequantize(many.hard(b, loop)[f"w{i}"])
        np.testing.assert_allclose(dequantize(hard)[i], other, rtol=1e-6)
        soft = one.soft(a, stacked, step=0)["w"][i]
        np.testing.assert_allclose(soft, many.soft(b, loop, step=0)[f"w{i}"], rtol=1e-6)
    np.testing.assert_allclose(
        one.penalty(a, stacked, step=0), many.penalty(b, loop, step=0), rtol=1e-6
    )


@pytest.mark.parametrize("member", quantizers.MEMBERS)
def test_every_member_sees_one_tensor_with_windows_first_and_units_last(member):
    """A stacked kernel (out, layers, in, height, width) against its tensors alone."""
    q, w = made(member), normal(5, (4, 2, 3, 2, 2))
    axes = {"w": Axes((0,), (2,), (1,), (3, 4))}
    tree = tree_quantizer([Rule("w", q, out="auto")], {"w": w}, axes=axes)
    qparams = jax.jit(tree.init)(jax.random.key(0), {"w": w})
    back = lambda x: np.transpose(x, (3, 4, 2, 0, 1))  # (h, w, in, out, layers)

    @jax.jit
    def everything(qparams, w, g):
        """Soft and hard values, gradient, projected weights; penalty."""
        found = [tree.soft(qparams, w, step=1), dequantize_tree(tree.hard(qparams, w))]
        if tree.gradient:
            found.append(tree.gradient(qparams, w, g, step=1))
        if tree.project:
            found.append(tree.project(qparams, w, step=1)[1])
        return [x["w"] for x in found], tree.penalty(qparams, w, step=1)

    @jax.jit
    @jax.vmap
    def alone(qparams, w, g):
        found = [q.soft(qparams, w, step=1), dequantize(q.hard(qparams, w))]
        if q.gradient:
            found.append(q.gradient(qparams, w, g, step=1))
        if q.project:
            found.append(q.project(qparams, w, step=1)[1])
        return found, q.penalty(qparams, w, step=1)

    g = normal(6, w.shape)
    got, penalty = everything(qparams, {"w": w}, {"w": g})
    one = lambda x: np.moveaxis(back(x), -1, 0)
    wanted, penalties = alone(qparams["w"], one(w), one(g))
    np.testing.assert_allclose(penalty, np.sum(penalties), rtol=1e-5)
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one(x), y, rtol=1e-5, atol=1e-6)


def test_gradient_and_projection_follow_the_layout():
    w = {"w": jnp.asarray(normal(3, (2, 4, 3)))}
    g = {"w": jnp.asarray(normal(4, (2, 4, 3)))}
    q = tree_quantizer([Rule("w", made("binaryconnect"), "layer", -2, 0)], w)
    moved = q.project(q.init(jax.random.key(0), w), {"w": 3 * w["w"]}, step=0)[1]
    np.testing.assert_allclose(moved["w"], np.clip(3 * w["w"], -1, 1))
    q = tree_quantizer([Rule("w", made("metaquant", width=2), "model", -2, 0)], w)
    qparams = q.init(jax.random.key(0), w)
    assert q.gradient(qparams, w, g, step=0)["w"].shape == (2, 4, 3)


@pytest.mark.parametrize(
    ("out", "stack", "words"),
    [(3, (), "out=.3,."), (0, 0, "each axis once"), (0, 5, "stack=.5,.")],
)
def test_impossible_axes_are_named(out, stack, words):
    with pytest.raises(ValueError, match=words) as error:
        tree_quantizer(
            [Rule("w", made("lsq"), "layer", out, stack)], {"w": jnp.ones((2, 3))}
        )
    assert "'w'" in str(error.value) and "\n" not in str(error.value)
