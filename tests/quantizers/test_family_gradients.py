"""Values and gradients of the elementwise quantizers against NumPy, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import SHAPE, channels, close, each, results, sign, weights
from util import normal

from quantnet_jax.core import surrogates
from quantnet_jax.core.qtensor import dequantize
from quantnet_jax.core.quantizer import PerTensor
from quantnet_jax.quantizers import create

# Plain signs


def sign_swish_slope(x, beta):
    """d/dx of 2 s (1 + bx (1 - s)) - 1, s = sigmoid(bx), s' = b s (1 - s)."""
    s = 1 / (1 + np.exp(-beta * x))
    return 2 * beta * s * (1 - s) * (2 + beta * x * (1 - 2 * s))


SIGNS = {
    "clipped_ste": ({}, lambda x: 1.0 if -1 <= x <= 1 else 0.0),
    "approx_sign": ({}, lambda x: 2 - 2 * abs(x) if abs(x) < 1 else 0.0),
    "binaryconnect": ({}, lambda x: 1.0),
    "swish_sign": ({}, lambda x: sign_swish_slope(x, 5.0)),
    "swish_sign ": ({"beta": 1.7}, lambda x: sign_swish_slope(x, 1.7)),
}


@pytest.mark.parametrize("name", SIGNS)
def test_plain_signs(name):
    options, slope = SIGNS[name]
    w, g = weights(), normal(1, SHAPE)
    assert {-1.0, 0.0, 1.0} <= set(w.flat) and w.min() < -1 and w.max() > 1
    soft, dw, dp = results(create(name.strip(), **options), (), w, g)
    np.testing.assert_array_equal(soft, each(sign, w))
    close(dw, g * each(slope, w))
    assert dp == ()


def test_slope_of_swish_sign_changes_its_sign():
    """At |b w| = 2.3994, where y tanh(y / 2) = 2; it is b at 0."""
    x = jnp.asarray([0.0, 2.39 / 5, 2.41 / 5, -2.41 / 5, 1e6, -1e30])
    slope = jax.jit(surrogates.swish_slope)(x)
    assert float(slope[0]) == 5.0
    assert slope[1] > 0 > slope[2] and slope[3] < 0
    assert np.abs(slope[4:]).max() < 1e-30


PRIMITIVES = {
    "identity": lambda x: x,
    "clip": lambda x: np.clip(x, -1, 1),
    "approx": lambda x: np.where(np.abs(x) < 1, 2 * x - x * np.abs(x), np.sign(x)),
    "swish": lambda x: 2 * (s := 1 / (1 + np.exp(-5 * x))) * (1 + 5 * x * (1 - s)) - 1,
    "ede 0.1": lambda x: 10 * np.tanh(0.1 * x),
    "ede 4.0": lambda x: np.tanh(4 * x),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_slopes_are_those_of_their_functions(name):
    """Central differences in float64, the kinks at -1 and 1 left out."""
    x = np.linspace(-2.013, 2.017, 41)
    kind, *t = name.split()
    slope = surrogates.SLOPES.get(kind, surrogates.ede_slope)
    rise = PRIMITIVES[name](x + 1e-6) - PRIMITIVES[name](x - 1e-6)
    with jax.enable_x64(True):
        got = slope(jnp.asarray(x), *map(float, t))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, rise / 2e-6, rtol=1e-6, atol=1e-8)


# Scaled signs


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_xnor(per):
    """sum_j g_j a b_j, a = mean |w|: a 1[|w| <= 1] g, and da/dw = b / n times sum(g b).

    Zero counts as positive in both places.
    """

    def by_hand(w, g):
        a, n = sum(abs(w)) / w.size, w.size
        b = np.asarray([sign(x) for x in w])
        through_a = sum(g * b) / n * b
        return a * b, a * g * (abs(w) <= 1) + through_a

    w, g = weights(), normal(1, SHAPE)
    if per == "channel":
        value, expected = channels(by_hand, w, g)
    else:
        pair = by_hand(w.ravel().astype(np.float64), g.ravel().astype(np.float64))
        value, expected = (x.reshape(SHAPE) for x in pair)
    soft, dw, _ = results(create("xnor", per=per), (), w, g)
    close(soft, value)
    close(dw, expected)


# DoReFa, LSQ, PACT, TWN


def test_dorefa_of_one_bit():
    w, g = weights(), normal(1, SHAPE)
    a = sum(abs(float(x)) for x in w.flat) / w.size
    soft, dw, _ = results(create("dorefa", bits=1), (), w, g)
    close(soft, a * each(sign, w))
    np.testing.assert_array_equal(dw, g)


