"""Gradient mismatch against known gradients; launches of a program against its text."""

import math

import jax
import numpy as np
import pytest
from tiny import tiny_config

from quantnet_jax.analysis import cost, mismatch
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


HLO = """HloModule jit_f, entry_computation_layout={()->f32[]}

%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %s = f32[2]{0} sine(%p)
}

%command_buffer (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %k1 = f32[2]{0} fusion(%a), kind=kLoop, calls=%fused
  ROOT %k2 = (f32[2]{0}, s8[4]{0}) custom-call(%k1), custom_call_target="__cublas$gemm"
}

%body (t: (s32[], f32[2])) -> (s32[], f32[2]) {
  %t = (s32[], f32[2]{0}) parameter(0)
  %x = f32[2]{0} get-tuple-element(%t), index=1
  %y = f32[2]{0} call(%x), to_apply=%command_buffer
  %z = f32[2]{0} fusion(%y), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[2]{0}) tuple(%z, %z)
}

%cond (t.1: (s32[], f32[2])) -> pred[] {
  %t.1 = (s32[], f32[2]{0}) parameter(0)
  ROOT %c = pred[] constant(false)
}

ENTRY %main (q: f32[2]) -> f32[2] {
  %q = f32[2]{0} parameter(0)
  %w = (s32[], f32[2]{0}) while(%q), condition=%cond, body=%body
  ROOT %o = f32[2]{0} copy(%q)
}
"""


def test_launches_are_those_of_the_loop_over_steps():
    assert cost.launches(HLO) == 3
    alone = HLO.replace("%w = (s32[], f32[2]{0}) while", "%w = f32[2]{0} sort")
    assert cost.launches(alone) == 2  # the sort and the copy


def test_facts_of_a_compiled_program():
    x = np.ones(1000, np.float32)
    found = cost.facts(jax.jit(lambda x: (x * 2).sum()).lower(x).compile())
    assert found["memory"] >= 4 * 1000 and found["launches"] >= 1
