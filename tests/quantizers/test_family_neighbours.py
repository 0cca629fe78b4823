"""Soft rounding, RQ, CPQ, DropBits, AUSN, Direct Quantization, BiTAT by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import KEY, SHAPE, close, each, results, sign, weights
from util import normal

from quantnet_jax.core import superposed
from quantnet_jax.core.qtensor import dequantize
from quantnet_jax.core.quantizer import PerTensor
from quantnet_jax.core.schedules import linear, piecewise
from quantnet_jax.quantizers import create
from quantnet_jax.quantizers.multibit import relaxed

pytestmark = pytest.mark.optimized


def one(**values):
    return PerTensor({k: jnp.asarray(x, jnp.float32) for k, x in values.items()})


# QGait


def soft_round(x, k):
    f = x - np.floor(x) - 0.5
    return np.floor(x) + 0.5 + np.tanh(k * f) / (2 * np.tanh(k / 2))


@pytest.mark.parametrize("k", [0.0, 0.7, 6.0])
def test_soft_round(k):
    """The slope is that of the soft round by central differences, in float64."""
    w, g, s, low, high = weights(), normal(1, SHAPE), 0.23, -4, 3
    slope = lambda x: 1.0
    if k:
        slope = lambda x: (soft_round(x + 1e-6, k) - soft_round(x - 1e-6, k)) / 2e-6
    inside = lambda x: low <= x / np.float32(s) <= high
    clip = lambda x: min(max(np.floor(x / np.float32(s) + 0.5), low), high)
    schedule = piecewise(k, [(5, 60.0)])
    q, p = create("soft_round", bits=3, k=schedule), PerTensor(jnp.float32(s))
    soft, dw, dp = results(q, p, w, g)
    close(soft, each(lambda x: s * clip(x), w))
    close(dw, each(lambda x, g: g * slope(x / s) * inside(x), w, g))
    by_s = lambda x: clip(x) - x / s * slope(x / s) * inside(x)
    total = np.sum(each(lambda x, g: g * by_s(x), w, g)) / np.sqrt(w.size * high)
    close(dp.value, total)
    later = jax.grad(lambda w: jnp.sum(q.soft(p, w, step=5)))(jnp.asarray(w))
    assert not np.allclose(later, dw) and np.isfinite(later).all()


# RQ, CPQ, DropBits

A, B, S = 0.4, 0.0613, 0.11
GRID = {"width": np.log(A), "offset": B, "noise": np.log(S)}


def logistic(x):
    return 1 / (1 + np.exp(-x))


def odds_by_hand(w, a=A, b=B, s=S, bits=2):
    """(..., L) in float64, and the grid."""
    g = a * (np.arange(2**bits) - 2 ** (bits - 1)) + b
    x = np.clip(w, g[0] - a / 2, g[-1] + a / 2)[..., None]
    mass = logistic((g + a / 2 - x) / s) - logistic((g - a / 2 - x) / s)
    return mass / mass.sum(-1, keepdims=True), g


def differences(fn, x, i=1e-5):
    return (fn(x + i) - fn(x - i)) / (2 * i)


def test_of_far_points_the_likelier_one_is_known():
    w, s = np.linspace(-0.7, 0.4, 12, dtype=np.float32), 0.03
    grid = relaxed.Grid(jnp.float32(A) * jnp.arange(-2.0, 2.0) + B, A, s)
    wanted, points = odds_by_hand(w.astype(np.float64), s=s)
    np.testing.assert_allclose(grid.points, points, rtol=1e-6)
    found, seen = np.asarray(relaxed.odds(w, grid)), wanted > 1e-12
    assert seen.sum() > 30 and (wanted < 1e-8).any()
    np.testing.assert_allclose(found[seen], wanted[seen], rtol=1e-3)


def test_rq_without_noise_is_the_mean_of_its_grid():
    w, g = weights().astype(np.float64), normal(1, SHAPE).astype(np.float64)

    def mean(w, a=A, b=B, s=S):
        pi, grid = odds_by_hand(w, a, b, s)
        return pi @ grid

    soft, dw, dp = results(create("rq", sharpness=1.0), one(**GRID), w, g)
    close(soft, mean(w))
    close(dw, g * differences(mean, w))
    for name, by_hand in {
        "width": lambda t: mean(w, a=A * np.exp(t)),
        "offset": lambda t: mean(w, b=B + t),
        "noise": lambda t: mean(w, s=S * np.exp(t)),
    }.items():
        total = np.sum(g * differences(by_hand, 0.0))
        np.testing.assert_allclose(dp.value[name], total, rtol=1e-3)


def test_rq_draws_points_as_often_as_they_are_likely():
    w = jnp.asarray([[-0.3, 0.02, 0.27, 0.44]])
    q = create("rq", sharpness=1.0, straight=True)
    draw = jax.jit(jax.vmap(lambda key: q.soft(one(**GRID), w, step=0, key=key)[0]))
    values = np.asarray(draw(jax.random.split(KEY, 4000)))
    pi, grid = odds_by_hand(np.asarray(w[0], np.float64))
    for c in range(4):
        often = [np.mean(np.isclose(values[:, c], x)) for x in grid]
        np.testing.assert_allclose(often, pi[c], atol=0.03)
    late = create("rq", sharpness=1e4, straight=True)
    nearest = grid[np.abs(np.asarray(w)[..., None] - grid).argmin(-1)]
    close(late.soft(one(**GRID), w, step=0, key=KEY), nearest)


def test_cpq_moves_weights_by_the_chosen_probability_alone():
    w, g = weights().astype(np.float64), normal(1, SHAPE).astype(np.float64)
    pi, grid = odds_by_hand(w)
    i = np.abs(w[..., None] - grid).argmin(-1)
    pick = lambda pi: np.take_along_axis(pi, i[..., None], -1)[..., 0]
    soft, dw, dp = results(create("cpq"), one(**GRID), w, g)
    close(soft, grid[i])
    close(dw, g * grid[i] * differences(lambda w: pick(odds_by_hand(w)[0]), w))
    of_noise = lambda t: pick(odds_by_hand(w, s=S * np.exp(t))[0])
    total = np.sum(g * grid[i] * differences(of_noise, 0.0))
    np.testing.assert_allclose(dp.value["noise"], total, rtol=1e-3)
    of_offset = lambda t: pick(odds_by_hand(w, b=B + t)[0])
    both = np.sum(g * grid[i] * differences(of_offset, 0.0)) + np.sum(g)
    np.testing.assert_allclose(dp.value["offset"], both, rtol=1e-3)
    # On a grid point nothing pulls; between two the probability falls fastest.
    at = lambda x: np.abs(
        jax.grad(lambda w: create("cpq").soft(one(**GRID), w, step=0))(jnp.float32(x))
    )
    assert at(B) < 0.02 * at(A * 0.45 + B)


@pytest.mark.parametrize(("kept", "step"), [([1, 1], 1), ([-1, 1], 4), ([1, -1], 2)])
def test_dropped_bits_leave_a_coarser_grid(kept, step):
    """Of 4 bits with both masks, 3 with the first, 2 without it, whatever the other."""
    p, w = one(**GRID, kept=kept), weights()
    q = create("dropbits", bits=4, sharpness=1e4)
    grid = A * np.arange(-8, 8, step) + B
    nearest = grid[np.abs(w[..., None].astype(np.float64) - grid).argmin(-1)]
    qt = q.hard(p, jnp.asarray(w))
    close(dequantize(qt), nearest)
    assert len(np.unique(qt.levels)) == 16 // step
    close(q.soft(p, jnp.asarray(w), step=0, key=KEY), nearest)


def test_masks_drop_bits_as_often_as_the_penalty_says():
    """P(m > 0), by many draws; the penalty is its sum, and pushes it down."""
    kept = np.asarray([0.4, -0.7])
    q = create("dropbits", bits=4, sharpness=1.0, weight=2.0)
    w = jnp.asarray(np.linspace(-3, 3, 40)[:, None], jnp.float32)
    p = one(**GRID, kept=kept)
    draw = jax.jit(jax.vmap(lambda key: q.soft(p, w, step=0, key=key)[:, 0]))
    values = np.round((np.asarray(draw(jax.random.split(KEY, 3000))) - B) / A)
    odd, even = (values % 2).any(1), (values % 4 == 2).any(1)
    expected = logistic(kept - 2 / 3 * np.log(0.1 / 1.1))
    assert np.mean(even | odd) == pytest.approx(expected[0], abs=0.06)
    assert np.mean(odd) <= expected[0] * expected[1] + 0.06
    close(q.penalty(p, w, step=0), 2 * expected.sum())
    push = jax.grad(lambda p: q.penalty(p, w, step=0))(p).value["kept"]
    assert (np.asarray(push) > 0).all()


# AUSN, Direct Quantization


def test_ausn():
    w, g, r, bits = weights(), normal(1, SHAPE), 0.31, 4
    number = 2
    layout = superposed.layouts(bits)[number]
    levels = superposed.levels(layout).astype(np.float64)
    top = levels.max()
    near = lambda x: levels[np.abs(x - levels).argmin()]
    p = one(layout=number, scale=r)
    soft, dw, dp = results(create("ausn", bits=bits), p, w, g)
    close(np.abs(w - soft), each(lambda x: abs(x - r * near(x / r)), w))
    inside = each(lambda x: abs(x) <= r * top, w)
    close(dw, g * inside)
    x = w.astype(np.float64) / r
    slope = np.where(inside > 0, np.asarray(soft) / r - x, np.sign(x) * top)
    close(dp.value["scale"], np.sum(g * slope) / np.sqrt(w.size * top))
    assert dp.value["layout"] == 0
    found = create("ausn", bits=bits).init(KEY, jnp.asarray(w)).value
    wanted = superposed.search(jnp.asarray(w), bits)
    assert int(found["layout"]) == int(wanted.index)
    assert found["scale"] == wanted.scale


def test_direct():
    """The gradient of a level is the sum over its weights; weights go to levels."""
    w, g = weights(), normal(1, SHAPE)
    table = np.sort(normal(2, (SHAPE[-1], 4)), axis=-1)[:, ::-1].copy()
    q, p = create("direct", residual=linear(1.0, 0.0, 10)), PerTensor(table)
    soft, dw, dp = results(q, p, w, g)
    close(dw, g)
    for c in range(SHAPE[-1]):
        i = np.abs(w[..., c, None].astype(np.float64) - table[c]).argmin(-1)
        close(soft[..., c], table[c][i])
        close(dp.value[c], [np.sum(g[..., c][i == k]) for k in range(4)])
    for step, part in ((0, 1.0), (4, 0.6), (10, 0.0)):
        same, moved = q.project(p, jnp.asarray(w), step=step)
        close(moved, soft + part * (w - soft))
        np.testing.assert_array_equal(same.value, table)
        np.testing.assert_array_equal(
            q.hard(p, moved).codes, q.hard(p, jnp.asarray(w)).codes
        )


# BiTAT


def bitat_by_hand(w, h, damping=0.1):
    """One channel, with the inverse of what is left computed again for every weight."""
    share, v = np.linalg.eigh(h)
    share = share + damping * share.mean()
    h = (v * share) @ v.T
    a, x, signs = np.abs(w).mean(), w.copy(), np.zeros(w.size)
    left = list(np.argsort(-np.diag(h), kind="stable"))
    while left:
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        j = left[0]
        signs[j] = sign(x[j])
        error = (x[j] - a * signs[j]) / inverse[0, 0]
        for k, row in zip(left[1:], inverse[0, 1:], strict=True):
            x[k] -= error * row
        left = left[1:]
    return a * signs


@pytest.mark.parametrize("shape", [(1, 1, 6, 5), (3, 3, 1, 5)])
def test_bitat_feeds_errors_back(shape):
    w, n = normal(0, shape), int(np.prod(shape[:-1]))
    q = create("bitat")
    start = q.init(KEY, jnp.asarray(w))
    qt = jax.jit(q.hard)(start, jnp.asarray(w))
    np.testing.assert_array_equal(qt.codes, w >= 0)  # unit correlation: plain signs
    copies = start.value["correlation"].shape[0]
    assert copies == (5 if shape[-2] == 1 else 1)
    x = np.random.default_rng(1).normal(size=(copies, 40, n)) @ np.diag(
        np.linspace(0.3, 2.0, n)
    )
    x = x + x.mean(-1, keepdims=True) * 3
    h = np.einsum("cmi,cmj->cij", x, x) / 40
    got = np.asarray(dequantize(jax.jit(q.hard)(one(correlation=h), jnp.asarray(w))))
    flat, plain = w.reshape(n, 5).astype(np.float64), 0.0
    fed = 0.0
    for c in range(5):
        of = h[c % copies]
        expected = bitat_by_hand(flat[:, c], of)
        close(got.reshape(n, 5)[:, c], expected)
        naive = np.abs(flat[:, c]).mean() * np.where(flat[:, c] >= 0, 1, -1)
        for_error = lambda q, c=c, of=of: (flat[:, c] - q) @ of @ (flat[:, c] - q)
        fed, plain = fed + for_error(expected), plain + for_error(naive)
    assert fed < 0.8 * plain
    g = normal(2, shape)
    _, dw, dp = results(q, one(correlation=h), w, g)
    close(dw, g)
    assert not np.any(dp.value["correlation"])
    half = create("bitat", amount=0.5).soft(start, jnp.asarray(w), step=0)
    close(half, (w + np.asarray(dequantize(q.hard(start, jnp.asarray(w))))) / 2)


def test_parameters_of_the_grid_start_where_they_should():
    w = jnp.asarray(weights())
    rms = np.sqrt(np.mean(np.square(w, dtype=np.float64)))
    p = create("dropbits").init(KEY, w).value
    close(np.exp(p["width"]), 3 * rms / 8)
    close(np.exp(p["noise"]), rms / 8)
    assert p["kept"].tolist() == [2.0, 2.0] and p["offset"] == 0
