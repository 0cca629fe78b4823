"""The law suite over every quantizer of the library, and proof that it can fail."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import clip_sign, learns

from quantnet_jax.core.combine import (
    learned_scale,
    per_channel,
    scale_by_max,
    straight_through,
)
from quantnet_jax.core.qtensor import QTensor, dequantize
from quantnet_jax.core.quantizer import Quantizer, identity
from quantnet_jax.core.schedules import exponential, linear
from quantnet_jax.quantizers import MEMBERS
from quantnet_jax.quantizers.binary.ste import binary_ste
from quantnet_jax.quantizers.sign import tanh_sign
from quantnet_jax.testing import ORDER, check_docstring, check_quantizer

SHARPNESS = exponential(0.5, 200.0, 10)
PENALTY = linear(0.0, 1.0, 10)
ANNEAL = (0, 5, 10)
RUN = {
    "sharpness": SHARPNESS,
    "strength": linear(0.0, 2.2, 10),
    "width": 4,
}
"""Options with which any member is small and ends hard."""
SHAPE = (2, 2, 4, 6)
"""Of which QuantNet's layers become 4x4 matrices, all compiled once."""
OPTIONS = {
    "binary_ste": [{"per": "tensor"}],
    "bitnet": [{"per": "channel"}],
    "xnor": [{"per": "tensor"}],
    "irnet": [{"t": exponential(0.1, 10.0, 10)}],
    "recu": [{"progress": linear(0.0, 1.0, 10)}],
    "metaquant": [
        {"network": "multifc", "nonlinearity": "silu"},
        {"network": "lstmfc", "forward": "dorefa"},
    ],
    "tanh_sign": [
        {"norm": "standard", "penalty": PENALTY},
        {"norm": "none", "bits": 3},
    ],
    "quantnet": [
        {"unit": "weight", "nonlinearity": "silu", "depth": 2, "penalty": PENALTY},
        {"unit": "filter", "skip": False, "norm": "standard"},
        {"unit": "conv", "width": 1, "window": 3, "scale": "mean_abs"},
        {"unit": "slice", "nonlinearity": "relu", "orthogonality": PENALTY},
        {"nonlinearity": "linear", "norm": "none", "bits": 4, "skip": False},
        {"multibit": "planes", "bits": 2, "scale": "learned", "penalty": 0.5},
        {"multibit": "planes", "bits": 3, "unit": "weight", "norm": "none"},
    ],
}
"""Beside the defaults at the widths that differ."""
SHORT = set(ORDER) - {11, 15}
"""Law 11 costs most; the two do not depend on the options."""
SHORTEST = SHORT - {12}
"""Law 12 costs most of the rest: for widths, and kernels, whose program is like another
one's."""


def cases():
    for name, member in MEMBERS.items():
        known = inspect.signature(member.factory).parameters
        base = {k: v for k, v in RUN.items() if k in known}
        few = tuple(b for b in (1, 2, 4) if b in member.bits)
        widths = few if len(member.bits) > 4 else member.bits
        for bits in widths or (None,):
            options = {"bits": bits} if "bits" in known else {}
            full = member.bits[: 2 if 1 in member.bits else 1]
            laws = ORDER if bits in (None, *full) else SHORTEST
            if bits not in (None, *member.bits[:1]):
                laws = set(laws) - {15}
            yield name, base | options, laws, f"{name}-{bits}"
        for options in OPTIONS.get(name, []):
            text = "-".join(f"{k}={v}" for k, v in options.items() if not callable(v))
            yield name, base | options, SHORT, f"{name}-{text}"


CASES = list(cases())


def check_member(name, options, laws, shape):
    member = MEMBERS[name]
    one_bit = options.get("bits", member.bits and member.bits[0]) == 1
    fixed = not learns(member.factory(**options))
    check_quantizer(
        member.factory(**options),
        forward=member.forward,
        binary=one_bit and member.centred,
        parameter_free=fixed and member.idempotent,
        anneal=ANNEAL,
        shape=shape,
        laws=laws,
    )


