"""Pruning: masks against NumPy, sparse quantizers against their definition, runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import outcome, tiny_config
from util import normal

import quantnet_jax as qn
from quantnet_jax import config, quantizers
from quantnet_jax.core import pruning
from quantnet_jax.core.packing import pack
from quantnet_jax.core.qtensor import dequantize, validate
from quantnet_jax.core.schedules import from_spec
from quantnet_jax.deploy.format import sparse as sparse_file
from quantnet_jax.deploy.summary import summarize
from quantnet_jax.training import parts
from quantnet_jax.trees import tree


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.77])
def test_the_mask_spares_the_largest(rate):
    params = {"a": normal(0, (3, 3, 2, 5)), "b": normal(1, (7,))}
    found = pruning.magnitude_mask(jax.tree.map(jnp.asarray, params), rate)
    for name, w in params.items():
        count = round(rate * w.size)
        wanted = np.ones(w.size, bool)
        wanted[np.argsort(np.abs(w).ravel())[:count]] = False
        np.testing.assert_array_equal(found[name], wanted.reshape(w.shape))


def values(spec, steps):
    return [float(from_spec(spec, 100)(step)) for step in steps]


def test_schedules():
    spec = pruning.dense_sparse_dense(0.4, start=0.3, end=0.8)
    found = values(spec, (0, 29, 30, 79, 80, 100))
    np.testing.assert_allclose(found, (0, 0, 0.4, 0.4, 0, 0), rtol=1e-6)
    # Intervals from 20, 40, 60 and 80 on, of which 15 steps are sparse.
    spec = pruning.iterative_hard_thresholding(0.4, first=0.1)
    for j, start in enumerate((20, 40, 60, 80)):
        wanted = 0.1 + 0.3 * j / 3
        found = values(spec, (start - 1, start, start + 14, start + 15, start + 19))
        np.testing.assert_allclose(found, (0, wanted, wanted, 0, 0), atol=1e-6)


@pytest.mark.parametrize("name, bits", [("binary_ste", 2), ("lq_nets", 3), ("lsq", 3)])
def test_pruned_weights_are_zero_and_others_as_ever(name, bits, key):
    options = {} if name == "binary_ste" else {"bits": 2}
    q = quantizers.create(name, **options)
    sparse = pruning.sparse(q, 0.5)
    w = jnp.asarray(normal(0, (3, 3, 4, 6)))
    qparams = sparse.init(key, w)
    _, pruned = sparse.project(qparams, w, step=jnp.int32(0))
    zero = np.asarray(pruned) == 0
    assert zero.sum() == w.size // 2
    np.testing.assert_array_equal(np.asarray(pruned)[~zero], np.asarray(w)[~zero])
    made = validate(sparse.hard(qparams, pruned))
    assert made.bits == bits and (np.diff(made.levels, axis=-1) >= 0).all()
    own = np.asarray(dequantize(q.hard(qparams, pruned)))
    np.testing.assert_array_equal(dequantize(made), np.where(zero, 0, own))
    soft = lambda rate, w: pruning.sparse(q, rate).soft(qparams, w, step=jnp.int32(1))
    np.testing.assert_array_equal(soft(0.5, pruned), np.where(zero, 0, own))
    grad = lambda rate: jax.grad(lambda w: jnp.sum(soft(rate, w) ** 2 + w))(pruned)
    ones = np.ones(zero.sum())
    np.testing.assert_array_equal(np.asarray(grad(0.5))[zero], ones)
    assert name != "binary_ste" or (np.asarray(grad(0.0))[zero] != ones).all()


def test_zeros_stay_the_smallest():
    q = pruning.sparse(quantizers.create("identity"), 0.3)
    w = jnp.asarray(normal(0, (5, 11)))
    _, once = q.project((), w, step=jnp.int32(0))
    moved = once * (1 + 0.1 * normal(1, (5, 11)))
    _, twice = q.project((), moved, step=jnp.int32(1))
    np.testing.assert_array_equal(twice, moved)
    np.testing.assert_array_equal(q.hard((), once), once)


def test_what_cannot_be_sparse():
    with pytest.raises(ValueError, match="cannot be combined with metaquant"):
        pruning.sparse(quantizers.create("metaquant"), 0.5)
    wide = pruning.sparse(quantizers.create("dorefa", bits=8), 0.5)
    w = jnp.zeros((3, 3, 2, 2))
    with pytest.raises(ValueError, match="256 levels has no room"):
        jax.eval_shape(lambda k: wide.hard(wide.init(k, w), w), jax.random.key(0))


def test_a_run_with_the_key_alone():
    found = outcome(tiny_config(quantizer__name="binary_ste", sparsity=0.75), 3)
    weights = tree.flatten(found["state"].params["model"])
    for path, layer in found["layers"].items():
        share = np.mean(weights[path] == 0)
        assert share == pytest.approx(0.75, abs=0.01)
        assert layer["bits"] == 2 and layer["values"][0] == 3
        assert np.mean(found["codes"][path] == 1) == share  # the level 0
    assert found["scores"]["gap"] == 0 and len(found["layers"]) == 2
    assert not any((w == 0).any() for p, w in weights.items() if "stem/k" in p)


def test_the_schedule_of_a_saved_configuration():
    c = tiny_config(quantizer__name="identity")
    c.sparsity = pruning.dense_sparse_dense(0.5)
    saved = ConfigDict(json.loads(c.to_json()))
    config.check(saved)
    w = jnp.asarray(normal(0, (4, 6)))
    for step, zeros in ((29, 12), (89, 0)):  # rates of the steps after them
        found = []
        for given in (c, saved):
            (rule,) = parts.make_rules(given, 100)
            found.append(rule.quantizer.project((), w, step=jnp.int32(step))[1])
        np.testing.assert_array_equal(*found)
        assert np.sum(np.asarray(found[1]) == 0) == zeros


@pytest.mark.parametrize(
    "value, message",
    [
        (1.0, "sparsity=1.0, expected a number from 0 and below 1"),
        ({"schedule": "linear", "start": 0.0}, "sparsity.end is missing"),
        ({"schedule": "linear", "start": 0, "end": 2, "until": 1}, "sparsity.end=2"),
    ],
)
def test_a_wrong_rate_is_refused(value, message):
    c = tiny_config(quantizer__name="binary_ste")
    c.sparsity = value
    with pytest.raises(ValueError, match=message):
        config.check(c)


def sparse_tensor(seed=0, share=0.6):
    """Binary weights of which a share is 0, as a run leaves them."""
    w = normal(seed, (3, 3, 5, 7))
    w[np.random.default_rng(seed).random(w.shape) < share] = 0.0
    q = pruning.sparse(quantizers.create("binary_ste"), 0.5)
    return q.hard((), jnp.asarray(w))


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_sparse_tensors_are_smaller_in_a_file(tmp_path, share):
    qt = sparse_tensor(share=share)
    path = tmp_path / "model.safetensors"
    sizes = qn.save(path, {"w": qt}, apply=lambda tree: tree["w"], example=())
    loaded = qn.load(path, apply=lambda tree: tree["w"])
    np.testing.assert_array_equal(loaded(), dequantize(qt))
    pruned = int(np.sum(np.asarray(dequantize(qt)) == 0))
    tables = 4 * (qt.levels.size + qt.scale.size)
    wanted = min(-(-315 // 8) + -(-(315 - pruned) // 8), -(-2 * 315 // 8))
    assert sizes["payload"] == wanted + tables
    text = str(summary := summarize(lambda tree, x: x, {"w": qt}, jnp.ones(1)))
    assert summary.payload == sizes["payload"]
    assert (f"{pruned}, {pruned / 315:.1%} of the weights" in text) == (share > 0)


def test_damaged_masks(tmp_path):
    qt = sparse_tensor()
    codes, levels = pack(qt.codes, 2), np.asarray(qt.levels)
    made = sparse_file.split(np.asarray(codes), levels, 2, qt.shape)
    assert made is not None
    args = [made["mask"], made["codes"], made["zero"], 3, 315]
    np.testing.assert_array_equal(sparse_file.join(*args), codes)
    for number, wrong, message in (
        (0, made["mask"][1:], "mask of"),
        (0, np.full_like(made["mask"], 255), "codes of"),
        (1, made["codes"][1:], "codes of"),
        (2, 3, "'zero' is 3, expected a code below 3"),
        (2, "0", "'zero' is '0'"),
    ):
        changed = [*args[:number], wrong, *args[number + 1 :]]
        with pytest.raises(ValueError, match=message):
            sparse_file.join(*changed)
