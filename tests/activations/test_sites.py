"""Tests of the sites of activation quantizers: step, key, running state, penalty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_net import images, paths, randomized
from tiny import tiny_config, train

from quantnet_jax import activations, deploy, export, models
from quantnet_jax.activations.sites import QuantizeActivation
from quantnet_jax.core.combine import uniform_levels
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.quantizer import Quantizer, no_params
from quantnet_jax.training import experiment

MUTABLE = ["batch_stats", "penalty"]


def soft_sign():
    """tanh(step x), whose sign ships; penalty: mean |x|; noise where there is a key."""

    def soft(qparams, x, *, step, key=None):
        noise = 0.0 if key is None else jax.random.normal(key, x.shape)
        return jnp.tanh(jnp.asarray(step, jnp.float32) * x) + noise

    def hard(qparams, x):
        codes = (x >= 0).astype(jnp.uint8)
        return QTensor(codes, uniform_levels(1), jnp.ones((), jnp.float32))

    penalty = lambda qparams, x, *, step: jnp.mean(jnp.abs(x))
    return Quantizer(no_params, soft, hard, penalty)


def training(variables, step, **more):
    """Variables of one training step."""
    return {**variables, "training": {"step": jnp.asarray(step), **more}}


def test_a_scheduled_quantizer_gets_the_step_and_ships_its_hard_values():
    site, x = QuantizeActivation(soft_sign()), images(0, (4, 2, 2, 3))
    for step in (0, 3):
        y, updated = site.apply(training({}, step), x, mutable=MUTABLE)
        np.testing.assert_allclose(y, np.tanh(step * np.asarray(x)), rtol=1e-5)
        np.testing.assert_allclose(updated["penalty"]["sum"], np.abs(x).mean(), 1e-5)
    np.testing.assert_array_equal(site.apply({}, x), np.where(x >= 0, 1, -1))
    assert site.apply({}, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_sites_draw_different_numbers():
    x, key = jnp.ones((2, 8, 8, 2)), jax.random.key(0)
    model = models.create("small", outputs=2, act_quant=soft_sign(), act="identity")
    variables = randomized(model, x)

    @jax.jit
    def noise(key):
        out = {}

        def note(path, x, quantize):
            out[path] = quantize(jnp.zeros_like(x))
            return out[path]

        with activations.sites.replace_quantizers(note):
            model.apply(training(variables, 0, key=key), x, mutable=MUTABLE)
        return out

    one, two, other = noise(key), noise(key), noise(jax.random.key(1))
    assert set(one) == {"conv1_input", "conv2_input"}
    np.testing.assert_array_equal(one["conv1_input"], two["conv1_input"])
    assert np.abs(one["conv1_input"] - one["conv2_input"]).min() > 0
    assert np.abs(one["conv1_input"] - other["conv1_input"]).min() > 0


def test_devices_draw_different_numbers_and_share_running_state():
    q = activations.create("learned_clip", warmup=2)
    noisy = q._replace(soft=lambda c, x, *, step, key: jax.random.normal(key, x.shape))
    site = QuantizeActivation(noisy, axis_name="batch")
    alone = QuantizeActivation(q)
    x = jnp.stack([images(i, (3, 2, 2, 2)) for i in range(4)])
    variables = alone.init(jax.random.key(0), x[0])
    run = functools.partial(site.apply, mutable=MUTABLE)
    given = training(variables, 0, key=jax.random.key(1))
    y, updated = jax.pmap(run, axis_name="batch", in_axes=(None, 0))(given, x)
    y = jax.device_get(y)
    assert all(np.abs(y[0] - y[i]).min() > 0 for i in (1, 2, 3))
    clip = float(variables["params"]["qparams"])
    running = jax.device_get(updated["batch_stats"]["qparams"])
    expected = np.abs(x).max((1, 2, 3, 4)).mean() - clip
    np.testing.assert_allclose(running, np.full(4, expected), rtol=1e-5, atol=1e-6)


def test_running_state_is_calibrated_and_then_frozen():
    q = activations.create("learned_clip", bits=2, warmup=3)
    site, seen = QuantizeActivation(q), []
    x = images(0, (4, 2, 2, 3))
    variables = dict(site.init(jax.random.key(0), x))
    assert float(variables["batch_stats"]["qparams"]) == 0.0
    for step in range(5):
        batch = (step + 1.0) * images(step + 1, (4, 2, 2, 3))
        seen.append(float(np.abs(batch).max()))
        _, updated = site.apply(training(variables, step), batch, mutable=MUTABLE)
        variables["batch_stats"] = updated["batch_stats"]
    mean = np.mean(seen[:3])
    clip = lambda v: float(v["params"]["qparams"] + v["batch_stats"]["qparams"])
    assert clip(variables) == pytest.approx(mean, rel=1e-5)
    # What ships: one parameter, without running state.
    folded = models.fold(variables["params"], variables["batch_stats"])
    assert float(folded["qparams"]) == clip(variables)
    y = QuantizeActivation(q, folded=True).apply({"params": folded}, x)
    np.testing.assert_array_equal(y, site.apply(variables, x))
    assert len(np.unique(y)) > 1
    # The statistics of BatchNorm are computed again without 'training'.
    _, updated = site.apply(variables, 9.0 * x, mutable=MUTABLE)
    assert updated["batch_stats"] == variables["batch_stats"]


def test_gradients_of_a_calibrated_clip_wait():
    q = activations.create("learned_clip", bits=2, warmup=3)
    site, x = QuantizeActivation(q), images(0, (4, 2, 2, 3))
    variables = site.init(jax.random.key(0), x)

    def slope(step):
        def loss(params):
            given = training({**variables, "params": params}, step)
            return jnp.sum(site.apply(given, 2.0 * x, mutable=MUTABLE)[0])

        return float(jax.grad(loss)(variables["params"])["qparams"])

    assert slope(2) == 0.0 and slope(3) != 0.0


@pytest.mark.parametrize("bi_real", [False, True])
def test_residual_and_output_sites(bi_real):
    q, x = activations.create("learned_clip", bits=2, signed=True), images()
    sites = ["residual", "output"]
    model = models.create(
        "resnet8", outputs=3, width=4, bi_real=bi_real, act_quant=q, sites=sites
    )
    variables = randomized(model, x)
    learned = {p for p in paths(variables["params"]) if p.endswith("qparams")}
    sums = ("residual1", "residual2") if bi_real else ("residual",)
    blocks = {f"stage{s}_block0/{name}/qparams" for s in (1, 2, 3) for name in sums}
    assert learned == blocks | {"output/qparams"}
    run = lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=True)
    outputs, state = jax.jit(run)(variables, x)
    assert len(np.unique(outputs)) <= 4
    values = paths(state["intermediates"])
    both = values[f"stage1_block0/{sums[0]}/__call__/0"]
    assert both.shape[-1] == 8 and 2 <= len(np.unique(both)) <= 4
    # Both terms of the sum, whose values are multiples of one step.
    act = np.maximum(np.asarray(both[..., :4]) + np.asarray(both[..., 4:]), 0)
    if not bi_real:
        np.testing.assert_array_equal(values["stage1_block0/__call__/0"], act)


def test_a_clip_is_trained_on_two_devices_and_ships(tmp_path):
    config = tiny_config(
        quantizer__name="binary_ste",
        activation__name="learned_clip",
        activation__sites=("input", "output"),
        activation__learned_clip={"bits": 4, "signed": True, "warmup": 2},
        recalibration_batches=2,
        ema_decay=0.5,
    )
    config.activation.learned_clip.calibration = 0.25
    exp = experiment.build(config, jax.devices()[:2])
    start = jax.device_get(exp.state)
    state, metrics = train(exp, 2)
    assert metrics["penalty"] == 0.0  # while it is calibrated
    clip = lambda s, name: np.asarray(s.params["model"][name]["qparams"])
    for name in ("conv1_input", "output"):
        assert clip(state, name) == clip(start, name)
        assert state.batch_stats[name]["qparams"] != 0.0
    calibrated = jax.device_get(state.batch_stats)
    batch = next(exp.train_batches(2))
    state, metrics = exp.train_step(state, exp.train_data, batch)
    assert float(metrics["penalty"]) > 0.0
    for name in ("conv1_input", "output"):
        assert clip(state, name) != clip(start, name)
        assert state.batch_stats[name]["qparams"] == calibrated[name]["qparams"]
    scores, _, _ = exp.evaluate(state)
    assert scores["gap"] == 0.0 and scores["kl"] == 0.0
    params = exp.deployed(state)
    spec = export.make_spec(config, exp.task, exp.feed)
    deploy.save(tmp_path / "model.safetensors", jax.device_get(params), spec)
    predictor = deploy.load(tmp_path / "model.safetensors")
    assert predictor.spec.activation["sites"] == ["input", "output"]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, *spec.shape), dtype=np.uint8)
    logits = np.asarray(predictor(pixels))
    c = float(np.asarray(jax.device_get(params)["output"]["qparams"]))
    codes = (logits / c + 1) / 2 * 15
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (("inputs",), ["activation.sites=('inputs',)", "'input'"]),
        (("input", "input"), ["activation.sites"]),
        ((), ["activation.sites=()"]),
        (("residual",), ["activation.sites=('residual',)", "'input', 'output'"]),
    ],
)
def test_sites_that_a_network_lacks(sites, words):
    config = tiny_config(activation__name="lsq")
    config.activation.sites = sites
    with pytest.raises(ValueError) as error:
        experiment.build(config)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
    with pytest.raises(ValueError, match="sites="):
        models.create("small", outputs=2, sites=sites)