@pytest.mark.parametrize(
    ("name", "options", "laws"), [c[:3] for c in CASES], ids=[c[3] for c in CASES]
)
def test_members_keep_the_laws(name, options, laws):
    check_member(name, options, laws, SHAPE)


@pytest.mark.parametrize("name", MEMBERS)
def test_dense_kernels_keep_the_laws(name):
    _, options, _, _ = next(c for c in CASES if c[0] == name)
    check_member(name, options, SHORTEST, (24, 6))


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        (name, bits)
        for name, member in MEMBERS.items()
        for bits in member.bits
        if bits <= 4
    ],
)
def test_no_member_deploys_float_weights(name, bits):
    """Every channel has two values at least, and no more than the width allows."""
    member, shape = MEMBERS[name], (64, 6)
    known = inspect.signature(member.factory).parameters
    options = {k: v for k, v in RUN.items() if k in known}
    q = member.factory(**options, **({"bits": bits} if "bits" in known else {}))
    w = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    qt = q.hard(q.init(jax.random.key(0), w), w)
    assert qt.bits == bits  # of two ternary levels, one code is not used
    values = np.asarray(dequantize(qt))
    for c in range(shape[-1]):
        assert 1 < len(np.unique(values[:, c])) <= qt.levels.shape[-1]
    assert len(np.unique(qt.codes)) > 2 ** (bits - 1)


@pytest.mark.parametrize("name", MEMBERS)
def test_factories_keep_law_14(name):
    check_docstring(MEMBERS[name].factory)


def test_docstrings_say_what_members_learn():
    for name, member in MEMBERS.items():
        says = "Learned: none" not in " ".join(inspect.getdoc(member.factory).split())
        assert says == learns(member.factory()), name


@pytest.mark.parametrize(
    ("q", "options"),
    [
        (per_channel(binary_ste(per="tensor")), {"forward": "hard"}),
        (straight_through(learned_scale(clip_sign())), {"forward": "hard"}),
        (scale_by_max(tanh_sign(sharpness=SHARPNESS)), {"forward": "soft"}),
    ],
    ids=["per_channel", "learned_scale", "scale_by_max"],
)
def test_combined_quantizers_keep_the_laws(q, options):
    laws = SHORT - {9} if options["forward"] == "soft" else SHORT
    check_quantizer(q, anneal=ANNEAL, shape=SHAPE, laws=laws, **options)


# Quantizers with one fault each; the suite must find it under its number.


def annealed():
    return tanh_sign(sharpness=SHARPNESS)


def with_soft(change, q=None):
    """`q` with `change(soft value, w, step)` as its soft function."""
    q = annealed() if q is None else q

    def soft(qparams, w, *, step, key=None):
        return change(q.soft(qparams, w, step=step, key=key), w, step)

    return q._replace(soft=soft)


def with_hard(change, q=None):
    """`q` with `change(hard value, w)` as its hard function."""
    q = annealed() if q is None else q
    return q._replace(hard=lambda qparams, w: change(q.hard(qparams, w), w))


def with_parameter(init, factor=lambda p: p):
    """A quantizer with one parameter, made by `init(w)`; factor(p) scales soft."""
    q = annealed()
    none = ((), ())

    def soft(qparams, w, *, step, key=None):
        return factor(qparams) * q.soft(none, w, step=step)

    def hard(qparams, w):
        return q.hard(none, w)

    def penalty(qparams, w, *, step):
        return q.penalty(none, w, step=step)

    return Quantizer(lambda key, w: init(w), soft, hard, penalty)


def normalized_without_eps():
    def soft(qparams, w, *, step, key=None):
        return jnp.tanh(SHARPNESS(step) * w / jnp.sqrt(jnp.mean(w * w)))

    return annealed()._replace(soft=soft)


