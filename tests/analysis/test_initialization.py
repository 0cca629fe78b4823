"""What the study of initializers measures, against closed forms."""

import jax
import numpy as np
import pytest

from quantnet_jax.analysis import initialization as study


def test_statistics_of_a_layer():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 32, 1, 32))
    found = study.layer_statistics(w)
    assert found["range"] == pytest.approx(w.max() - w.min())
    assert found["kurtosis"] == pytest.approx(3.0, abs=0.1)
    flat = np.linspace(-1.0, 1.0, 101)[:, None] * np.array([[1.0, 0.5]])
    found = study.layer_statistics(flat)
    assert found["channel_precision"] == pytest.approx(0.75)
    assert study.layer_statistics(np.ones((3, 4)))["range"] == 0.0


@pytest.mark.parametrize("name", study.INITIALIZERS)
def test_initializers_redraw_kernels_alone(name):
    params = {
        "conv": {"kernel": np.zeros((3, 3, 8, 16), np.float32)},
        "bias": np.ones(4),
    }
    made = study.initialize(params, study.INITIALIZERS[name], jax.random.key(0))
    other = study.initialize(params, study.INITIALIZERS[name], jax.random.key(1))
    assert made["bias"] is params["bias"]
    w = np.asarray(made["conv"]["kernel"])
    assert w.shape == (3, 3, 8, 16) and (w != np.asarray(other["conv"]["kernel"])).any()
    deviation = {"he": (2 / 72) ** 0.5, "lecun": (1 / 72) ** 0.5,
                 "scaled": (18 / 72) ** 0.5, "truncated": 0.05 * 0.88}  # fmt: skip
    if name in deviation:
        assert np.std(w) == pytest.approx(deviation[name], rel=0.1)


def test_rank_correlation_sees_order_within_groups_alone():
    rng = np.random.default_rng(1)
    x = rng.standard_normal(60)
    groups = ["a"] * 30 + ["b"] * 30
    shifted = np.exp(x) + 100.0 * (np.arange(60) >= 30)
    found = study.rank_correlation(x, shifted, groups)
    assert found["value"] == pytest.approx(1.0) and found["low"] > 0.99
    assert study.rank_correlation(x, -shifted, groups)["value"] == pytest.approx(-1.0)
    noise = study.rank_correlation(x, rng.standard_normal(60), groups)
    assert noise["low"] < 0.0 < noise["high"] and noise["networks"] == 60
