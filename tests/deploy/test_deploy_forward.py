"""Networks with packed weights: unpacked layer by layer, or products as bit counts."""

import dataclasses
import re

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from artifacts import SPEC, make_params
from tiny import tiny_config
from util import binary_qtensor, noisy

import quantnet_jax
from quantnet_jax import activations, deploy, export, models
from quantnet_jax.deploy import forward
from quantnet_jax.deploy.format.packed import Packed, Words, is_packed, unpack_tree
from quantnet_jax.deploy.predictor import make_predictor
from quantnet_jax.models.layers import Conv, subsample_pad
from quantnet_jax.training import experiment
from quantnet_jax.trees.tree import dequantize_tree

pytestmark = pytest.mark.optimized

OPTIONS = {"shortcut": "B", "bi_real": True, "act": "hardtanh", "width": 4}
W1A1 = deploy.NetworkSpec(
    model={"name": "resnet8", **OPTIONS},
    outputs=3,
    shape=(8, 8, 3),
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    activation={"name": "approx_sign"},
)


@pytest.fixture(scope="module")
def network():
    """(hard tree, packed tree, images) of `W1A1`; every convolution but the stem's is
    binary, with a scale for each output channel."""
    model = models.create("resnet8", outputs=3, folded=True, **OPTIONS)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    rng = np.random.default_rng(0)

    def leaf(key, x):
        name = jax.tree_util.keystr(key, simple=True, separator="/")
        if len(x.shape) == 4 and name != "stem/kernel":
            scale = rng.normal(size=(1, 1, 1, x.shape[-1])) / np.sqrt(9 * x.shape[-2])
            return binary_qtensor(x.shape, len(name), scale.astype(np.float32))
        return jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    hard = jax.tree_util.tree_map_with_path(leaf, shapes["params"])
    images = rng.integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    both = jax.jit(lambda x: (dequantize_tree(x), deploy.pack_tree(x)))(hard)
    return *both, images


@pytest.fixture(scope="module")
def predictors(network):
    """{value of `popcount`: predictor}."""
    return {x: make_predictor(network[1], W1A1, popcount=x) for x in (False, True)}


def kinds(predictor):
    """{path of a layer: Packed or Words}."""
    leaves = jax.tree_util.tree_leaves_with_path(predictor.params, is_leaf=is_packed)
    return {
        jax.tree_util.keystr(key[:-1], simple=True, separator="/"): type(x)
        for key, x in leaves
        if is_packed(x)
    }


def test_bits_are_counted_where_inputs_are_signs(predictors):
    counting = {k for k, kind in kinds(predictors[True]).items() if kind is Words}
    layers = {f"stage{i}_block0/conv{j}" for i in (1, 2, 3) for j in (1, 2)}
    assert counting == layers == set(predictors[False].countable)
    unpacked = set(kinds(predictors[False]).items())
    shortcuts = {f"stage{i}_block0/shortcut" for i in (2, 3)}  # their inputs are real
    assert unpacked == {(k, Packed) for k in layers | shortcuts}


def test_counting_network_is_the_hard_network(network, predictors):
    hard, _, images = network
    wanted = jax.jit(predictors[False].apply)(hard, images)
    assert len(set(np.asarray(wanted).argmax(-1))) > 1
    for predictor in predictors.values():
        logits = predictor(images)
        np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(logits.argmax(-1), wanted.argmax(-1))


def test_words_hold_the_weights(network, predictors):
    hard, packed, _ = network
    counting = predictors[True].params
    values, codes = jax.jit(lambda a, b: (deploy.float_tree(a), unpack_tree(b)))(
        counting, packed
    )
    chex.assert_trees_all_equal(values, hard)
    for path in predictors[True].countable:
        block, layer = path.split("/")
        found, qt = (x[block][layer]["kernel"] for x in (counting, codes))
        words = np.zeros(found.words.shape, np.uint32)
        for k in range(qt.shape[-2]):
            bit = np.asarray(qt.codes)[..., k, :].astype(np.uint32) << np.uint32(k % 32)
            words[..., k // 32, :] |= bit
        np.testing.assert_array_equal(found.words, words)
        assert found.words.dtype == jnp.uint32 and found.scale.dtype == jnp.float32


def test_inner_sums_are_integers():
    # So every device rounds one number, whatever the order of its sums.
    rng = np.random.default_rng(0)
    qt = binary_qtensor(
        (3, 3, 70, 5), scale=rng.normal(size=(1, 1, 1, 5)).astype(np.float32)
    )
    signs = rng.choice(np.float32([-1, 1]), (2, 6, 6, 70))
    layer = Conv(5, strides=2, folded=True, quantized_input=True)
    weights = np.asarray(qt.levels)[np.asarray(qt.codes)] * np.asarray(qt.scale)
    y = layer.apply({"params": {"kernel": jnp.asarray(weights)}}, jnp.asarray(signs))
    padded = np.pad(signs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    codes = 2 * np.asarray(qt.codes, int) - 1
    for i, j in np.ndindex(3, 3):
        window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        sums = np.einsum("nhwc,hwcd->nd", window.astype(int), codes)
        wanted = sums.astype(np.float32) * np.asarray(qt.scale)[0, 0]
        np.testing.assert_array_equal(y[:, i, j], wanted)
    zeros = layer.apply({"params": {"kernel": jnp.zeros_like(weights)}}, signs)
    assert not zeros.any()


def test_large_weights_are_unpacked_after_the_layer_before(network, monkeypatch):
    hard, packed, images = network
    predictor = make_predictor(packed, W1A1)
    # A new function each time, since traces are remembered.
    traced = lambda: jax.make_jaxpr(lambda *args: predictor.apply(*args))
    text = lambda: str(traced()(packed, images))
    assert " inf:" not in text()
    monkeypatch.setattr(forward, "CACHE", 0)
    assert " inf:" in text()
    logits, wanted = (
        jax.jit(lambda *args: predictor.apply(*args))(x, images) for x in (packed, hard)
    )
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
    assert traced()(packed, images[:0]).out_avals[0].shape == (0, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"activation": None},
        {"activation": {"name": "dorefa", "bits": 1}},
        {"activation": {"name": "pact", "bits": 1}},
        {"dtype": "bfloat16"},
    ],
)
def test_other_networks_do_not_count(network, change):
    params = network[1]
    if change.get("activation") == {"name": "pact", "bits": 1}:
        params = dict(params)
        for i in (1, 2, 3):
            qparams = {"qparams": jnp.ones(())}
            inputs = {f"conv{j}_input": qparams for j in (1, 2)}
            params[f"stage{i}_block0"] = params[f"stage{i}_block0"] | inputs
    spec = dataclasses.replace(W1A1, **change)
    chosen = dataclasses.replace(spec, popcount=True)
    assert make_predictor(params, chosen).countable == ()
    with pytest.raises(ValueError, match="`popcount` is True, but no convolution"):
        make_predictor(params, spec, popcount=True)


