"""Tests of QuantNet: differentiable throughout, exact gradients, values, limits."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from util import equations, noisy, normal, with_zeros

from quantnet_jax import quantizers
from quantnet_jax.core.qtensor import dequantize
from quantnet_jax.core.schedules import exponential, linear
from quantnet_jax.quantizers.binary.ste import binary_ste
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import RANGES, staircase, tanh_sign
from quantnet_jax.quantizers.subnet import normalize, subnet
from quantnet_jax.trees.tree import Rule, tree_quantizer

SMOOTH = {
    *("add", "sub", "mul", "div", "neg", "integer_pow", "square", "rsqrt", "sqrt"),
    *("exp", "log", "tanh", "logistic", "dot_general", "conv_general_dilated"),
    *("reduce_sum", "reshape", "transpose", "broadcast_in_dim", "squeeze"),
    *("concatenate", "slice", "dynamic_slice", "rev", "stack", "gather", "add_any"),
    *("jit", "pjit", "closed_call", "remat", "checkpoint", "copy", "split", "pow"),
}
"""Primitives with a derivative of their own at every point, and plain calls."""
SETTINGS = [
    {"unit": "weight", "depth": 2, "penalty": 1.0},
    {"unit": "slice", "penalty": linear(0.0, 1.0, 10), "orthogonality": 0.1},
    {"unit": "slice", "nonlinearity": "silu", "skip": False, "norm": "standard"},
    {"unit": "slice", "nonlinearity": "linear", "norm": "none", "scale": "learned"},
    {"unit": "filter", "nonlinearity": "relu", "scale": "mean_abs"},
    {"unit": "conv", "width": 2, "window": 3, "penalty": 1.0},
    {"unit": "conv", "width": 2, "bits": 2, "scale": "learned"},
    {"bits": 2, "penalty": 1.0},
    {"bits": 3, "unit": "weight", "scale": "mean_abs"},
    {"bits": 4, "unit": "filter"},
    {"bits": 2, "multibit": "planes", "penalty": 1.0, "orthogonality": 0.1},
    {"bits": 3, "multibit": "planes", "unit": "weight", "scale": "learned"},
]
"""Every value of every option at least once."""
SHAPE = (2, 3, 2, 3)


def named(settings):
    return "-".join(f"{k}={v}" for k, v in settings.items() if not callable(v))


def make(settings, sharpness=2.0):
    """Without a scale unless the settings name one: it is tested on its own."""
    fixed = {"width": 3, "sharpness": sharpness, "scale": "none"}
    return quantnet(**fixed | settings)


def start(q, shape=SHAPE, seed=0):
    """Parameters that are noise, and weights, both float32."""
    w = jnp.asarray(normal(seed, shape))
    shapes = jax.eval_shape(q.init, jax.random.key(seed), w)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return noisy(zeros, spread=0.5), w


def forbidden(fn, args, step=0):
    """What a fully differentiable function must not do, as a set of names."""
    found = set()
    for eqn in equations(fn, args, jnp.asarray(step)):
        name, dtype = eqn.primitive.name, eqn.params.get("new_dtype")
        if name == "convert_element_type" and jnp.issubdtype(dtype, jnp.floating):
            continue
        if name not in SMOOTH:
            found.add(name)
    return found


# Nothing that is not differentiable


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_training_path_is_differentiable(settings):
    q = make(settings, sharpness=exponential(0.5, 50.0, 10))
    args = start(q)
    allowed = {"relu": {"max"}}.get(settings.get("nonlinearity"), set())
    # |w| of the scale: its slope jumps only at zero weights.
    allowed |= {"abs"} if settings.get("scale") == "mean_abs" else set()
    soft = forbidden(lambda args, step: q.soft(*args, step=step), args)
    assert soft == allowed
    penalty = forbidden(lambda args, step: q.penalty(*args, step=step), args)
    assert penalty <= allowed


@pytest.mark.parametrize("share", ["layer", "shape", "kernel", "model"])
def test_training_path_of_a_tree_is_differentiable(share):
    q = make({"penalty": 1.0, "unit": "slice"}, sharpness=linear(1.0, 5.0, 10))
    params = {
        "a": jnp.asarray(normal(0, SHAPE)),
        "b": jnp.asarray(normal(1, SHAPE)),
        "c": jnp.asarray(normal(2, (2, 3, 3, 1))),
    }
    tree = tree_quantizer([Rule(".*", q, share)], params)
    args = (jax.eval_shape(tree.init, jax.random.key(0), params), params)
    assert forbidden(lambda args, step: tree.soft(*args, step=step), args) == set()
    assert forbidden(lambda args, step: tree.penalty(*args, step=step), args) == set()


def with_own_rule(fn):
    """A custom_jvp around `fn`."""
    ruled = jax.custom_jvp(lambda w: fn(w))
    ruled.defjvp(lambda w, t: (fn(*w), fn(*w)))
    return ruled


def in_scan(fn):
    return lambda w: jax.lax.scan(lambda c, x: (c, fn(x)), 0.0, w)[1]


CONTROLS = {
    "custom_vjp_call": lambda w: binary_ste().soft((), w, step=0),
    "custom_jvp_call": jax.nn.relu,
    "round": jnp.round,
    "sign": jnp.sign,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "stop_gradient": jax.lax.stop_gradient,
    "argmax": jnp.argmax,
    "convert_element_type": lambda w: w.astype(jnp.int32),
    "ge": lambda w: jnp.where(w >= 0, 1.0, -1.0),
    "sort": jnp.sort,
    "min": lambda w: jnp.clip(w, -1.0, 1.0),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_walk_finds_what_is_not_differentiable(name):
    fn, w = CONTROLS[name], jnp.ones((2, 3))
    hidden = {
        "plain": fn,
        "jit": jax.jit(fn),
        "remat": jax.checkpoint(fn),
        "vmap": jax.vmap(fn),
        "scan": in_scan(fn),
        "cond": lambda w: jax.lax.cond(w[0, 0] > 0, fn, fn, w),
        "custom rule": with_own_rule(fn),
    }
    for how, inner in hidden.items():
        found = forbidden(lambda w, step, inner=inner: inner(w), w)
        assert name in found, (how, found)


def test_walk_leaves_schedules_alone():
    schedule = linear(0.0, 1.0, 10)
    assert forbidden(lambda w, step: w * schedule(step), jnp.ones(3)) == set()


# Exact gradients


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_gradients_agree_with_finite_differences(settings):
    """For every weight and every number of the sub-network, in float64."""
    q = make(settings, sharpness=lambda step: 1.7)
    qparams, w = start(q)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        double = lambda tree: jax.tree.map(lambda x: x.astype(np.float64), tree)
        args = jax.tree.map(np.asarray, (qparams, w))
        flat, restore = ravel_pytree(double(args))
        cotangent = np.random.default_rng(1).normal(size=w.shape)

        def loss(flat):
            args = restore(flat)
            soft, penalty = q.soft(*args, step=3), q.penalty(*args, step=3)
            return jnp.sum(soft * cotangent) + penalty

        def differences(flat, h=1e-5):
            steps = h * jnp.eye(flat.size)
            rise = lambda d: loss(flat + d) - loss(flat - d)
            return jax.lax.map(rise, steps) / (2 * h)

        exact, measured = jax.jit(lambda x: (jax.grad(loss)(x), differences(x)))(flat)
        assert exact.dtype == np.float64
        scale = np.abs(exact).max()
        np.testing.assert_allclose(exact, measured, rtol=1e-6, atol=1e-8 * scale)
        for path, g in jax.tree_util.tree_leaves_with_path(restore(exact)):
            assert np.any(g != 0), f"no gradient reaches {path}"


# Values


def test_one_bit_staircase_is_tanh():
    w = jnp.asarray(with_zeros(0, (5, 4)))
    soft = staircase(sharpness=3.0).soft((), w, step=0)
    np.testing.assert_array_equal(soft, jnp.tanh(3.0 * w))


@pytest.mark.parametrize("unit", ["weight", "slice", "filter", "conv"])
def test_starts_as_tanh_sign_with_skip(unit):
    w = jnp.asarray(normal(0, (2, 2, 1, 3)))  # so that three units have 4 numbers
    q, plain = make({"unit": unit, "width": 4}), tanh_sign(sharpness=2.0)
    qparams = q.init(jax.random.key(1), w)
    expected = plain.soft(((), ()), w, step=0)
    np.testing.assert_allclose(q.soft(qparams, w, step=0), expected, rtol=1e-5)
    codes = plain.hard(((), ()), w).codes
    np.testing.assert_array_equal(q.hard(qparams, w).codes, codes)


@pytest.mark.parametrize("multibit", ["staircase", "planes"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_uniform(bits, multibit):
    q = make({"bits": bits, "multibit": multibit, "unit": "weight"})
    qparams, w = start(q)
    qt = q.hard(qparams, w)
    expected = np.linspace(-1, 1, 2**bits, dtype=np.float32)
    np.testing.assert_allclose(qt.levels, expected, rtol=1e-6)
    assert qt.scale.shape == ()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_planes_start_as_a_greedy_expansion(bits):
    """With the sub-networks at the identity, NumPy can do it in three lines."""
    q = make({"bits": bits, "multibit": "planes", "unit": "weight"})
    w = jnp.asarray(normal(0, SHAPE))
    rest = np.asarray(w, np.float64)
    rest = rest / np.sqrt((rest**2).mean((0, 1, 2))) / RANGES[bits]
    total = np.zeros(SHAPE)
    for j in reversed(range(bits)):
        plane = np.where(rest >= 0, 1, -1) * 2**j / (2**bits - 1)
        total, rest = total + plane, rest - plane
    hard = dequantize(q.hard(q.init(jax.random.key(0), w), w))
    np.testing.assert_allclose(hard, total, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"unit": "conv", "width": 2},
        {"bits": 3, "scale": "mean_abs"},
        {"bits": 2, "multibit": "planes", "scale": "learned"},
        {"skip": False, "norm": "standard"},
    ],
    ids=named,
)
def test_soft_tends_to_hard(settings):
    sharp = [make(settings, sharpness=v) for v in (1.0, 1e5)]
    qparams, w = start(sharp[0])
    hard = dequantize(sharp[0].hard(qparams, w))
    far, near = (np.abs(q.soft(qparams, w, step=0) - hard).max() for q in sharp)
    assert near < 1e-5 < 1e-2 < far


def test_hard_does_not_depend_on_sharpness():
    outputs = []
    for sharpness in (0.1, 1.0, 500.0, exponential(0.1, 9.0, 5)):
        q = make({"bits": 2}, sharpness=sharpness)
        outputs.append(q.hard(*start(q)))
    for qt in outputs[1:]:
        chex.assert_trees_all_equal(qt, outputs[0])


def test_penalty_is_the_weighted_mean_of_one_minus_squared():
    q = make({"penalty": linear(0.0, 4.0, 8)})
    qparams, w = start(q)
    b = np.asarray(q.soft(qparams, w, step=0), np.float64)
    for step, weight in ((0, 0.0), (2, 1.0), (20, 4.0)):
        penalty = q.penalty(qparams, w, step=step)
        np.testing.assert_allclose(penalty, weight * (1 - b**2).mean(), rtol=1e-5)


def test_orthogonality_is_that_of_the_encoder():
    q = make({"orthogonality": 0.5, "width": 5})
    qparams, w = start(q)
    encoder = np.asarray(qparams[1][0][0]["w"], np.float64)
    assert encoder.shape == (6, 5)
    gram = encoder.T @ encoder
    expected = 0.5 * ((gram - np.eye(5)) ** 2).sum() / 5
    np.testing.assert_allclose(q.penalty(qparams, w, step=0), expected, rtol=1e-5)


# The sub-network and the normalization against NumPy

PHI = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.where(x > 0, x, 0),
}


def perceptron(layers, u, phi):
    for n, layer in enumerate(layers):
        u = np.einsum("i,ij->j", u, layer["w"]) + layer["b"]
        u = phi(u) if n < len(layers) - 1 else u
    return u


def by_weight(layers, w, phi):
    out = np.zeros_like(w)
    for index in np.ndindex(w.shape):
        out[index] = perceptron(layers, w[index][None], phi)[0]
    return out


def by_slice(layers, w, phi):
    out = np.zeros_like(w)
    for i, o in itertools.product(*map(range, w.shape[-2:])):
        numbers = perceptron(layers, w[..., i, o].ravel(), phi)
        out[..., i, o] = numbers.reshape(w.shape[:-2])
    return out


def by_filter(layers, w, phi):
    out = np.zeros_like(w)
    for o in range(w.shape[-1]):
        numbers = perceptron(layers, w[..., o].ravel(), phi)
        out[..., o] = numbers.reshape(w.shape[:-1])
    return out


def by_conv(layers, w, phi):
    """Each filter is an image (height, width, channels); zeros around it."""
    plane = w.reshape((1,) * (4 - w.ndim) + w.shape)
    out = np.zeros_like(plane)
    for o in range(w.shape[-1]):
        image = plane[..., o]
        for n, layer in enumerate(layers):
            taps = layer["w"].shape[0]
            after = np.zeros((*image.shape[:2], layer["w"].shape[-1]))
            for y, x, m in np.ndindex(after.shape):
                after[y, x, m] = layer["b"][m]
                for dy, dx in itertools.product(range(taps), repeat=2):
                    yy, xx = y + dy - taps // 2, x + dx - taps // 2
                    if 0 <= yy < image.shape[0] and 0 <= xx < image.shape[1]:
                        after[y, x, m] += image[yy, xx] @ layer["w"][dy, dx, :, m]
            image = phi(after) if n < len(layers) - 1 else after
        out[..., o] = image
    return out.reshape(w.shape)


REFERENCES = {
    "weight": by_weight,
    "slice": by_slice,
    "filter": by_filter,
    "conv": by_conv,
}


@pytest.mark.parametrize(
    ("unit", "phi", "skip", "depth", "window", "shape"),
    [
        ("weight", "tanh", True, 2, 1, SHAPE),
        ("slice", "tanh", True, 1, 1, SHAPE),
        ("slice", "silu", False, 2, 1, SHAPE),
        ("slice", "relu", True, 1, 1, (3, 2)),
        ("slice", "tanh", False, 1, 1, (1, 1, 3, 2)),
        ("filter", "linear", True, 1, 1, SHAPE),
        ("filter", "tanh", False, 1, 1, (3, 2)),
        ("conv", "tanh", True, 1, 1, SHAPE),
        ("conv", "tanh", False, 2, 3, SHAPE),
        ("conv", "relu", True, 1, 3, (3, 2)),
    ],
)
def test_subnet_against_numpy(unit, phi, skip, depth, window, shape):
    net = subnet(
        unit=unit, width=3, depth=depth, nonlinearity=phi, skip=skip, window=window
    )
    layers, w = start(net, shape)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), layers)
    alone = unit == "slice" and w[..., 0, 0].size == 1  # the filter is the unit then
    reference = REFERENCES["filter" if alone else unit]
    expected = reference(double, np.asarray(w, np.float64), PHI[phi])
    expected = expected + np.asarray(w) if skip else expected
    np.testing.assert_allclose(net.apply(layers, w), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("unit", ["weight", "slice", "filter", "conv"])
def test_subnet_parameters(unit):
    net = subnet(unit=unit, width=3, depth=2, window=3)
    sizes = {"weight": 1, "slice": 6, "filter": 12}
    layers = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(SHAPE))
    got = [layer["w"].shape for layer in layers]
    if unit == "conv":
        assert got == [(3, 3, 2, 6), (3, 3, 6, 6), (3, 3, 6, 2)]
    else:
        assert got == [(sizes[unit], 3), (3, 3), (3, sizes[unit])]
    assert [layer["b"].shape for layer in layers] == [s[-1:] for s in got]


@pytest.mark.parametrize("divisor", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["rms", "standard", "none"])
def test_normalization_against_numpy(kind, divisor):
    w = normal(0, (3, 2, 2, 4)) + 0.3
    w[..., 1] = 0.0
    x = w.astype(np.float64)
    expected = np.zeros_like(x)
    for c in range(4):
        v = x[..., c] - (x[..., c].mean() if kind == "standard" else 0)
        size = np.sqrt((v**2).mean()) * divisor if kind != "none" else 1.0
        expected[..., c] = v / size if size else 0
    got = normalize(kind, divisor=divisor).apply((), jnp.asarray(w))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"bits": 0}, "bits=0"),
        ({"bits": 5}, "bits=5"),
        ({"multibit": "x"}, "multibit='x'"),
        ({"scale": "x"}, "scale='x'"),
        ({"norm": "x"}, "norm='x'"),
        ({"unit": "x"}, "unit='x'"),
        ({"nonlinearity": "x"}, "nonlinearity='x'"),
        ({"width": 0}, "width=0"),
        ({"depth": 0}, "depth=0"),
        ({"unit": "conv", "width": 17}, "width=17"),
        ({"unit": "conv", "window": 2, "width": 1}, "window=2"),
    ],
)
def test_values_out_of_range_are_errors(options, name):
    with pytest.raises(ValueError, match=name) as error:
        quantnet(**options)
    assert "\n" not in str(error.value)


def test_scale_is_the_mean_size_but_for_the_training_program():
    """Its networks have BatchNorm, which takes the place of a scale."""
    w = jnp.asarray(normal(0, SHAPE))
    q = quantnet(width=3)
    by_default = q.hard(q.init(jax.random.key(0), w), w)
    mean = np.abs(w).mean((0, 1, 2), keepdims=True)
    np.testing.assert_allclose(by_default.scale, mean, rtol=1e-6)
    assert quantizers.options("quantnet")["scale"] == "none"


def test_vectors_are_errors():
    with pytest.raises(ValueError, match=r"rank 2 or more, got shape \(3,\)"):
        quantnet().init(jax.random.key(0), jnp.ones(3))
