"""Tests of the combinators against NumPy, loops and closed forms."""

import inspect
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import clip_sign, normal, with_zeros

from quantnet_jax.core.combine import (
    add_penalty,
    bit_planes,
    chain,
    learned_scale,
    mix,
    per_channel,
    scale_by_max,
    scale_by_mean_abs,
    straight_through,
    uniform_levels,
)
from quantnet_jax.core.qtensor import dequantize, validate
from quantnet_jax.core.quantizer import (
    PerTensor,
    Quantizer,
    Reparam,
    identity,
    no_params,
)
from quantnet_jax.core.schedules import linear
from quantnet_jax.quantizers.sign import staircase

SHAPE = (2, 3, 4)


def weights(seed=0, shape=SHAPE):
    return jnp.asarray(with_zeros(seed, shape))


def noise():
    """A stochastic quantizer: soft is w plus noise from the key; init keeps its key."""
    q = clip_sign()

    def init(key, w):
        return jax.random.uniform(key, (2,))

    def soft(qparams, w, *, step, key=None):
        return w + jax.random.uniform(key, w.shape)

    return q._replace(init=init, soft=soft, hard=lambda p, w: q.hard((), w))


def shifted(by):
    """A Reparam that adds `by` and remembers the mean of what it was shown."""
    return Reparam(lambda key, w: jnp.mean(w), lambda p, w: w + by)


def doubled():
    return Reparam(no_params, lambda p, w: 2.0 * w)


# straight_through


def test_straight_through_is_exact_at_every_size():
    """Where soft + stop_gradient(hard - soft) is not."""
    q = clip_sign()._replace(soft=lambda p, w, *, step, key=None: w)
    exact = straight_through(q).soft
    w = weights() * jnp.asarray([1e-20, 1.0, 100.0, 1e12])[None, None]
    w = w.astype(jnp.bfloat16).astype(jnp.float32)
    hard = np.where(np.asarray(w) >= 0, np.float32(1), np.float32(-1))
    additive = w + jax.lax.stop_gradient(hard - w)
    assert np.any(np.asarray(additive) != hard)
    one = lambda w: exact((), w, step=0)
    outputs = {
        "eager": one(w),
        "jit": jax.jit(one)(w),
        "vmap": jax.vmap(one)(w),
        "grad": jax.value_and_grad(lambda w: (one(w).sum(), one(w)), has_aux=True)(w)[
            0
        ][1],
    }
    for how, value in outputs.items():
        np.testing.assert_array_equal(value, hard, err_msg=how)


def test_straight_through_has_the_gradient_of_soft():
    q = learned_scale(staircase(bits=2, sharpness=linear(1.0, 3.0, 10)))
    w, g = weights(), jnp.asarray(normal(1, SHAPE))
    qparams = q.init(jax.random.key(0), w)

    def gradients(soft, step):
        loss = lambda p, w: jnp.sum(soft(p, w, step=step, key=None) * g)
        return jax.grad(loss, argnums=(0, 1))(qparams, w)

    got, expected = (
        jax.jit(lambda s, soft=soft: gradients(soft, s))
        for soft in (straight_through(q).soft, q.soft)
    )
    for step in (jnp.asarray(0), jnp.asarray(7)):
        chex.assert_trees_all_close(got(step), expected(step), rtol=1e-5, atol=1e-6)
        assert all(np.any(x != 0) for x in jax.tree.leaves(got(step)))


def test_straight_through_takes_another_backward():
    backward = lambda p, w, *, step, key: jnp.sin(w) * (step + 1.0)
    q = straight_through(clip_sign(), backward)
    w = weights()
    slope = jax.grad(lambda w: q.soft((), w, step=2.0).sum())(w)
    np.testing.assert_allclose(slope, 3 * np.cos(w), rtol=1e-5)