def infinite_slope():
    """A function of the parameter that is 1 with a slope that is not finite."""
    return with_parameter(
        lambda w: jnp.ones((), jnp.float32), lambda p: 1.0 + jnp.sqrt(0.0 * p)
    )


def additive_trick():
    """The common way to write a straight-through; inexact in floating point."""
    q = clip_sign()

    def soft(qparams, w, *, step, key=None):
        return w + jax.lax.stop_gradient(dequantize(q.hard(qparams, w)) - w)

    return q._replace(soft=soft)


def sign_with(compare):
    """`hard` from a comparison, trained straight through."""

    def hard(qparams, w):
        levels = jnp.asarray([-1.0, 1.0], jnp.float32)
        codes = compare(w).astype(jnp.uint8)
        return QTensor(codes, levels, jnp.ones((), jnp.float32))

    return straight_through(clip_sign()._replace(hard=hard))


def not_idempotent():
    q = binary_ste()
    double = lambda qt, w: QTensor(qt.codes, qt.levels, 2 * qt.scale)
    return straight_through(with_hard(double, q))


def random_codes(qt, w):
    flip = np.random.randint(0, 2, w.shape).astype(np.uint8)
    return QTensor(qt.codes ^ flip, qt.levels, qt.scale)


def depends_on_tracing(soft, w, step):
    return soft * 1.01 if isinstance(w, jax.core.Tracer) else soft


def python_step(soft, w, step):
    return soft * (1.0 if int(step) < 10 else 2.0)


def hidden_noise(soft, w, step):
    """Noise from the host at every call, too small for a comparison of floats."""
    noise = jax.pure_callback(
        lambda step: np.float32(1e-6 * np.random.random()),
        jax.ShapeDtypeStruct((), jnp.float32),
        step,
        vmap_method="sequential",
    )
    return soft + noise


def wrong_batching():
    """Codes whose rule for vmap is wrong."""

    @jax.custom_batching.custom_vmap
    def codes(w):
        return (w >= 0).astype(jnp.uint8)

    @codes.def_vmap
    def rule(size, batched, w):
        return (w > 1).astype(jnp.uint8), True

    return sign_with(codes)


def penalty_of(fn):
    q = annealed()
    return q._replace(penalty=lambda qparams, w, *, step: fn(w))


FAULTS = {
    "bfloat16": (1, lambda: with_soft(lambda s, w, step: s.astype(jnp.bfloat16))),
    "flat": (1, lambda: with_soft(lambda s, w, step: s.reshape(-1))),
    "int codes": (
        2,
        lambda: with_hard(
            lambda qt, w: QTensor(qt.codes.astype(jnp.int32), qt.levels, qt.scale)
        ),
    ),
    "code outside": (
        2,
        lambda: with_hard(
            lambda qt, w: QTensor(qt.codes + jnp.uint8(1), qt.levels, qt.scale)
        ),
    ),
    "hard is float": (2, lambda: with_hard(lambda qt, w: dequantize(qt))),
    "infinite scale": (
        2,
        lambda: with_hard(lambda qt, w: QTensor(qt.codes, qt.levels, 1 / w.min())),
    ),
    "no eps": (3, normalized_without_eps),
    "infinite slope": (3, infinite_slope),
    "gradient overflows": (3, lambda: with_soft(lambda s, w, step: s + 0 * w**5)),
    "never approaches": (5, lambda: tanh_sign(sharpness=3.0)),
    "recedes": (5, lambda: tanh_sign(sharpness=exponential(200.0, 0.5, 10))),
    "stops short": (5, lambda: tanh_sign(sharpness=exponential(0.5, 5.0, 10))),
    "python step": (6, lambda: with_soft(python_step)),
    "depends on tracing": (6, lambda: with_soft(depends_on_tracing)),
    "reads values": (7, lambda: with_parameter(lambda w: jnp.float32(float(w.max())))),
    "double parameter": (
        15,
        lambda: with_parameter(lambda w: jnp.ones((), float), lambda p: 1.0),
    ),
    "bfloat16 parameter": (7, lambda: with_parameter(lambda w: jnp.bfloat16(1))),
    "random codes": (8, lambda: with_hard(random_codes)),
    "negative penalty": (10, lambda: penalty_of(lambda w: -jnp.mean(w * w))),
    "penalty of an array": (10, lambda: penalty_of(lambda w: jnp.ones(1))),
    "bfloat16 penalty": (10, lambda: penalty_of(lambda w: jnp.bfloat16(1))),
    "penalty is nan": (10, lambda: penalty_of(lambda w: jnp.mean(w) / w.std())),
    "hidden noise": (12, lambda: with_soft(hidden_noise)),
}
"""Soft members: name: (law that must be found broken, factory)."""

