"""Facts about the weight quantizers that hold at any size, checked at a small one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import normal, with_zeros

from quantnet_jax.core.qtensor import dequantize
from quantnet_jax.core.quantizer import PerTensor
from quantnet_jax.core.schedules import linear
from quantnet_jax.core.surrogates import ede_slope
from quantnet_jax.quantizers import create
from quantnet_jax.quantizers.binary.standardized import laplace_quantile
from quantnet_jax.quantizers.multibit.quantization_networks import boundaries
from quantnet_jax.quantizers.sign import staircase

pytestmark = pytest.mark.optimized

KEY = jax.random.key(0)


def deployed(q, qparams, w):
    """The values of `hard`, in float64."""
    return np.asarray(dequantize(q.hard(qparams, jnp.asarray(w))), np.float64)


def error(w, value):
    return float(np.sum((w.astype(np.float64) - value) ** 2))


# Sign and scale


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_scale_of_binary_weights_is_the_best_one(per):
    """No signs and no factor come nearer to w: all 2^8 signs, many factors."""
    w = normal(0, (8, 2))
    value = deployed(create("binary_ste", per=per), (), w)
    groups = [(w[:, c], value[:, c]) for c in range(2)]
    if per == "tensor":
        groups = [(w[:4].ravel(), value[:4].ravel())]
        w4 = np.ascontiguousarray(w[:4])
        groups = [(w4.ravel(), deployed(create("binary_ste", per=per), (), w4).ravel())]
    for x, found in groups:
        alpha, least = np.abs(found[0]), error(x, found)
        for signs in itertools.product((-1.0, 1.0), repeat=x.size):
            for factor in alpha * np.linspace(0.2, 1.8, 17):
                assert least <= error(x, factor * np.asarray(signs)) + 1e-6
        np.testing.assert_allclose(least, np.sum(x**2) - x.size * alpha**2, rtol=1e-4)


def test_one_bit_staircase_is_tanh():
    """So is Quantization Networks' sum of one sigmoid, at twice the temperature."""
    x = jnp.linspace(-3.0, 3.0, 25)
    expected = np.tanh(1.7 * np.asarray(x, np.float64))
    close = lambda got: np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    close(staircase(sharpness=1.7).soft((), x, step=0))
    close(create("tanh_sign", sharpness=1.7, norm="none").soft(((), ()), x, step=0))
    one = jnp.ones(())
    qparams = PerTensor({"a": one, "b": one, "c": jnp.zeros(1)})
    q = create("quantization_networks", bits=1, sharpness=2 * 1.7)
    close(q.soft(qparams, x, step=0))


def test_binaryconnect_keeps_weights_in_range_and_codes():
    q, w = create("binaryconnect"), with_zeros(0, (5, 6)) * 2
    w.flat[3], w.flat[4] = -1e-30, -0.0
    _, moved = q.project((), jnp.asarray(w), step=0)
    np.testing.assert_array_equal(moved, [[min(max(x, -1), 1) for x in y] for y in w])
    codes = lambda w: q.hard((), jnp.asarray(w)).codes
    np.testing.assert_array_equal(codes(moved), codes(w))


# TWN


def test_threshold_of_twn_is_close_to_the_best():
    """Over all cuts of normal numbers; the scale is the best one for what is kept."""
    w = normal(0, (4000,))
    value = deployed(create("twn"), (), w)
    size = np.sort(np.abs(w.astype(np.float64)))[::-1]
    gain = np.cumsum(size) ** 2 / np.arange(1, size.size + 1)
    best = np.sum(size**2) - gain.max()
    assert best <= error(w, value) * (1 + 1e-6) < 1.01 * best
    kept = value != 0
    alpha = np.sum(w * np.sign(value)) / kept.sum()
    np.testing.assert_allclose(np.abs(value[kept]), alpha, rtol=1e-5)
    assert set(np.sign(value)) == {-1, 0, 1}