def test_straight_through_hands_the_key_to_the_surrogate():
    backward = lambda p, w, *, step, key: w * jax.random.uniform(key, w.shape)
    q, key, w = straight_through(clip_sign(), backward), jax.random.key(3), weights()

    @jax.jit
    def slope(key):
        return jax.grad(lambda w: q.soft((), w, step=0, key=key).sum())(w)

    np.testing.assert_allclose(slope(key), jax.random.uniform(key, w.shape))


def same(one, other):
    """Whether two functions are one, but for the dtype of what they are given."""
    return one is other is None or inspect.unwrap(one) is inspect.unwrap(other)


def test_straight_through_keeps_the_other_functions():
    q = clip_sign()
    kept = straight_through(q)
    fields = ("init", "hard", "penalty", "gradient", "project")
    assert all(same(getattr(kept, x), getattr(q, x)) for x in fields)


# chain


def test_chain_composes_from_left_to_right():
    q = chain(shifted(1.0), doubled(), shifted(-3.0), staircase(bits=3, penalty=1.0))
    w = weights()
    qparams = q.init(jax.random.key(0), w)
    inner, mapped = staircase(bits=3, penalty=1.0), 2 * (w + 1) - 3
    np.testing.assert_allclose(qparams[0], w.mean(), rtol=1e-6)
    np.testing.assert_allclose(qparams[2], (2 * (w + 1)).mean(), rtol=1e-6)
    assert qparams[1] == qparams[3] == ()
    soft, hard = q.soft(qparams, w, step=0), q.hard(qparams, w)
    np.testing.assert_allclose(soft, inner.soft((), mapped, step=0), rtol=1e-6)
    np.testing.assert_array_equal(hard.codes, inner.hard((), mapped).codes)
    penalty = q.penalty(qparams, w, step=0)
    np.testing.assert_allclose(penalty, inner.penalty((), mapped, step=0), rtol=1e-6)


def test_chain_gives_every_part_a_key_of_its_own():
    part = Reparam(lambda key, w: jax.random.uniform(key, (2,)), lambda p, w: w)
    qparams = chain(part, part, noise()).init(jax.random.key(0), weights())
    for a, b in itertools.combinations(qparams, 2):
        assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    "parts", [(), (doubled(),), (clip_sign(), doubled()), (clip_sign(), clip_sign())]
)
def test_chain_names_what_it_got(parts):
    with pytest.raises(ValueError, match="chain takes Reparams and, last, one"):
        chain(*parts)


# per_channel


def test_per_channel_of_a_tensor_scale_is_a_channel_scale():
    w = weights()
    loop = per_channel(scale_by_mean_abs(clip_sign(), per="tensor"))
    whole = scale_by_mean_abs(clip_sign(), per="channel")
    np.testing.assert_allclose(
        loop.soft((), w, step=0), whole.soft((), w, step=0), rtol=1e-6
    )
    qt = validate(loop.hard((), w))
    assert qt.scale.shape == (1, 1, 4) and qt.levels.shape == (4, 2)
    np.testing.assert_allclose(dequantize(qt), dequantize(whole.hard((), w)), rtol=1e-6)


def test_per_channel_against_a_loop():
    q = add_penalty(
        learned_scale(staircase(bits=2), per="tensor"),
        lambda p, w, *, step: jnp.exp(p[0].value).sum() * step,
    )
    w, key, channels = weights(), jax.random.key(0), range(SHAPE[-1])
    whole = per_channel(q)
    qparams = whole.init(key, w)
    keys = jax.random.split(key, SHAPE[-1])
    alone = [q.init(keys[c], w[..., c]) for c in channels]
    chex.assert_trees_all_close(
        qparams, jax.tree.map(lambda *x: jnp.stack(x), *alone), rtol=1e-5, atol=1e-6
    )
    soft = [q.soft(alone[c], w[..., c], step=0) for c in channels]
    np.testing.assert_allclose(
        whole.soft(qparams, w, step=0), np.stack(soft, -1), rtol=1e-6
    )
    hard = [dequantize(q.hard(alone[c], w[..., c])) for c in channels]
    np.testing.assert_allclose(
        dequantize(whole.hard(qparams, w)), np.stack(hard, -1), rtol=1e-6
    )
    penalty = [q.penalty(alone[c], w[..., c], step=2.0) for c in channels]
    np.testing.assert_allclose(
        whole.penalty(qparams, w, step=2.0), np.mean(penalty), rtol=1e-6
    )