def test_other_weights_are_not_counted():
    spec = dataclasses.replace(SPEC, activation={"name": "sign_ste"})
    params = {k: v for k, v in make_params().items() if "input" not in k}
    predictor = make_predictor(deploy.pack_tree(params), spec)
    assert predictor.countable == ("conv1",)  # conv2 has three levels


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("sign_ste", {}, True),
        ("approx_sign", {}, True),
        ("dorefa", {"bits": 1}, False),
        ("lsq", {"bits": 1}, False),
    ],
)
def test_the_sign_is_known_by_its_values(name, options, found):
    quantizer = activations.create(name, **options)
    assert forward.gives_signs(quantizer) is found


def test_load_counts_where_export_found_the_same_classes(tmp_path, monkeypatch, capsys):
    config = tiny_config(activation__name="sign_ste")
    exp = experiment.build(config, jax.devices()[:1])
    state = exp.state
    params = noisy(jax.device_get(state.params))
    stats = jax.tree.map(lambda x: np.abs(x) + 0.1, noisy(state.batch_stats))
    state = state._replace(params=params, batch_stats=stats)
    predict = lambda: exp.scoring.predict(
        dequantize_tree(jax.device_get(exp.deployed(state)))
    )
    params["model"]["head"]["bias"] -= predict().mean(0)
    hard = predict()
    assert len(set(hard.argmax(-1))) > 1
    made = export.export_state(exp, state, tmp_path)
    assert made["differ"] == made["popcount"] == 0
    path = tmp_path / "model.safetensors"
    assert made["file"] == path.stat().st_size
    default = quantnet_jax.load(path)
    assert default.spec.popcount is True
    assert set(kinds(default).values()) == {Words}
    logits = np.concatenate([default(x) for x in export.test_images(exp.feed)])
    np.testing.assert_array_equal(logits.argmax(-1), hard.argmax(-1))
    np.testing.assert_allclose(logits, hard, rtol=1e-4, atol=1e-4)
    assert set(kinds(quantnet_jax.load(path, popcount=False)).values()) == {Packed}
    # Not measured anywhere else.
    monkeypatch.setattr(forward, "on_cpu", lambda params: False)
    assert set(kinds(quantnet_jax.load(path)).values()) == {Packed}
    monkeypatch.undo()

    # One class that differs is enough for the float products.
    load = deploy.load

    def other(path, **options):
        found = load(path, **options)
        if not options.get("popcount"):
            return found
        turned = lambda *args: jnp.roll(found.run(*args), 1, axis=-1)
        return dataclasses.replace(found, run=turned)

    monkeypatch.setattr(deploy.export, "load", other)
    made = export.export_state(exp, state, tmp_path)
    assert made["differ"] == 0 and made["popcount"] == made["examples"]
    monkeypatch.undo()
    assert set(kinds(quantnet_jax.load(path)).values()) == {Packed}


def test_what_popcount_may_be(tmp_path):
    with pytest.raises(ValueError, match="`popcount` is 'yes', expected 'auto', True"):
        quantnet_jax.load(tmp_path / "no", popcount="yes")


def test_shortcut_gathers_nothing_where_the_batch_size_is_symbolic():
    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, 8, 7, 4), jnp.float32)
    program = jax.export.export(jax.jit(lambda x: subsample_pad(x, 2, 6)))(image)
    found = set(re.findall(r"stablehlo\.(\w*gather|\w*slice)", program.mlir_module()))
    assert found == {"real_dynamic_slice"}
    x = np.random.default_rng(0).normal(size=(3, 8, 7, 4)).astype(np.float32)
    y = np.asarray(program.call(x))
    np.testing.assert_array_equal(y[..., :4], x[:, ::2, ::2])
    assert y.shape == (3, 4, 4, 6) and not y[..., 4:].any()