# LQ-Nets


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_alternation_of_lq_nets_never_raises_the_error(bits):
    """Each round goes to the least-squares basis of the codes at hand, till none moves.

    Equal weights (the last channel) do not tell a basis of two numbers from its
    neighbours: B^T B is singular.
    """
    w = normal(0, (60, 4)) + np.asarray([0.0, 0.7, 3.0, 0.0], np.float32)
    w[:, 3] = 0.3
    sharp, calm = (create("lq_nets", bits=bits, momentum=m) for m in (0.0, 0.9))

    @jax.jit
    def run(qparams, w):
        projected = [q.project(qparams, w, step=0) for q in (sharp, calm)]
        return projected, dequantize(sharp.hard(qparams, w))

    signs = np.asarray(list(itertools.product((-1, 1), repeat=bits)))
    qparams, errors, fitted = sharp.init(KEY, jnp.asarray(w)), [], 0
    for _ in range(30):
        ((new, same), (moved, _)), value = run(qparams, jnp.asarray(w))
        errors.append(np.sum((w - np.asarray(value, np.float64)) ** 2, axis=0))
        np.testing.assert_array_equal(same, w)
        mean = 0.9 * qparams.value + 0.1 * new.value
        np.testing.assert_allclose(moved.value, mean, rtol=1e-5, atol=1e-6)
        for c in range(w.shape[1]):
            levels = signs @ np.asarray(qparams.value[c], np.float64)
            b = signs[np.abs(levels - np.asarray(value)[:, [c]]).argmin(-1)]
            if np.linalg.matrix_rank(b) == bits:
                best, *_ = np.linalg.lstsq(b, w[:, c], rcond=None)
                np.testing.assert_allclose(new.value[c], best, rtol=1e-3, atol=1e-3)
                fitted += 1
        last, qparams = qparams, new
    assert fitted > 60
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-5) + 1e-6).all()
    assert (errors[-1] < errors[0])[[0, 1, 3]].all() and errors[-1][3] < 1e-4
    np.testing.assert_allclose(qparams.value, last.value, atol=1e-4)


# ProxQuant


@pytest.mark.parametrize("strength", [0.0, 0.01, 0.3, 1.0, 2.5])
def test_proxquant_moves_to_the_proximal_point(strength):
    """argmin over a grid of (u - w)^2 / 2 + l min(|u - 1|, |u + 1|); ties left out."""
    w = np.concatenate([normal(0, (30,)), [1.0, -1.0, 1e-3, -1e-3]]).astype(np.float32)
    u = np.linspace(-4, 4, 80001)
    pull = strength * np.minimum(np.abs(u - 1), np.abs(u + 1))
    expected = [u[np.argmin((u - x) ** 2 / 2 + pull)] for x in w.astype(np.float64)]
    q = create("proxquant", strength=strength)
    _, moved = q.project((), jnp.asarray(w), step=0)
    np.testing.assert_allclose(moved, expected, atol=1.1e-4)


@pytest.mark.parametrize("strength", [0.0, 1e-3, 2.5])
def test_proxquant_never_changes_what_is_deployed(strength):
    """Not even of weights so small that 1 + |w| is 1."""
    w = np.concatenate([normal(0, (30,)), [0.0, -1e-3, -1e-8, -1e-20, 1e-20, 7.0]])
    w = jnp.asarray(w, jnp.float32)
    q = create("proxquant", strength=strength)
    _, moved = q.project((), w, step=0)
    np.testing.assert_array_equal(q.hard((), moved).codes, q.hard((), w).codes)
    if strength == 0.0:
        np.testing.assert_array_equal(moved, w)
    if strength == 2.5:
        near = np.abs(np.abs(w) - 1) < 2.5
        np.testing.assert_array_equal(moved[near], np.where(w < 0, -1, 1)[near])


# EDE, IR-Net, AdaBin, ReCU