def test_per_channel_splits_the_key():
    q, w, key = per_channel(noise()), weights(), jax.random.key(5)
    qparams = q.init(key, w)
    keys = jax.random.split(key, SHAPE[-1])
    expected = [w[..., c] + jax.random.uniform(keys[c], SHAPE[:-1]) for c in range(4)]
    soft = q.soft(qparams, w, step=0, key=key)
    np.testing.assert_allclose(soft, np.stack(expected, -1), rtol=1e-6)
    assert len({tuple(p) for p in qparams.tolist()}) == 4


# Scales

NUMPY_SCALES = {scale_by_mean_abs: np.mean, scale_by_max: np.max}


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("scale", NUMPY_SCALES)
def test_scales_against_numpy(scale, per, detach):
    w = jnp.asarray(normal(0, SHAPE))
    q = scale(staircase(bits=2), per=per, detach=detach)
    axes = (0, 1) if per == "channel" else None
    factor = NUMPY_SCALES[scale](np.abs(w), axis=axes, keepdims=True)
    plain = staircase(bits=2)
    soft = plain.soft((), w, step=0)
    np.testing.assert_allclose(q.soft((), w, step=0), soft * factor, rtol=1e-6)
    qt = validate(q.hard((), w))
    np.testing.assert_allclose(qt.scale, factor, rtol=1e-6)
    np.testing.assert_array_equal(qt.codes, plain.hard((), w).codes)
    slope = jax.grad(lambda w: q.soft((), w, step=0).sum())(w)
    held = jax.grad(lambda w: (plain.soft((), w, step=0) * factor).sum())(w)
    assert np.allclose(slope, held, rtol=1e-5) == detach


def test_scales_multiply():
    w = jnp.asarray(normal(0, SHAPE))
    q = scale_by_max(scale_by_mean_abs(clip_sign(), per="tensor"))
    expected = np.abs(w).mean() * np.abs(w).max((0, 1), keepdims=True)
    np.testing.assert_allclose(q.hard((), w).scale, expected, rtol=1e-6)


@pytest.mark.parametrize("make", [scale_by_mean_abs, scale_by_max, learned_scale])
def test_scales_refuse_other_groups_and_empty_tensors(make):
    with pytest.raises(ValueError, match="per='row', expected"):
        make(clip_sign(), per="row")
    q = make(clip_sign())
    with pytest.raises(ValueError, match=r"empty tensor of shape \(0, 3\)"):
        q.hard(q.init(jax.random.key(0), jnp.ones((0, 3))), jnp.ones((0, 3)))


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_learned_scale_starts_at_the_mean(per):
    w = jnp.asarray(normal(0, SHAPE))
    q = learned_scale(clip_sign(), per=per)
    own, rest = q.init(jax.random.key(0), w)
    assert isinstance(own, PerTensor) and rest == ()
    axes = (0, 1) if per == "channel" else None
    expected = np.abs(w).mean(axes, keepdims=True)
    np.testing.assert_allclose(q.hard((own, rest), w).scale, expected, rtol=1e-5)
    soft = np.clip(w, -1, 1) * expected
    np.testing.assert_allclose(q.soft((own, rest), w, step=0), soft, rtol=1e-5)


