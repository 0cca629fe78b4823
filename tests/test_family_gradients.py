"""Values and gradients of the weight quantizers against NumPy, derived by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import noisy, normal, with_zeros

from quantnet_jax.core import schedules, surrogates
from quantnet_jax.core.base import PerTensor
from quantnet_jax.core.qtensor import dequantize
from quantnet_jax.quantizers import create

SHAPE = (3, 2, 2, 4)
KEY = jax.random.key(0)


def weights(shape=SHAPE):
    """Normal numbers with exact zeros, ones, halves and quarters among them."""
    w = with_zeros(0, shape)
    for i, x in enumerate((-0.75, -0.5, -0.25, 0.25, 0.5, 0.75)):
        w.flat[3 + 7 * i] = x
    return w


def results(q, qparams, w, g):
    """(soft, gradient for w, gradient for qparams) of sum(g * soft)."""

    @jax.jit
    def run(qparams, w, g):
        soft, vjp = jax.vjp(lambda p, w: q.soft(p, w, step=0), qparams, w)
        dp, dw = vjp(g)
        return soft, dw, dp

    return run(qparams, jnp.asarray(w), jnp.asarray(g, jnp.float32))


def started(q, w):
    """What `init` gives."""
    return jax.jit(q.init)(KEY, jnp.asarray(w))


def drawn(q, w):
    """Normal numbers in the shapes of what `init` gives."""
    shapes = jax.tree.leaves_with_path(jax.eval_shape(q.init, KEY, w))
    found = {path[0].key: x.shape for path, x in shapes}
    return {k: jnp.asarray(normal(i, s)) for i, (k, s) in enumerate(found.items())}


def released(q, qparams, w, g):
    """The result of `gradient`."""
    return jax.jit(lambda *args: q.gradient(*args, step=0))(
        qparams, jnp.asarray(w), jnp.asarray(g)
    )


def close(got, expected):
    expected = np.asarray(expected)
    size = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-6 * size)


def each(fn, w, *args):
    """fn(number, ...) for every number of an array, as float64."""
    flat = [fn(float(x), *(float(a) for a in more)) for x, *more in _zip(w, *args)]
    return np.asarray(flat, np.float64).reshape(w.shape)


def _zip(w, *args):
    return zip(w.flat, *(np.broadcast_to(a, w.shape).flat for a in args), strict=True)


def channels(fn, w, g):
    """fn(w_c, g_c) -> (value, gradient), of every output channel on its own."""
    value, gradient = np.zeros(w.shape), np.zeros(w.shape)
    for c in range(w.shape[-1]):
        pair = fn(*(x[..., c].ravel().astype(np.float64) for x in (w, g)))
        value[..., c], gradient[..., c] = (x.reshape(w.shape[:-1]) for x in pair)
    return value, gradient


def sign(x):
    return 1.0 if x >= 0 else -1.0


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


def test_magnitude_aware_is_binary_ste():
    """The same function under another name, bit for bit."""
    w, g = weights(), normal(1, SHAPE)
    found = [
        results(create(name), (), w, g)[:2]
        for name in ("magnitude_aware", "binary_ste")
    ]
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


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


# Standardized channels: x = (w - m) / s; a gradient h for x becomes (h - mean(h) - x
# mean(h x)) / s for w.


def standardized(w):
    s = np.sqrt(((w - w.mean()) ** 2).mean())
    return (w - w.mean()) / s, s


def through(x, s, h):
    return (h - h.mean() - x * (h * x).mean()) / s


def ede(x, t):
    return max(1 / t, 1) * t * (1 - np.tanh(t * x) ** 2)


@pytest.mark.parametrize("t", [0.3, 3.0])
def test_irnet(t):
    def by_hand(w, g):
        x, s = standardized(w)
        scale = 2.0 ** np.rint(np.log2(np.abs(x).mean()))
        return scale * np.where(x >= 0, 1, -1), through(x, s, g * scale * ede(x, t))

    w, g = weights(), normal(1, SHAPE)
    w[..., 1] = np.abs(w[..., 1]) ** 3  # skewed, so that the scales differ
    value, expected = channels(by_hand, w, g)
    soft, dw, _ = results(create("irnet", t=t), (), w, g)
    close(soft, value)
    close(dw, expected)
    assert len(np.unique(np.abs(value))) > 1


@pytest.mark.parametrize("t", [0.3, 3.0])
def test_adabin(t):
    """y_i = m + s b_i, db_i = e_i dx_i, dm = mean(dw), ds = mean(x dw)."""

    def by_hand(w, g):
        x, s = standardized(w)
        b, e = np.where(x >= 0, 1, -1), ede(x, t)
        gradient = e * g + (g * (1 - e)).mean() + x * (g * (b - x * e)).mean()
        return w.mean() + s * b, gradient

    w, g = weights(), normal(1, SHAPE)
    w[..., 1] += 2.0
    value, expected = channels(by_hand, w, g)
    soft, dw, _ = results(create("adabin", t=t), (), w, g)
    close(soft, value)
    close(dw, expected)


@pytest.mark.parametrize(("progress", "tau"), [(0.0, 0.85), (1.0, 0.99)])
def test_recu(progress, tau):
    """x is sqrt(8) times the standardized channel; Q is of the whole tensor."""
    w, g = weights((4, 4, 3, 4)), normal(1, (4, 4, 3, 4))
    w[0, 0] *= 2.5
    log_scale = normal(2, (1, 1, 1, 4))
    every = [standardized(w[..., c].ravel().astype(float))[0] for c in range(4)]
    mean = np.sqrt(8) * np.abs(every).mean()
    edge = -mean * np.log(2 - 2 * tau)

    def by_hand(w, g):
        x, s = standardized(w)
        h = g * (np.abs(np.sqrt(8) * x) <= edge)
        assert (np.abs(np.abs(np.sqrt(8) * x) - edge) > 1e-4).all()
        return np.where(x >= 0, 1.0, -1.0), through(x, s, np.sqrt(8) * h)

    scale = np.exp(log_scale.astype(np.float64))
    value, expected = channels(by_hand, w, g * scale)
    beyond = np.abs(np.sqrt(8) * np.asarray(every)) > edge
    assert 0 < beyond.sum() < beyond.size / 2
    qparams = (PerTensor(jnp.asarray(log_scale)), ())
    soft, dw, dp = results(create("recu", progress=progress), qparams, w, g)
    close(soft, scale * value)
    close(dw, expected)
    slope = (g * scale * value).sum((0, 1, 2), keepdims=True)
    close(dp[0].value, slope)


# Networks


def mlp_by_hand(p, w, g):
    """u = w - mean; z = B tanh(A u + a) + b; +1 where z1 >= z0; c = mean |w|.

    g c goes to z1, -g c to z0, where |z| <= 1; from there by the chain rule.
    """
    grads = {k: np.zeros(v.shape) for k, v in p.items()}
    value, gradient = np.zeros(w.shape), np.zeros(w.shape)
    undecided = 0
    for channel in range(w.shape[-1]):
        column = w[..., channel].ravel().astype(np.float64)
        c, mean, du = np.abs(column).mean(), column.mean(), []
        for x, y in zip(column, g[..., channel].ravel(), strict=True):
            h = np.tanh((x - mean) * p["A"][0] + p["a"])
            z = h @ p["B"] + p["b"]
            value.flat[len(du) * w.shape[-1] + channel] = c if z[1] >= z[0] else -c
            dz = y * c * np.asarray([-1.0, 1.0]) * (np.abs(z) <= 1)
            undecided += np.sum(np.abs(z) <= 1)
            before = p["B"] @ dz * (1 - h**2)
            grads["B"] += np.outer(h, dz)
            grads["b"] += dz
            grads["A"][0] += (x - mean) * before
            grads["a"] += before
            du.append(before @ p["A"][0])
        du = np.asarray(du) - np.mean(du)
        gradient[..., channel] = du.reshape(w.shape[:-1])
    assert 0 < undecided < 2 * w.size
    return value, gradient, grads


def test_binarizing_by_classification():
    w, g = weights() * 2, normal(1, SHAPE)
    q = create("binarizing_by_classification", width=5)
    qparams = drawn(q, w) | {"b": jnp.asarray([0.2, -0.3])}
    p = {k: np.asarray(v, np.float64) for k, v in qparams.items()}
    value, expected, grads = mlp_by_hand(p, w, g)
    soft, dw, dp = results(q, qparams, w, g)
    close(soft, value)
    close(dw, expected)
    for k, x in grads.items():
        close(dp[k], x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x),
    "relu": lambda x: np.maximum(x, 0),
}


def meta_by_hand(p, network, nonlinearity, g, x):
    """M(g, x) of one number."""
    phi = ACTIVATIONS[nonlinearity]
    fc = lambda y: (phi(np.atleast_1d(y) @ p["encode"]) @ p["compress"])[0]
    if network == "fcgrad":
        return fc(g)
    if network == "multifc":
        return g * fc(x)
    i, _, cell, o = np.split(x * p["gates"][0], 4)
    state = sigmoid(i) * np.tanh(cell)  # the state before is zero
    return g * fc(sigmoid(o) * np.tanh(state))


def tanh_over_max(w, out):
    """tanh(w) / max |tanh w| and its transposed Jacobian times `out`."""
    t = np.tanh(w.astype(np.float64))
    m = np.unravel_index(np.argmax(np.abs(t)), t.shape)
    largest = abs(t[m])
    back = out * (1 - t**2) / largest
    back[m] -= np.sum(out * t) * np.sign(t[m]) * (1 - t[m] ** 2) / largest**2
    return t / largest, back


@pytest.mark.parametrize(
    ("network", "nonlinearity", "forward"),
    [
        ("fcgrad", "tanh", "dorefa"),
        ("multifc", "linear", "dorefa"),
        ("multifc", "relu", "bwn"),
        ("lstmfc", "linear", "bwn"),
        ("lstmfc", "silu", "dorefa"),
    ],
)
def test_metaquant_puts_out_gradients(network, nonlinearity, forward):
    w, g = weights(), normal(1, SHAPE)
    q = create(
        "metaquant",
        network=network,
        forward=forward,
        width=3,
        nonlinearity=nonlinearity,
    )
    qparams = drawn(q, w)
    p = {k: np.asarray(v, np.float64) for k, v in qparams.items()}
    x = tanh_over_max(w, 0 * w)[0] if forward == "dorefa" else w.astype(np.float64)
    out = each(lambda g, x: meta_by_hand(p, network, nonlinearity, g, x), g, x)
    expected = tanh_over_max(w, out)[1] if forward == "dorefa" else out
    got = released(q, qparams, w, g)
    close(got, expected)


@pytest.mark.parametrize("forward", ["bwn", "dorefa"])
def test_metaquant_keeps_the_clipped_straight_through(forward):
    """soft's own derivative: s 1[|w| <= 1], or that behind DoReFa's tanh."""
    w, g = weights(), normal(1, SHAPE)
    q = create("metaquant", forward=forward, width=3)
    soft, dw, dp = results(q, drawn(q, w), w, g)
    if forward == "bwn":
        s = sum(abs(float(x)) for x in w.flat) / w.size
        close(dw, g * s * each(lambda x: abs(x) <= 1, w))
    else:
        s = 1.0
        close(dw, tanh_over_max(w, g.astype(np.float64))[1])
    close(soft, s * each(sign, w))
    assert not any(x.any() for x in jax.tree.leaves(dp))


@pytest.mark.parametrize("forward", ["bwn", "dorefa"])
def test_linear_fcgrad_is_one_factor(forward):
    """The product of the two matrices; at the start 1."""
    w, g = weights(), normal(1, SHAPE)
    q = create("metaquant", forward=forward, width=5)
    start = q.init(KEY, jnp.asarray(w))
    through = lambda out: tanh_over_max(w, out)[1] if forward == "dorefa" else out
    for qparams in (start, noisy(start)):
        factor = np.asarray(qparams["encode"], float) @ np.asarray(qparams["compress"])
        got = released(q, qparams, w, g)
        close(got, through(factor.item() * g.astype(np.float64)))
    assert (np.asarray(start["encode"]) @ start["compress"]).item() == pytest.approx(1)


# Starts and schedules


def root_mean_square(x):
    return np.sqrt(np.square(x.astype(np.float64)).mean())


def test_learned_parameters_start_where_they_should():
    w = weights()
    cases = [("lsq", b) for b in (1, 2, 4)] + [("pact", 1), ("pact", 3)]
    cases += [(name, b) for name in ("dsq", "lq_nets") for b in (1, 2, 3)]
    cases += [("quantization_networks", 1)]
    made = {case: create(case[0], bits=case[1]) for case in cases}
    made["recu"] = create("recu")
    inits = lambda w: {str(case): q.init(KEY, w) for case, q in made.items()}
    found = jax.jit(inits)(jnp.asarray(w))
    start = lambda *case: found[str(case)].value
    mean, rms = np.abs(w.astype(np.float64)).mean(), root_mean_square(w)
    close(start("lsq", 1), mean)
    close(start("lsq", 2), 2 * mean)
    close(start("lsq", 4), 2 * mean / np.sqrt(7))
    close(start("pact", 1), mean)
    close(start("pact", 3), 3 * rms)
    for bits in (1, 2, 3):
        p = start("dsq", bits)
        alpha = 0.5 / (1 + np.exp(-float(p["alpha"])))
        assert alpha == pytest.approx(0.2) and float(p["u"]) == -float(p["l"]) > 0
        for c in range(SHAPE[-1]):
            r = 0.6745 * root_mean_square(w[..., c])
            expected = [r * 2**j / 2 ** (bits - 1) for j in range(bits)]
            close(start("lq_nets", bits)[c], expected)
    log_scale, none = found["recu"]
    close(np.exp(log_scale.value), np.abs(w).mean((0, 1, 2), keepdims=True))
    assert none == ()
    p = start("quantization_networks", 1)
    close(p["b"], 1.25 / np.abs(w).max())
    close(p["a"] * p["b"], 1.0)
    assert p["c"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("dsq_soft", "sharpness"),
        ("quantization_networks", "sharpness"),
        ("irnet", "t"),
        ("adabin", "t"),
        ("recu", "progress"),
        ("proxquant", "strength"),
    ],
)
def test_schedules_are_read_at_the_step(name, option):
    """A schedule at step 7 is the number that it gives there, and no other."""
    w = jnp.asarray(weights())
    schedule = schedules.linear(0.2, 0.9, 10)
    number = 0.2 + 0.7 * np.float32(0.7)

    def seen(value):
        q = create(name, **{option: value})

        def run(w, step):
            qparams = q.init(KEY, w)
            if q.project:
                return q.project(qparams, w, step=step)[1]
            return jax.grad(lambda w: jnp.sum(w * q.soft(qparams, w, step=step)))(w)

        return run

    moving, still = seen(schedule), seen(number)
    run = jax.jit(lambda w: (moving(w, 7), still(w, 0), moving(w, 1)))
    late, constant, early = run(w)
    close(late, constant)
    assert not np.allclose(late, early, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("swish_sign", {"beta": 0.0}, "`beta` is 0.0"),
        ("xnor", {"per": "layer"}, "`per` is 'layer'"),
        ("dorefa", {"bits": 9}, "`bits` is 9"),
        ("lsq", {"bits": 0}, "`bits` is 0"),
        ("pact", {"bits": 0}, "`bits` is 0"),
        ("dsq", {"bits": 0}, "`bits` is 0"),
        ("twn", {"threshold": -0.1}, "`threshold` is -0.1"),
        ("lq_nets", {"bits": 5}, "`bits` is 5"),
        ("lq_nets", {"momentum": 1.0}, "`momentum` is 1.0"),
        ("quantization_networks", {"bits": 4}, "`bits` is 4"),
        ("recu", {"lowest": 0.4}, "`lowest` is 0.4"),
        ("recu", {"highest": 1.0}, "`highest` 1.0"),
        ("binarizing_by_classification", {"width": 0}, "`width` is 0"),
        ("metaquant", {"width": 0}, "`width` is 0"),
        ("metaquant", {"network": "fc"}, "`network` is 'fc'.*'multifc'"),
        ("metaquant", {"forward": "xnor"}, "`forward` is 'xnor'.*'bwn'"),
        ("metaquant", {"nonlinearity": "gelu"}, "`nonlinearity` is 'gelu'"),
    ],
)
def test_bad_options_are_errors_of_one_line(name, options, word):
    with pytest.raises(ValueError, match=word) as error:
        create(name, **options)
    assert "\n" not in str(error.value)