def test_slope_of_ede_goes_from_flat_to_sharp():
    """k t = max(1, t); the area under it is 2 from t = 1 on, that of a sign."""
    x = np.linspace(-60, 60, 240001)
    area = lambda y: float(np.sum(y) * (x[1] - x[0]))
    for t in (0.1, 1.0, 3.0, 10.0):
        slope = np.asarray(ede_slope(jnp.asarray(x, jnp.float32), t), np.float64)
        assert slope.max() == pytest.approx(max(1.0, t), rel=1e-6)
        assert area(slope) == pytest.approx(2.0 / min(t, 1.0), rel=1e-4)
        middle = area(slope[np.abs(x) < 0.3]) / area(slope)
        assert middle == pytest.approx(np.tanh(0.3 * t), rel=1e-3)
    flat = ede_slope(jnp.linspace(-3.0, 3.0, 7), 1e-3)
    np.testing.assert_allclose(flat, 1.0, atol=1e-4)


def test_irnet_shifts_by_the_nearest_power_of_two():
    w = normal(0, (6, 5, 4)) * np.asarray([1e-3, 1, 50, 1], np.float32)
    w[..., 3] = np.exp(3 * w[..., 3])  # skewed: mean |x| is far below 0.8
    q = create("irnet")
    qt = q.hard((), jnp.asarray(w))
    scale = np.asarray(qt.scale).ravel()
    for c in range(4):
        x = w[..., c].astype(np.float64)
        x = (x - x.mean()) / x.std()
        distance = {n: abs(n - np.log2(np.abs(x).mean())) for n in range(-9, 5)}
        assert scale[c] == 2.0 ** min(distance, key=distance.__getitem__)
        np.testing.assert_array_equal(qt.codes[..., c], x >= 0)
    assert len(set(scale)) == 2
    other = q.hard((), jnp.asarray(8 * w))  # standardized: size does not matter
    np.testing.assert_array_equal(other.codes, qt.codes)
    np.testing.assert_array_equal(other.scale, qt.scale)


def test_levels_of_adabin_keep_mean_and_deviation():
    """Of a symmetric channel; the nearest pair around the mean is another one."""
    half = normal(0, (50, 2)).astype(np.float64)
    centre = np.asarray([0.4, -2.0])
    w = np.concatenate([centre + half, centre - half]).astype(np.float32)
    value = deployed(create("adabin"), (), w)
    np.testing.assert_allclose(value.mean(0), w.mean(0), rtol=1e-4)
    np.testing.assert_allclose(value.std(0), w.std(0), rtol=1e-4)
    for c in range(2):
        assert len(set(value[:, c])) == 2
        side = np.where(w[:, c] >= w[:, c].mean(), 1, -1)
        nearest = w[:, c].mean() + side * np.abs(w[:, c] - w[:, c].mean()).mean()
        assert error(w[:, c], nearest) < error(w[:, c], value[:, c])


def test_laplace_quantile():
    """P(X <= Q) = 1 - exp(-Q / b) / 2 = tau, b = E|X|; and of many samples."""
    sample = np.random.default_rng(0).laplace(scale=0.7, size=400_000)
    mean = np.abs(sample).mean()
    for tau in (0.5, 0.85, 0.99):
        q = float(laplace_quantile(jnp.asarray(mean, jnp.float32), tau))
        assert 1 - np.exp(-q / mean) / 2 == pytest.approx(tau, rel=1e-5)
        assert q == pytest.approx(np.quantile(sample, tau), rel=0.02, abs=0.005)


def test_recu_stops_at_its_quantile():
    """The gradient of weight j alone is zero just where |x_j| > Q; tau by the step."""
    w = normal(0, (40, 1))
    x = w.astype(np.float64)
    x = np.sqrt(8) * np.abs(x - x.mean()).ravel() / x.std()
    q = create("recu", progress=linear(0.0, 1.0, 10))
    qparams = (PerTensor(jnp.zeros((1, 1))), ())

    @jax.jit
    def jacobian(step):
        soft = lambda w: q.soft(qparams, w, step=step)[:, 0]
        return jax.jacrev(soft)(jnp.asarray(w))[..., 0]

    taus = {0: 0.85, 10: 0.99, 99: 0.99}
    taus[5] = 0.85 + 0.14 * (np.exp(0.5) - 1) / (np.e - 1)
    for step, tau in taus.items():
        edge = -x.mean() * np.log(2 - 2 * tau)
        moved = np.abs(jacobian(jnp.asarray(step))).sum(1) > 0
        np.testing.assert_array_equal(moved, x <= edge)
    assert moved.any()