HARD_FAULTS = {
    "additive trick": (4, additive_trick),
    "one ulp": (
        4,
        lambda: with_soft(lambda s, w, step: s * np.float32(1 + 2**-23), binary_ste()),
    ),
    "soft": (4, clip_sign),
    "differs at step 3": (
        4,
        lambda: with_soft(
            lambda s, w, step: jnp.where(step < 3, s, 2 * s), binary_ste()
        ),
    ),
    "not idempotent": (9, not_idempotent),
    "wrong batching": (11, wrong_batching),
    "sign(0) = -1": (13, lambda: sign_with(lambda w: w > 0)),
}


@pytest.mark.parametrize("fault", FAULTS | HARD_FAULTS)
def test_broken_quantizers_are_caught(fault):
    law, factory = (FAULTS | HARD_FAULTS)[fault]
    with pytest.raises(AssertionError, match=rf"^law {law}: "):
        check_quantizer(
            factory(),
            forward="hard" if fault in HARD_FAULTS else "soft",
            anneal=ANNEAL,
            shape=SHAPE,
        )


def test_retracing_is_caught():
    """A quantizer that changes a global setting makes jit trace again."""
    q, setting = binary_ste(), "jax_default_matmul_precision"
    calls = []

    def soft(qparams, w, *, step, key=None):
        calls.append(None)
        jax.config.update(setting, ("float32", "bfloat16")[len(calls) % 2])
        return q.soft(qparams, w, step=step, key=key)

    before = getattr(jax.config, setting)
    try:
        with pytest.raises(AssertionError, match="^law 6: 3 traces"):
            check_quantizer(
                q._replace(soft=soft), forward="hard", shape=SHAPE, laws={6}
            )
    finally:
        jax.config.update(setting, before)


def test_float_member_with_codes_is_caught():
    with pytest.raises(AssertionError, match="^law 2: "):
        check_quantizer(binary_ste(), forward="float", shape=SHAPE)


def undocumented():
    """Forward: sign. Backward: Reference: none."""
    return identity()


def bare():
    return identity()


@pytest.mark.parametrize(("factory", "word"), [(undocumented, "Back"), (bare, "For")])
def test_missing_docstrings_are_caught(factory, word):
    with pytest.raises(AssertionError, match=f"^law 14: .*{word}"):
        check_docstring(factory)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"forward": "other"}, "forward"),
        ({"forward": "hard", "laws": {14}}, "laws"),
        ({"forward": "soft"}, "anneal"),
        ({"forward": "soft", "anneal": (1,)}, "anneal"),
    ],
)
def test_senseless_arguments_are_errors(options, name):
    with pytest.raises(ValueError, match=f"^`{name}`"):
        check_quantizer(identity(), **options)


def test_types_are_inferred():
    """A binary, parameter-free member is one without being told."""
    assert isinstance(binary_ste(), Quantizer)
    q = sign_with(lambda w: w > 0)
    with pytest.raises(AssertionError, match="^law 13: "):
        check_quantizer(q, forward="hard", shape=SHAPE, laws={13})
    check_quantizer(q, forward="hard", binary=False, shape=SHAPE, laws={13})
