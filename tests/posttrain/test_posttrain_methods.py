"""Post-training methods of one layer, against float64 references and their theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantnet_jax import posttrain
from quantnet_jax.core import superposed
from quantnet_jax.core.qtensor import dequantize, validate
from quantnet_jax.posttrain.methods import solver
from quantnet_jax.posttrain.methods.ausn import shift_and_add, tables


def layer(seed, rows, inputs, units, correlated=False):
    """(weights, inputs of the float network, of the quantized one), float32."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, inputs))
    if correlated:  # behind a ReLU, of fewer directions than inputs
        mixing = rng.standard_normal((inputs // 3, inputs))
        x = np.maximum(rng.standard_normal((rows, inputs // 3)) @ mixing + 0.5, 0.0)
    xq = x + 0.1 * rng.standard_normal(x.shape)
    w = rng.standard_normal((inputs, units)) / np.sqrt(inputs)
    return tuple(jnp.asarray(a, jnp.float32) for a in (w, x, xq))


def solve(method, w, x, xq, seed=0):
    return method.solve(w, solver.grams(x, xq), jax.random.key(seed))


def error(w, x, xq, qt):
    return float(solver.relative_error(w, dequantize(qt), solver.grams(x, xq)))


def gpfq_reference(w, x, xq, levels, scale):
    """The published loop in float64; codes, and how far each is from a tie."""
    w, x, xq, levels = (np.asarray(a, np.float64) for a in (w, x, xq, levels))
    u, codes, clear = np.zeros((len(x), w.shape[1])), [], []
    middles = (levels[1:] + levels[:-1]) / 2
    for t in range(len(w)):
        u += np.outer(x[:, t], w[t])
        z = xq[:, t] @ u / (xq[:, t] @ xq[:, t]) / scale
        codes.append(np.searchsorted(middles, z, side="right"))
        clear.append(np.abs(z[:, None] - middles).min(1))
        u -= np.outer(xq[:, t], levels[codes[-1]] * scale)
    return np.stack(codes), np.stack(clear)


@pytest.mark.parametrize("bits", [1, 3])
def test_gpfq_agrees_with_a_float64_loop(bits):
    w, x, xq = layer(0, 90, 40, 7, correlated=True)
    made = solve(posttrain.gpfq(bits=bits, scalars=(0.7,)), w, x, xq)
    wanted, clear = gpfq_reference(w, x, xq, made.levels, np.asarray(made.scale)[0])
    # What follows a tie of a unit may differ.
    sure = np.cumprod(clear > 1e-4, axis=0).astype(bool)
    assert sure.mean() > 0.8
    assert (np.asarray(made.codes) == wanted)[sure].all()


def test_error_feedback_agrees_with_the_inverse_hessian_of_gptq():
    w, x, xq = layer(1, 80, 24, 5)
    method = posttrain.error_feedback(bits=3, scalars=(0.8,), correct=False)
    made = solve(method, w, x, xq)
    hessian = np.asarray(solver.grams(x, xq).quantized, np.float64)
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    levels, scale = np.asarray(made.levels, np.float64), np.asarray(made.scale)[0]
    middles, left = (levels[1:] + levels[:-1]) / 2, np.array(w, np.float64)
    for t in range(len(left)):
        inverse = np.linalg.inv(hessian[t:, t:])
        code = np.searchsorted(middles, left[t] / scale, side="right")
        assert (np.asarray(made.codes)[t] == code).all()
        wrong = left[t] - levels[code] * scale
        left[t:] -= np.outer(inverse[0] / inverse[0, 0], wrong)


def test_error_of_gpfq_falls_with_the_inputs_and_that_of_rounding_does_not():
    sizes, found = (32, 64, 128, 256, 512), {"gpfq": [], "rtn": []}
    for n in sizes:
        w, x, _ = layer(n, 12, n, 40)
        w = jnp.clip(w * np.sqrt(n) / 3, -1.0, 1.0)  # an alphabet of one size for all
        for name, errors in found.items():
            method = posttrain.METHODS[name](bits=3, scalars=(1.0,), per="tensor")
            errors.append(error(w, x, x, solve(method, w, x, x)))
    slope = lambda y: np.polyfit(np.log(sizes), np.log(y), 1)[0]
    assert -1.2 < slope(found["gpfq"]) < -0.8
    assert abs(slope(found["rtn"])) < 0.2


def test_sparse_and_stochastic_variants():
    w, x, xq = layer(2, 100, 30, 6, correlated=True)
    zeros = {}
    for mode in ("nearest", "soft", "hard", "stochastic"):
        qt = validate(solve(posttrain.gpfq(bits=4, mode=mode, threshold=1.0), w, x, xq))
        assert qt.bits == 4
        zeros[mode] = np.mean(np.asarray(dequantize(qt)) == 0)
        values = np.unique(np.abs(np.asarray(qt.levels)))
        if mode == "hard":  # nothing between zero and the threshold
            assert values[0] == 0 and values[1] == pytest.approx(1 / 7)
            assert len(qt.levels) == 15
    assert zeros["soft"] > zeros["nearest"] and zeros["hard"] > zeros["nearest"]
    method = posttrain.gpfq(bits=3, mode="stochastic", scalars=(1.0,))
    first, again, other = (solve(method, w, x, xq, seed).codes for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    with pytest.raises(ValueError, match="bits=2, expected at least 3"):
        posttrain.gpfq(bits=2, mode="hard")
    with pytest.raises(ValueError, match="threshold=4.0, expected at most 3"):
        posttrain.gpfq(bits=3, mode="hard", threshold=4.0)


def test_feedback_beats_rounding_on_correlated_inputs():
    w, x, xq = layer(3, 300, 48, 8, correlated=True)
    errors = {
        name: error(w, x, xq, solve(posttrain.METHODS[name](bits=3), w, x, xq))
        for name in ("rtn", "gpfq", "error_feedback")
    }
    assert errors["gpfq"] < 0.7 * errors["rtn"]
    assert errors["error_feedback"] < 0.7 * errors["rtn"]


def test_bitat_halves_the_error_of_naive_binarization():
    w, x, _ = layer(4, 300, 48, 8, correlated=True)
    naive = jnp.sign(w) * jnp.mean(jnp.abs(w), 0, keepdims=True)
    before = float(solver.relative_error(w, naive, solver.grams(x, x)))
    qt = solve(posttrain.bitat(), w, x, x)
    assert qt.bits == 1 and error(w, x, x, qt) < before / 2


@pytest.mark.parametrize("method", [posttrain.gpfq, posttrain.bitat])
def test_dead_inputs_and_zero_weights_stay_finite(method):
    w, x, xq = layer(5, 40, 12, 4)
    dead = x.at[:, 3].set(0.0), xq.at[:, 3].set(0.0)
    for weights, inputs in ((w, dead), (w * 0, (x, xq)), (w, (x * 0, xq * 0))):
        qt = validate(solve(method(), weights, *inputs))
        assert np.isfinite(np.asarray(dequantize(qt))).all()


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_codes_of_ausn_are_shifts_and_additions(bits):
    x = jnp.arange(-128, 128, dtype=jnp.int32)
    for layout in superposed.layouts(bits)[:3]:
        for constant in (False, True):
            table = tables(layout, constant=(constant,))[0]
            codes = jnp.arange(2**bits, dtype=jnp.uint8)
            both = jnp.repeat(x, len(codes)), jnp.tile(codes, len(x))
            made = shift_and_add(*both, layout, constant)
            unit = 2.0 ** -(max(map(max, layout.fields)) + constant)
            product = np.asarray(both[0], np.float64) * table[np.asarray(both[1])]
            assert (np.asarray(made) * unit == product).all()
            assert len(np.unique(table)) == 2**bits - (not constant)


def test_adaptive_ausn_is_never_behind_the_layouts_that_it_contains():
    rng = np.random.default_rng(6)
    for w in (rng.standard_normal((64, 8)), rng.standard_t(2, (64, 8))):
        w = jnp.asarray(w, jnp.float32)
        of = {
            name: float(
                jnp.sum((w - dequantize(method(bits=4).solve(w, None, None))) ** 2)
            )
            for name, method in posttrain.METHODS.items()
            if name in ("ausn", "apot", "power_of_two", "uniform")
        }
        assert of["ausn"] <= min(of.values()) * 1.0001
    q = posttrain.ausn(bits=4).solve(w, None, None)
    far = dequantize(q)[jnp.abs(w) > jnp.max(jnp.abs(q.levels)) * q.scale]
    assert far.size and set(np.abs(np.asarray(far)).tolist()) <= set(
        np.ravel(np.max(np.abs(q.levels)) * np.asarray(q.scale)).tolist()
    )


@pytest.mark.parametrize("name", posttrain.METHODS)
def test_methods_print_refuse_and_document(name):
    make = posttrain.METHODS[name]
    options = {} if name == "bitat" else {"bits": 4}
    text = ", ".join(f"{k}={v}" for k, v in options.items())
    assert repr(make(**options)) == f"{name}({text})"
    for word in ("Forward:", "Backward:", "Learned:", "Reference:"):
        assert word in make.__doc__
    with pytest.raises(ValueError, match="scalars=0.5 is a float, expected a tuple"):
        make(scalars=0.5)
    with pytest.raises(ValueError, match=r"scalars=\(\), expected a tuple of one or"):
        make(scalars=())
    with pytest.raises(ValueError, match=r"scalars\[1\]=0, expected a number from"):
        make(scalars=(1.0, 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpfk", "method='gpfk'; did you mean 'gpfq'? (known: rtn, uniform, "),
        ("gpfq(4)", "method='gpfq(4)', expected NAME(option=value, ...)"),
        ("gpfq(bits=4", "method='gpfq(bits=4', expected NAME(option=value, ...)"),
        ("rtn(bits=1, bits=2)", "bits=2)', expected NAME(option=value, ...)"),
        ("rtn(bits=2)(bits=3)", "(bits=3)', expected NAME(option=value, ...)"),
        ("rtn(per=tensor)", "per=tensor, expected a number, a 'text', True, False"),
        ("rtn(par='tensor')", "'rtn.par'; did you mean 'per'? (known: bits, per, "),
        ("rtn(per='layer')", "rtn.per='layer' (known: channel, tensor)"),
        ("rtn(bits=None)", "rtn.bits=None is a NoneType, expected a whole number"),
        ("gpfq(quantile=0)", "gpfq.quantile=0, expected a number above 0 to 1"),
        ("uniform(scalars=[])", "uniform.scalars=[], expected a tuple of one or more"),
        ("bitat(sweeps=-1)", "bitat.sweeps=-1, expected a whole number from 0 to 100"),
        ("bitat(damping=0)", "bitat.damping=0, expected a number from 1e-06 to 1000"),
        ("ausn(adaptive=1)", "ausn.adaptive=1 is a int, expected True or False"),
        ("error_feedback(order=2)", "error_feedback.order=2 (known: given, import"),
    ],
)
def test_written_calls_are_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as e:
        posttrain.create(text)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_a_written_call_is_the_call():
    text = "gpfq(bits=3, scalars=(0.5, 0.9), per='tensor', mode='soft')"
    assert repr(posttrain.create(text)) == text
    assert repr(posttrain.create(text, bits=2)) == text.replace("3", "2")
    assert repr(posttrain.create("bitat")) == "bitat()"
    w, x, xq = layer(7, 60, 20, 5)
    direct = posttrain.gpfq(bits=3, scalars=(0.5, 0.9), per="tensor", mode="soft")
    one, two = (solve(m, w, x, xq) for m in (posttrain.create(text), direct))
    assert (one.codes == two.codes).all() and one.scale.shape == (1, 5)