def test_learned_scale_stays_positive():
    w = jnp.asarray(normal(0, SHAPE))
    q = learned_scale(clip_sign())
    own, rest = q.init(jax.random.key(0), w)
    slope = jax.grad(lambda p: q.soft(p, w, step=0).sum())((own, rest))
    assert np.all(slope[0].value != 0)
    for step in (-50.0, 50.0):
        moved = (PerTensor(own.value + step), rest)
        assert np.all(np.asarray(q.hard(moved, w).scale) > 0)


def test_learned_scale_of_zeros_is_finite():
    w = jnp.zeros(SHAPE)
    q = learned_scale(clip_sign())
    validate(q.hard(q.init(jax.random.key(0), w), w))


# Penalties


def test_add_penalty_follows_its_schedule():
    seen = lambda p, w, *, step: jnp.mean(w * w)
    q = add_penalty(staircase(penalty=1.0), seen, linear(0.0, 2.0, 4))
    w = weights()
    base = staircase(penalty=1.0).penalty((), w, step=0)
    for step, weight in ((0, 0.0), (1, 0.5), (9, 2.0)):
        expected = base + weight * np.mean(np.square(w))
        np.testing.assert_allclose(q.penalty((), w, step=step), expected, rtol=1e-6)
    twice = add_penalty(q, seen)
    expected = q.penalty((), w, step=9) + np.mean(np.square(w))
    np.testing.assert_allclose(twice.penalty((), w, step=9), expected, rtol=1e-6)


# Bit planes


def greedy(w, bits, sign):
    """Planes in NumPy: sign of what is left, from the highest bit down."""
    rest, total = np.asarray(w, np.float64), np.zeros(w.shape)
    for j in reversed(range(bits)):
        plane = 2**j / (2**bits - 1) * sign(rest)
        rest, total = rest - plane, total + plane
    return total


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_bit_planes_against_numpy(bits):
    w = jnp.asarray(normal(0, SHAPE) * 0.6)
    q = bit_planes(staircase(sharpness=3.0), bits)
    qparams = q.init(jax.random.key(0), w)
    hard = greedy(w, bits, lambda r: np.where(r >= 0, 1, -1))
    qt = validate(q.hard(qparams, w))
    np.testing.assert_allclose(dequantize(qt), hard, atol=1e-6)
    soft = greedy(w, bits, lambda r: np.tanh(3 * r))
    np.testing.assert_allclose(q.soft(qparams, w, step=0), soft, atol=1e-5)
    levels = np.linspace(-1, 1, 2**bits)
    nearest = levels[np.abs(np.asarray(w)[..., None] - levels).argmin(-1)]
    np.testing.assert_allclose(dequantize(qt), nearest, atol=1e-6)


def test_bit_planes_have_parameters_and_keys_of_their_own():
    q, key, w = bit_planes(noise(), 2), jax.random.key(0), weights()
    qparams = q.init(key, w)
    assert len(qparams) == 2 and not np.array_equal(*qparams)
    first, second = (jax.random.uniform(k, w.shape) for k in jax.random.split(key))
    high = 2 / 3 * (w + first)
    expected = high + 1 / 3 * (w - high + second)
    np.testing.assert_allclose(
        q.soft(qparams, w, step=0, key=key), expected, rtol=1e-5, atol=1e-6
    )


def test_penalty_of_bit_planes_is_the_mean_of_theirs():
    q = bit_planes(staircase(sharpness=3.0, penalty=1.0), 2)
    w = jnp.asarray(normal(0, SHAPE))
    high = np.tanh(3 * np.asarray(w, np.float64))
    low = np.tanh(3 * (w - 2 / 3 * high))
    expected = ((1 - high**2).mean() + (1 - low**2).mean()) / 2
    np.testing.assert_allclose(q.penalty(((), ()), w, step=0), expected, rtol=1e-5)


@pytest.mark.parametrize("bits", [0, 9])
def test_bit_planes_refuse_other_widths(bits):
    with pytest.raises(ValueError, match=f"bits={bits}"):
        bit_planes(clip_sign(), bits)


