"""The estimator of the gradient mismatch against losses whose gradients are known."""

import json
import math

import jax
import numpy as np
import pytest
from tiny import tiny_config

from benchmarks import mismatch, mismatch_page
from quantnet_jax import config as config_lib
from quantnet_jax.training import experiment

RNG = np.random.default_rng(0)
KERNELS = {
    "a": RNG.normal(size=(3, 3)).astype(np.float32),
    "b": 10 * RNG.normal(size=(4, 2)).astype(np.float32),
}
SLOPES = {k: RNG.normal(size=x.shape) for k, x in KERNELS.items()}


def linear(kernels):
    return sum(float(np.sum(SLOPES[k] * x)) for k, x in kernels.items())


def units():
    return {k: np.sqrt(np.mean(x**2)) for k, x in KERNELS.items()}


def test_true_gradient_of_a_smooth_loss():
    found = mismatch.cosine(linear, KERNELS, SLOPES, 0.05, 400, seed=0)
    assert abs(found["cosine"] - 1) < 4 * found["error"] < 0.4
    length = math.sqrt(sum(np.sum((SLOPES[k] * u) ** 2) for k, u in units().items()))
    assert found["used"] == pytest.approx(length, rel=1e-6)
    assert found["length"] == pytest.approx(length, rel=0.2)


def test_wrong_gradients():
    opposite = {k: -x for k, x in SLOPES.items()}
    found = mismatch.cosine(linear, KERNELS, opposite, 0.05, 400, seed=1)
    assert found["cosine"] == pytest.approx(-1, abs=0.15)
    # At a right angle to the slopes, in the coordinates of the estimate.
    other = {k: RNG.normal(size=x.shape) for k, x in KERNELS.items()}
    dot = sum(np.sum(other[k] * SLOPES[k] * u**2) for k, u in units().items())
    norm = sum(np.sum(SLOPES[k] ** 2 * u**2) for k, u in units().items())
    across = {k: other[k] - dot / norm * SLOPES[k] for k in other}
    found = mismatch.cosine(linear, KERNELS, across, 0.05, 400, seed=2)
    assert abs(found["cosine"]) < 4 * found["error"]


def test_a_piecewise_constant_loss_has_the_gradient_of_its_smoothing():
    """Of the sum of sign(w) it is a normal density, known in closed form."""
    spread = 0.5
    sign = lambda kernels: sum(float(np.sign(x).sum()) for x in kernels.values())
    density = {
        k: np.exp(-((x / (spread * units()[k])) ** 2) / 2) / units()[k]
        for k, x in KERNELS.items()
    }
    found = mismatch.cosine(sign, KERNELS, density, spread, 2000, seed=3)
    assert abs(found["cosine"] - 1) < 4 * found["error"] < 0.3
    nothing = {k: np.zeros_like(x) for k, x in KERNELS.items()}  # the true gradient
    assert mismatch.cosine(sign, KERNELS, nothing, spread, 40, seed=4)["cosine"] is None


def test_losses_of_a_straight_through_member():
    config = tiny_config(quantizer__name="clipped_ste")
    exp = experiment.build(config, jax.devices()[:1])
    own, hard = mismatch.make_losses(exp, 20)
    kernels = mismatch.quantized(exp, exp.state.params["model"])
    assert set(kernels) == {"conv1/kernel", "conv2/kernel"}
    rest = (exp.state.params, exp.state.batch_stats, exp.state.step)
    # Its forward pass is the hard one; other kernels give another loss.
    a, b = float(own(kernels, *rest)), float(hard(kernels, *rest))
    assert a == pytest.approx(b, rel=1e-6)
    moved = {k: -x for k, x in kernels.items()}
    assert float(hard(moved, *rest)) != pytest.approx(b, rel=1e-3)


@pytest.mark.parametrize("name", mismatch.METHODS)
def test_configurations_are_valid(name):
    config_lib.check(mismatch.configuration(name, 1.0))


def test_page(tmp_path):
    assert mismatch_page.text(tmp_path).startswith("Not run")
    value = {"cosine": 0.987, "error": 0.012}
    point = {"fraction": 0.5, "own_small": value, "own_large": value}
    point["hard_large"] = {"cosine": None, "error": None}
    methods = {
        "quantnet": {"loss": "soft", "points": [point]},
        "clipped_ste": {"loss": "hard", "points": [point]},
    }
    about = {"directions": 7, "network": "n", "epochs": 1.0, "images": 3}
    about |= {"device": "d", "spreads": {"small": 0.05, "large": 0.3}}
    text = json.dumps(about | {"methods": methods})
    (tmp_path / mismatch_page.FILE).write_text(text)
    lines = mismatch_page.text(tmp_path).splitlines()
    rows = [x for x in lines if x.startswith(("| quantnet", "| clipped"))]
    assert len(rows) == 3 + 2
    assert rows[0] == "| quantnet | own loss, s = 0.05 | 0.99 ± 0.01 |"
    assert rows[2].endswith("| noise |")
