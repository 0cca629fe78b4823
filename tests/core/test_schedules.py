"""Tests of quantnet_jax.core.schedules and of schedules in `quantizers.create`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from quantnet_jax import quantizers
from quantnet_jax.core import schedules

SPEC = {"schedule": "exponential", "start": 0.5, "end": 32.0, "until": 0.5}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("linear", [2.0, 4.0, 6.0, 10.0, 10.0, 10.0]),
        ("exponential", [2.0, 2 * 5**0.25, 2 * 5**0.5, 10.0, 10.0, 10.0]),
    ],
)
def test_values(kind, values):
    schedule = schedules.KINDS[kind](2.0, 10.0, 8)
    steps = [0, 2, 4, 8, 9, 10**9]
    assert schedule(3).dtype == jnp.float32
    np.testing.assert_allclose([schedule(s) for s in steps], values, rtol=1e-6)
    jitted = jax.jit(jax.vmap(schedule))(jnp.asarray(steps))
    np.testing.assert_allclose(jitted, values, rtol=1e-6)


def test_schedules_may_fall():
    np.testing.assert_allclose(schedules.linear(1.0, 0.0, 4)(1), 0.75)
    np.testing.assert_allclose(schedules.exponential(8.0, 2.0, 4)(2), 4.0, rtol=1e-6)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (-1.0, 2.0)])
def test_exponential_needs_positive_ends(ends):
    with pytest.raises(ValueError, match=f"start={ends[0]}, end={ends[1]}"):
        schedules.exponential(*ends, 10)


def test_from_spec():
    schedule = schedules.from_spec(SPEC, 200)
    expected = [0.5, 4.0, 32.0, 32.0]
    np.testing.assert_allclose([schedule(s) for s in (0, 50, 100, 200)], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cosine"}, r"schedule='cosine' \(known: exponential, linear"),
        ({"schedule": "liner"}, "schedule='liner'; did you mean 'linear'"),
        ({"schedule": None}, "schedule=None"),
        ({"start": 0.0}, "start=0.0"),
        ({"until": 0}, "until=0, expected"),
        ({"until": 1.5}, "until=1.5, expected"),
        ({"power": 2}, "schedule.power"),
    ],
)
def test_wrong_specs_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        schedules.from_spec(SPEC | change, 100)


def test_missing_key_is_an_error():
    with pytest.raises(ValueError, match="schedule.until is missing"):
        schedules.from_spec({k: v for k, v in SPEC.items() if k != "until"}, 100)


PIECES = {"schedule": "piecewise", "start": 2.0, "boundaries": [(0.25, 3), (0.5, 5.0)]}


def test_piecewise():
    schedule = schedules.from_spec(PIECES, 200)
    steps = [0, 49, 50, 99, 100, 10**6]
    values = [2.0, 2.0, 3.0, 3.0, 5.0, 5.0]
    assert [schedule(step) for step in steps] == values
    jitted = jax.jit(jax.vmap(schedule))(jnp.asarray(steps))
    assert jitted.dtype == jnp.float32 and jitted.tolist() == values


@pytest.mark.parametrize(
    ("boundaries", "item"),
    [
        ([], r"boundaries=\[\]"),
        (3, "boundaries=3"),
        ([0.5], r"boundaries\[0\]=0.5, expected \(fraction of training, value\)"),
        ([(0.5, 1.0), (0.5, 2.0)], r"boundaries\[1\]=.*ascending"),
        ([(0.5, 1.0), (1.5, 2.0)], r"boundaries\[1\]\[0\]=1.5, expected a number"),
        ([(0.5, -1.0)], r"boundaries\[0\]\[1\]=-1.0, expected a number from 1e-06"),
    ],
)
def test_wrong_pieces_are_errors(boundaries, item):
    spec = PIECES | {"boundaries": boundaries}
    with pytest.raises(ValueError, match=f"tanh_sign.sharpness.{item}"):
        quantizers.create("tanh_sign", total_steps=9, sharpness=spec)


@pytest.mark.parametrize(
    ("name", "fractions", "others"),
    [
        ("cosine_decay_schedule", {"decay_steps": 0.5}, {"init_value": 3.0}),
        (
            "warmup_cosine_decay_schedule",
            {"warmup_steps": 0.1, "decay_steps": 1.0},
            {"init_value": 0.5, "peak_value": 3.0},
        ),
        (
            "polynomial_schedule",
            {"transition_steps": 0.3, "transition_begin": 0.2},
            {"init_value": 0.5, "end_value": 3.0, "power": 2},
        ),
    ],
)
def test_schedules_of_optax(name, fractions, others):
    """Fractions of training become steps; the rest goes to optax as it is."""
    spec = {"schedule": f"optax:{name}"} | fractions | others
    schedule = jax.jit(schedules.from_spec(spec, 200))
    steps = {k: round(200 * v) for k, v in fractions.items()}
    expected = getattr(optax, name)(**steps, **others)
    for step in (0, 5, 20, 60, 199):
        np.testing.assert_allclose(
            schedule(step), expected(jnp.float32(step)), rtol=1e-6
        )
    assert schedule(3).dtype == jnp.float32


def test_pieces_of_optax():
    spec = {"schedule": "optax:piecewise_constant_schedule", "init_value": 1.0}
    schedule = schedules.from_spec(
        spec | {"boundaries_and_scales": [[0.5, 3.0], [0.75, 2.0]]}, 100
    )
    assert [float(schedule(step)) for step in (49, 51, 76)] == [1.0, 3.0, 6.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"schedule": "optax:cosine"}, "schedule='optax:cosine'.*cosine_decay_sched"),
        ({"schedule": "optax:os.system"}, "schedule='optax:os.system'.*known"),
        ({"schedule": "optax:_schedule"}, "schedule='optax:_schedule'.*known"),
        ({"schedule": "os:system"}, "schedule='os:system'.*known"),
        ({"init_value": 1.0}, "decay_steps is missing"),
        ({"init_value": 1.0, "decay_stps": 1}, "decay_stps: .*mean 'decay_steps'"),
        ({"init_value": 1.0, "decay_steps": 1.5}, "decay_steps=1.5, expected a numb"),
        ({"init_value": 1.0, "decay_steps": "x"}, "decay_steps='x' is a str"),
        ({"init_value": "x", "decay_steps": 0.5}, "cosine_decay_schedule"),
    ],
)
def test_wrong_schedules_of_optax_are_errors(spec, message):
    spec = {"schedule": "optax:cosine_decay_schedule"} | spec
    with pytest.raises(ValueError, match=message) as error:
        quantizers.create("tanh_sign", total_steps=9, sharpness=spec)
    assert "\n" not in str(error.value)


def test_create_makes_schedules_of_mappings():
    q = quantizers.create("tanh_sign", total_steps=200, sharpness=SPEC, norm="none")
    w = jnp.asarray([[0.01], [-0.02]])
    for step, v in ((0, 0.5), (50, 4.0), (150, 32.0)):
        soft = q.soft(((), ()), w, step=step)
        np.testing.assert_allclose(soft, np.tanh(v * w), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("quantnett", {}, "unknown quantizer 'quantnett'; did you mean 'quantnet'"),
        ("zzz", {}, r"unknown quantizer 'zzz' \(known: adabin"),
        ("quantnet", {"witdh": 3}, "'quantnet.witdh'; did you mean 'width'"),
        ("identity", {"bits": 3}, "'identity.bits'; 'identity' has no options"),
        ("quantnet", {"bits": 7}, "quantnet.bits=7, expected a whole number from 1"),
        (
            "quantnet",
            {"sharpness": {"schedule": "x"}},
            "quantnet.sharpness.schedule='x'",
        ),
    ],
)
def test_create_names_what_is_wrong(name, options, message):
    with pytest.raises(ValueError, match=message):
        quantizers.create(name, **options)


def test_names_are_those_of_the_list():
    assert quantizers.names() == sorted(quantizers.MEMBERS)