def test_bit_planes_refuse_more_than_two_levels():
    q = bit_planes(staircase(bits=2), 2)
    with pytest.raises(ValueError, match=r"binary quantizer, got levels of shape \(4,"):
        q.hard(((), ()), weights())


def test_uniform_levels():
    for bits in range(1, 9):
        levels = uniform_levels(bits)
        assert levels.dtype == jnp.float32
        np.testing.assert_allclose(levels, np.linspace(-1, 1, 2**bits), atol=1e-7)


# mix


def test_mix_goes_from_float_to_quantized():
    q, w = staircase(sharpness=5.0), weights()
    mixed = mix(q, linear(0.0, 1.0, 4))
    soft = q.soft((), w, step=0)
    np.testing.assert_array_equal(mixed.soft((), w, step=0), w)
    np.testing.assert_allclose(mixed.soft((), w, step=4), soft, rtol=1e-6)
    np.testing.assert_allclose(
        mixed.soft((), w, step=1), 0.75 * w + 0.25 * soft, rtol=1e-5
    )
    assert same(mixed.hard, q.hard)
    half = mix(identity(), 0.5)
    np.testing.assert_allclose(half.soft((), w, step=0), w, rtol=1e-6)
    assert isinstance(half, Quantizer)


# gradient and project


def with_rules():
    """A quantizer with a gradient and a projection that a loop can follow by hand."""

    def gradient(qparams, w, g, *, step):
        return qparams * g + jnp.sum(w) * step

    def project(qparams, w, *, step):
        return qparams + jnp.max(w), 0.5 * w + qparams * step

    q = clip_sign()._replace(init=lambda key, w: jnp.mean(w))
    return q._replace(gradient=gradient, project=project)


def test_per_channel_keeps_gradient_and_project():
    w, g = normal(0, SHAPE), normal(1, SHAPE)
    q, p = per_channel(with_rules()), np.arange(4, dtype=np.float32) - 1
    qparams, step = jnp.asarray(p), jnp.asarray(2.0)
    out = q.gradient(qparams, jnp.asarray(w), jnp.asarray(g), step=step)
    moved, new = q.project(qparams, jnp.asarray(w), step=step)
    for c in range(4):
        own = w[..., c]
        expected = p[c] * g[..., c] + 2 * own.sum(dtype=np.float64)
        np.testing.assert_allclose(out[..., c], expected, rtol=1e-5)
        np.testing.assert_allclose(new[..., c], own / 2 + 2 * p[c], rtol=1e-6)
        np.testing.assert_allclose(moved[c], p[c] + own.max(), rtol=1e-6)
    for field in ("gradient", "project"):
        assert getattr(per_channel(clip_sign()), field) is None
        one = per_channel(with_rules()._replace(**{field: None}))
        assert getattr(one, field) is None
        assert (one.gradient is None) != (one.project is None)


@pytest.mark.parametrize("field", ["gradient", "project"])
@pytest.mark.parametrize(
    ("name", "combine"),
    [
        ("chain", lambda q: chain(doubled(), q)),
        ("learned_scale", learned_scale),
        ("bit_planes", lambda q: bit_planes(q, 2)),
    ],
)
def test_rules_for_other_weights_are_refused(name, combine, field):
    """What holds for the weights that `q` sees does not hold for the latent ones."""
    combine(clip_sign())
    q = clip_sign()._replace(**{field: getattr(with_rules(), field)})
    with pytest.raises(ValueError, match=f"^{name} cannot retain the `{field}` "):
        combine(q)


@pytest.mark.parametrize(
    "combine",
    [
        straight_through,
        scale_by_mean_abs,
        scale_by_max,
        lambda q: add_penalty(q, lambda p, w, *, step: jnp.sum(w)),
        lambda q: mix(q, 0.5),
    ],
)
def test_combinators_of_the_same_weights_keep_the_rules(combine):
    q = with_rules()
    made = combine(q)
    assert same(made.gradient, q.gradient) and same(made.project, q.project)