@pytest.mark.parametrize("bits", [2, 3])
def test_dorefa(bits):
    """2 round(n v) / n - 1, v = t / (2 M) + 1/2, t = tanh(w), M = max |t| = |t_m|.

    d(2v - 1)_i/dw_j = (1 - t_j^2) / M, and for j = m less t_i sign(t_m) (1 - t_m^2) /
    M^2.
    """
    w, g = weights(), normal(1, SHAPE)
    n, x = 2**bits - 1, w.astype(np.float64)
    t = np.tanh(x)
    m = np.unravel_index(np.argmax(np.abs(t)), t.shape)
    largest = abs(t[m])
    level = lambda t: 2 * np.floor(n * (t / (2 * largest) + 0.5) + 0.5) / n - 1
    expected = g * (1 - t**2) / largest
    expected[m] -= np.sum(g * t) * np.sign(t[m]) * (1 - t[m] ** 2) / largest**2
    soft, dw, _ = results(create("dorefa", bits=bits), (), w, g)
    close(soft, each(level, t))
    close(dw, expected)
    assert len(np.unique(soft)) == len(np.unique(each(level, t).round(6)))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_lsq(bits):
    """Of s: round(w / s) - w / s inside, the bound outside, times 1 / sqrt(N Qp)."""
    low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    w, g, s = weights(), normal(1, SHAPE), (0.5 if bits < 4 else 1 / 8)

    def value(w):
        x = min(max(w / s, low), high)
        return s * (sign(x) if bits == 1 else np.floor(x + 0.5))

    inside = each(lambda w: low <= w / s <= high, w)
    slope = each(lambda w, q, i: (q - w) / s if i else q / s, w, each(value, w), inside)
    ds = (w.size * high) ** -0.5 * np.sum(g * slope)
    assert 0 < inside.sum() < w.size
    q = create("lsq", bits=bits)
    soft, dw, dp = results(q, PerTensor(jnp.asarray(s)), w, g)
    close(soft, each(value, w))
    close(dw, g * inside)
    close(dp.value, ds)


@pytest.mark.parametrize("bits", [1, 2])
def test_pact(bits):
    """Of a: sign(w) outside (1 bit: everywhere), divided by sqrt(N)."""
    w, g, a = weights(), normal(1, SHAPE), 0.75
    levels = np.linspace(-a, a, 2**bits)

    def value(w):
        distance = np.abs(w - levels)
        return levels[np.flatnonzero(distance <= distance.min() + 1e-12)[-1]]

    inside = each(lambda w: abs(w) <= a, w)
    slope = each(lambda w, i: 0.0 if i and bits > 1 else sign(w), w, inside)
    assert a in np.abs(w) and 0 < inside.sum() < w.size
    q = create("pact", bits=bits)
    soft, dw, dp = results(q, PerTensor(jnp.asarray(a)), w, g)
    close(soft, each(value, w))
    close(dw, g * inside)
    close(dp.value, np.sum(g * slope) * w.size**-0.5)


@pytest.mark.parametrize("threshold", [0.7, 0.2])
def test_twn(threshold):
    w, g = weights(), normal(1, SHAPE)
    sizes = [abs(float(x)) for x in w.flat]
    d = threshold * sum(sizes) / len(sizes)
    kept = [x for x in sizes if x > d]
    a = sum(kept) / len(kept)
    soft, dw, _ = results(create("twn", threshold=threshold), (), w, g)
    close(soft, each(lambda x: a * np.sign(x) if abs(x) > d else 0.0, w))
    np.testing.assert_array_equal(dw, g)
    assert 0 < len(kept) < w.size


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_bitnet(per):
    """Halves are rounded to even; a channel of zeros stays zero."""
    w, g = weights(), normal(1, SHAPE)
    w[..., 1] = 0.0
    size = np.abs(w.astype(np.float64))
    axes = tuple(range(w.ndim - 1)) if per == "channel" else None
    a = np.mean(size, axis=axes, keepdims=True)
    soft, dw, _ = results(create("bitnet", per=per), (), w, g)
    wanted = np.where(size > a / 2, np.sign(w), 0.0) * a
    close(soft, wanted)
    np.testing.assert_array_equal(dw, g)
    assert set(np.sign(wanted).flat) == {-1, 0, 1}


# LQ-Nets, ProxQuant


@pytest.mark.parametrize("bits", [1, 2])
def test_lq_nets(bits):
    """The nearest of all v . e, found by trying them; v gets no gradient."""
    w, g = weights(), normal(1, SHAPE)
    v = np.abs(normal(2, (SHAPE[-1], bits)))
    v[0] *= -1  # a basis of negative numbers spans the same levels

    def value(x, c):
        levels = [0.0]
        for part in v[int(c)].astype(np.float64):
            levels = [y + e * part for y in levels for e in (-1, 1)]
        best = min(abs(x - y) for y in levels)
        return max(y for y in levels if abs(x - y) <= best + 1e-9)

    q = create("lq_nets", bits=bits)
    soft, dw, dp = results(q, PerTensor(jnp.asarray(v)), w, g)
    close(soft, each(value, w, np.arange(SHAPE[-1])))
    np.testing.assert_array_equal(dw, g)
    assert dp.value.shape == v.shape and not dp.value.any()


def test_proxquant_leaves_the_forward_pass_alone():
    w, g = weights(), normal(1, SHAPE)
    soft, dw, _ = results(create("proxquant", strength=0.3), (), w, g)
    np.testing.assert_array_equal(soft, w)
    np.testing.assert_array_equal(dw, g)


