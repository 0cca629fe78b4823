"""Tests of quantnet_jax.core.schedules and of schedules in `quantizers.create`."""

import jax
import jax.numpy as jnp
import numpy as np
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
        ({"schedule": "cosine"}, "schedule is 'cosine', expected one of"),
        ({"schedule": None}, "schedule is None"),
        ({"start": 0.0}, "start=0.0"),
        ({"until": 0}, "until=0, expected"),
        ({"until": 1.5}, "until=1.5, expected"),
        ({"power": 2}, "'power'"),
    ],
)
def test_wrong_specs_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        schedules.from_spec(SPEC | change, 100)


def test_missing_key_is_an_error():
    with pytest.raises(ValueError, match="'until'"):
        schedules.from_spec({k: v for k, v in SPEC.items() if k != "until"}, 100)


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
        ("quantnet", {"witdh": 3}, "no option 'witdh'; did you mean 'width'"),
        ("identity", {"bits": 3}, r"no option 'bits' \(known: none\)"),
        ("quantnet", {"bits": 7}, "`bits` is 7"),
        (
            "quantnet",
            {"sharpness": {"schedule": "x"}},
            "'quantnet', option 'sharpness': schedule is 'x'",
        ),
    ],
)
def test_create_names_what_is_wrong(name, options, message):
    with pytest.raises(ValueError, match=message):
        quantizers.create(name, **options)


def test_names_are_those_of_the_list():
    assert quantizers.names() == sorted(quantizers.MEMBERS)
