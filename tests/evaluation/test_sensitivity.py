"""Sensitivity of layers, and the choice of widths within a budget."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from util import normal

from quantnet_jax.analysis import sensitivity
from quantnet_jax.analysis.sensitivity import Option
from quantnet_jax.quantizers import create


def test_each_layer_is_quantized_alone():
    params = {n: {"kernel": jnp.asarray(normal(i, (8, 4)))} for i, n in enumerate("ab")}
    given = {f"{b} bits": create("lsq", bits=b) for b in (2, 8)}
    seen = []

    def score(tree):
        seen.append({n: np.asarray(tree[n]["kernel"]) for n in "ab"})
        return float(
            -sum(np.abs(seen[-1][n] - params[n]["kernel"]).sum() for n in "ab")
        )

    found = sensitivity.measure(score, params, ["a/kernel", "b/kernel"], given)
    for (path, label), tree in zip(
        itertools.product(("a/kernel", "b/kernel"), given), seen, strict=True
    ):
        name, other = path[0], "ba"[path[0] == "b"]
        np.testing.assert_array_equal(tree[other], params[other]["kernel"])
        values = len(np.unique(tree[name]))
        assert values <= 2 ** int(label[0])
        bits = int(label[0])
        assert found[path][label].nbytes == 32 * bits // 8 + 4 * (2**bits + 1)
    for of_layer in found.values():
        assert of_layer["8 bits"].score > of_layer["2 bits"].score
    with pytest.raises(ValueError, match="'c' is none of the network's: a/kernel"):
        sensitivity.measure(score, params, ["c"], given)


def test_the_choice_is_the_best_of_all():
    rng = np.random.default_rng(0)
    options = {
        f"layer{i}": {
            f"{b}": Option(0.9 - float(rng.exponential(0.1)) / b, int(b * size))
            for b in (1, 2, 4)
        }
        for i, size in enumerate(rng.integers(10, 100, 6))
    }
    labels = list(itertools.product(("1", "2", "4"), repeat=6))

    def of(choice):
        picked = [options[p][x] for p, x in zip(options, choice, strict=True)]
        loss = sum(max(0, 0.88 - o.score) for o in picked)
        return loss, sum(o.nbytes for o in picked)

    all_of = [of(x) for x in labels]
    for budget in (400, 700, 10_000):
        got = sensitivity.propose(options, 0.88, budget)
        assert of(got.labels.values()) == pytest.approx((got.loss, got.nbytes))
        assert got.nbytes <= budget
        assert got.loss == pytest.approx(min(x for x, b in all_of if b <= budget))
    least = min(b for _, b in all_of)
    with pytest.raises(ValueError, match=f"budget=10 bytes, expected {least}"):
        sensitivity.propose(options, 0.88, 10)
    rows = {b: {"quantizer": "lsq", "bits": int(b)} for b in ("1", "2", "4")}
    made = sensitivity.rules(got, rows)
    assert made[0] == {"pattern": "layer0", **rows[got.labels["layer0"]]}