# DSQ, Quantization Networks


def dsq_by_hand(w, bits, low, high, alpha, v, hard):
    """Value and slopes for w, l, u and alpha of one weight.

    y = l + D (i + (b + 1) / 2), b = phi, or its sign with slope 1; phi = tanh(K z) /
    tanh(K / 2), z = (w - m_i) / D, K = v log(2 / alpha - 1), D = (u - l) / n.
    """
    n = 2**bits - 1
    width = (high - low) / n
    if w < low:
        return low, 0.0, 1.0, 0.0, 0.0
    if w > high:
        return high, 0.0, 0.0, 1.0, 0.0
    i = min(int((w - low) // width), n - 1)
    z = (w - low) / width - i - 0.5
    k = v * np.log(2 / alpha - 1)
    t, edge = np.tanh(k * z), np.tanh(k / 2)
    phi = t / edge
    b = sign(phi) if hard else phi
    dphi_dz = k * (1 - t**2) / edge
    dphi_dk = z * (1 - t**2) / edge - t * (1 - edge**2) / 2 / edge**2
    dk_dalpha = -2 * v / (alpha * (2 - alpha))
    # z = n (w - l) / (u - l) - i - 1/2
    span = high - low
    dz_dw, dz_dl, dz_du = n / span, n * (w - high) / span**2, -n * (w - low) / span**2
    share = (i + (b + 1) / 2) / n  # dy/du at fixed phi, and 1 - dy/dl
    half = width / 2 * dphi_dz
    return (
        low + width * (i + (b + 1) / 2),
        half * dz_dw,
        1 - share + half * dz_dl,
        share + half * dz_du,
        width / 2 * dphi_dk * dk_dalpha,
    )


@pytest.mark.parametrize(
    ("name", "bits", "low"),
    [
        ("dsq", 1, -0.5),
        ("dsq", 2, -0.5),
        ("dsq_soft", 1, -0.5),
        ("dsq_soft", 3, -0.75),
    ],
)
def test_dsq(name, bits, low):
    """With weights on the edges, on the borders of intervals and on their centres."""
    w, g, high, alpha = weights(), normal(1, SHAPE), 1.0, 0.3
    assert {low, high, 0.25} <= set(w.flat) and w.min() < low and w.max() > high
    options = {"sharpness": 1.7} if name == "dsq_soft" else {}
    v, hard = options.get("sharpness", 1.0), name == "dsq"
    rows = [dsq_by_hand(float(x), bits, low, high, alpha, v, hard) for x in w.flat]
    value, dw, dl, du, dalpha = (x.reshape(SHAPE) for x in np.asarray(rows).T)
    # alpha = sigmoid(p) / 2, dalpha/dp = alpha (1 - 2 alpha)
    p = {"alpha": np.log(alpha / (0.5 - alpha)), "l": low, "u": high}
    qparams = PerTensor({k: jnp.asarray(x, jnp.float32) for k, x in p.items()})
    soft, got, dp = results(create(name, bits=bits, **options), qparams, w, g)
    close(soft, value)
    close(got, g * dw)
    expected = {"l": dl, "u": du, "alpha": alpha * (1 - 2 * alpha) * dalpha}
    for k, x in expected.items():
        np.testing.assert_allclose(dp.value[k], np.sum(g * x), rtol=2e-4, atol=1e-5)


TABLES = {1: [-1, 1], 2: [-1, 0, 1], 3: [-4, -2, -1, 0, 1, 2, 4]}


@pytest.mark.parametrize("bits", TABLES)
def test_quantization_networks(bits):
    """y = a (sum s_i sigmoid(T (b w - c_i)) - o); the boundaries get no gradient."""
    w, g, t, a, b = weights(), normal(1, SHAPE), 1.5, 0.7, 1.3
    gaps = np.diff(TABLES[bits]).astype(np.float64)
    c = np.sort(normal(3, gaps.shape)).astype(np.float64)
    x = w.astype(np.float64)
    inner, slope = np.zeros(SHAPE), np.zeros(SHAPE)
    for gap, edge in zip(gaps, c, strict=True):
        s = 1 / (1 + np.exp(-t * (b * x - edge)))
        inner += gap * (s - 0.5)
        slope += gap * t * s * (1 - s)
    p = {"a": a, "b": b, "c": c}
    qparams = PerTensor({k: jnp.asarray(v, jnp.float32) for k, v in p.items()})
    q = create("quantization_networks", bits=bits, sharpness=t)
    soft, dw, dp = results(q, qparams, w, g)
    close(soft, a * inner)
    close(dw, g * a * b * slope)
    close(dp.value["a"], np.sum(g * inner))
    close(dp.value["b"], np.sum(g * a * slope * x))
    assert not dp.value["c"].any()
    steps = sum(gap * (b * x - edge >= 0) for gap, edge in zip(gaps, c, strict=True))
    close(dequantize(q.hard(qparams, jnp.asarray(w))), a * (steps - gaps.sum() / 2))