# DSQ, Quantization Networks


def dsq_params(alpha, low, high):
    p = {"alpha": np.log(alpha / (0.5 - alpha)), "l": low, "u": high}
    return PerTensor({k: jnp.asarray(x, jnp.float32) for k, x in p.items()})


def test_steps_of_dsq_meet_at_the_borders():
    """phi = +-1 there, so that soft is a level, from both sides, for every alpha."""
    n, low, high = 3, -0.6, 0.9
    levels = np.linspace(low, high, n + 1)
    beside = np.asarray([levels - 1e-5, levels, levels + 1e-5], np.float32)
    soft = jax.jit(create("dsq_soft", bits=2, sharpness=1.0).soft)
    for alpha in (0.05, 0.2, 0.45):
        k = np.log(2 / alpha - 1)  # times the width
        assert 1 / (1 - alpha) == pytest.approx(1 / np.tanh(k / 2), rel=1e-12)
        got = soft(dsq_params(alpha, low, high), jnp.asarray(beside), step=0)
        np.testing.assert_allclose(got, np.broadcast_to(levels, (3, 4)), atol=1e-4)


def test_dsq_becomes_hard():
    w = jnp.asarray(normal(0, (200,)))
    q = create("dsq_soft", bits=2, sharpness=linear(0.0, 1000.0, 1000))
    qparams = dsq_params(0.2, -1.5, 1.5)
    soft = jax.jit(lambda step: q.soft(qparams, w, step=step))
    hard = deployed(q, qparams, w)
    far = [np.abs(soft(jnp.asarray(s)) - hard).mean() for s in (1, 4, 20, 1000)]
    assert far[0] > far[1] > far[2] > far[3] and far[3] < 2e-3
    np.testing.assert_allclose(np.unique(hard), [-1.5, -0.5, 0.5, 1.5], rtol=1e-6)
    same = deployed(create("dsq", bits=2), qparams, w)
    np.testing.assert_array_equal(same, hard)


@pytest.mark.parametrize("count", [3])
def test_boundaries_are_those_of_lloyds_rounds(count):
    x = normal(0, (150,))
    centres = np.quantile(x.astype(np.float64), (np.arange(count) + 0.5) / count)
    for _ in range(20):
        nearest = np.abs(x[:, None] - centres).argmin(1)
        centres = np.asarray([x[nearest == i].mean() for i in range(count)])
    got = jax.jit(boundaries, static_argnums=1)(jnp.asarray(x), count)
    np.testing.assert_allclose(got, (centres[1:] + centres[:-1]) / 2, rtol=1e-4)


# Binarizing by classification, MetaQuant


def test_classes_start_as_signs_of_centred_weights():
    w = normal(0, (5, 5, 4)) + np.asarray([0.0, 1.0, -3.0, 0.1], np.float32)
    q = create("binarizing_by_classification", width=20)
    qt = jax.jit(lambda w: q.hard(q.init(KEY, w), w))(jnp.asarray(w))
    centred = w.astype(np.float64) - w.mean((0, 1), dtype=np.float64)
    np.testing.assert_array_equal(qt.codes, centred >= 0)
    np.testing.assert_allclose(qt.scale.ravel(), np.abs(w).mean((0, 1)), rtol=1e-5)


def test_metaquant_starts_as_a_straight_through():
    """FCGrad: the gradient unchanged; MultiFC: times the weight."""
    w, g = (jnp.asarray(normal(i, (4, 3))) for i in range(2))
    for network, expected in (("fcgrad", g), ("multifc", g * w)):
        q = create("metaquant", network=network, width=50)
        got = q.gradient(q.init(KEY, w), w, g, step=0)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
