"""Tests of quantized activations: laws, closed forms, hooks of the networks, runs."""

import inspect
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_net import NumpyNet, images, paths, randomized
from tiny import tiny_config, train
from util import learns, normal

from quantnet_jax import config as config_lib
from quantnet_jax import models, quantizers
from quantnet_jax.activations import MEMBERS, create, options, sign_activation
from quantnet_jax.activations.quantizer import SMALLEST
from quantnet_jax.distributed import runners
from quantnet_jax.models.resnet import BiRealBlock, Bottleneck, ResNet
from quantnet_jax.testing import ORDER, check_docstring, check_quantizer
from quantnet_jax.training import experiment, parts
from quantnet_jax.training.feed import make_feed
from quantnet_jax.training.state import TrainState
from quantnet_jax.trees import tree

CASES = [
    (name, bits)
    for name, member in MEMBERS.items()
    for bits in (1, 2, 4)
    if bits in member.bits
]


def made(name, bits):
    """The activation quantizer of that width."""
    options = {"bits": bits} if len(MEMBERS[name].bits) > 1 else {}
    return create(name, **options)


# ---------------------------------------------------------------- the quantizers


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_members_keep_the_laws(name, bits):
    member = MEMBERS[name]
    check_quantizer(
        made(name, bits),
        forward=member.forward,
        binary=member.signed,
        parameter_free=not learns(member.factory()),
        shape=(4, 3, 3, 4),
        # What costs most, and does not depend on the width, once.
        laws=ORDER if bits == 1 else set(ORDER) - {11, 12},
    )


@pytest.mark.parametrize("name", MEMBERS)
def test_rows_say_what_is_so(name):
    member, x = MEMBERS[name], images(0, (4, 3, 3, 4))
    check_docstring(member.factory)
    q = member.factory(**member.recipe)
    qparams = q.init(jax.random.key(0), x)
    says = "Learned: none" not in " ".join(inspect.getdoc(member.factory).split())
    assert bool(jax.tree.leaves(qparams)) == says
    assert member.forward == "hard"
    assert (float(q.value(qparams, x).min()) < 0) == member.signed
    assert set(config_lib.base().activation[name]) == set(options(name))


# From closed forms: n = 2^bits - 1 steps; a of PACT and n s of LSQ are the clip.
CLIP = {"dorefa": 1.0, "pact": 1.6931, "lsq": 1.6931, "learned_clip": 1.6931}
POINTS = np.asarray(
    [-2, -0.1, 0, 0.0131, 0.3137, 0.9217, 1, 1.2311, 1.69, 1.71, 5], np.float32
)


def parameter(name, bits):
    """The learned parameter at which the clip is that of `CLIP`."""
    clip = jnp.asarray(CLIP[name], jnp.float32)
    return {"dorefa": (), "lsq": clip / (2**bits - 1)}.get(name, clip)


@pytest.mark.parametrize("name", CLIP)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_values_and_gradients_are_the_closed_forms(name, bits):
    q, qparams, clip = made(name, bits), parameter(name, bits), CLIP[name]
    x, n, examples = POINTS[None].repeat(3, 0).astype(np.float64), 2**bits - 1, 3
    position = np.clip(x / clip, 0, 1) * n
    steps = np.floor(position + 0.5)
    below, above = x < 0, x > clip
    g = np.random.default_rng(0).normal(size=x.shape)

    def loss(qparams, x):
        return jnp.sum(q.soft(qparams, x, step=0) * jnp.asarray(g, jnp.float32))

    x32 = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(
        q.soft(qparams, x32, step=0), steps * clip / n, rtol=1e-6
    )
    dp, dx = jax.grad(loss, (0, 1))(qparams, x32)
    np.testing.assert_allclose(dx, g * ~(below | above), rtol=1e-6)
    if name == "pact":
        np.testing.assert_allclose(dp, np.sum(g * above), rtol=1e-5)
    if name == "learned_clip":
        slope = np.where(above, 1, np.where(below, 0, steps - position) / n)
        np.testing.assert_allclose(dp, np.sum(g * slope), rtol=1e-4, atol=1e-5)
    if name == "lsq":
        slope = np.where(above, n, np.where(below, 0, steps - position))
        shrink = 1 / np.sqrt(x.size / examples * n)
        np.testing.assert_allclose(dp, shrink * np.sum(g * slope), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("slope", "closed"),
    [
        ("clip", lambda x: 1.0 * (np.abs(x) <= 1)),
        ("approx", lambda x: np.maximum(2 - 2 * np.abs(x), 0)),
    ],
)
def test_signs(slope, closed):
    q = sign_activation(slope=slope)
    x = jnp.asarray(POINTS)
    np.testing.assert_array_equal(q.soft((), x, step=0), np.where(POINTS < 0, -1, 1))
    slopes = jax.grad(lambda x: jnp.sum(q.soft((), x, step=0)))(x)
    np.testing.assert_allclose(slopes, closed(POINTS), rtol=1e-5)
    name = {"clip": "sign_ste", "approx": "approx_sign"}[slope]
    member = jax.grad(lambda x: jnp.sum(made(name, 1).soft((), x, step=0)))(x)
    np.testing.assert_array_equal(slopes, member)


def test_a_threshold_of_each_channel_moves_the_sign():
    q, t = made("rsign", 1), jnp.asarray([0.5, -0.25])
    x = jnp.asarray([[0.6, -0.2], [0.4, -0.3], [0.5, -0.25]], jnp.float32)
    np.testing.assert_array_equal(q.value(t, x), [[1, 1], [-1, -1], [1, 1]])
    np.testing.assert_array_equal(q.init(jax.random.key(0), x), [0, 0])
    g = jnp.asarray(normal(0, (3, 2)))
    dt, dx = jax.grad(lambda t, x: jnp.sum(q.soft(t, x, step=0) * g), (0, 1))(t, x)
    slope = 2 - 2 * np.abs(np.asarray(x - t[None]))
    np.testing.assert_allclose(dx, g * slope, rtol=1e-5)
    np.testing.assert_allclose(dt, -np.sum(g * slope, 0), rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_lsq_starts_from_the_activations(bits):
    q, key = made("lsq", bits), jax.random.key(0)
    x = images(2, (4, 2, 2, 3))
    expected = 2 * np.abs(np.asarray(x, np.float64)).mean() / np.sqrt(2**bits - 1)
    assert float(q.init(key, x)) == pytest.approx(expected, rel=1e-6)
    assert float(q.init(key, 0 * x)) == 1.0


@pytest.mark.parametrize("name", ["pact", "lsq"])
def test_a_parameter_below_zero_can_come_back(name):
    q, x = made(name, 2), jnp.abs(images(3, (4, 2, 2, 3))) + 1.0
    below = jnp.asarray(-0.5)
    values = q.soft(below, x, step=0)
    np.testing.assert_allclose(values, {"pact": 1, "lsq": 3}[name] * SMALLEST)
    slope = jax.grad(lambda p: jnp.sum(q.soft(p, x, step=0)))(below)
    assert float(slope) > 0  # more output needs a larger parameter


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dorefa", {"bits": 0}, ["dorefa.bits=0", "1 to 8"]),
        ("lsq", {"bits": 9}, ["lsq.bits=9"]),
        ("pact", {"bits": 2.5}, ["pact.bits=2.5"]),
        ("pact", {"start": 0.0}, ["pact.start=0.0", "from 1e-06"]),
        ("lsqq", {}, ["quantizer 'lsqq'", "did you mean 'lsq'"]),
        ("lsq", {"bit": 2}, ["'lsq.bit'", "'bits'"]),
    ],
)
def test_bad_options_are_one_line(name, options, words):
    with pytest.raises(ValueError) as error:
        create(name, **options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_names_in_files_import_nothing(tmp_path, monkeypatch):
    """An exported file names its activation quantizer: it must not run a module."""
    (tmp_path / "mine_of_a_file.py").write_text("def f(*, x=1):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="unknown quantizer 'mine_of_a_file:f'"):
        create("mine_of_a_file:f")
    assert "mine_of_a_file" not in sys.modules
    assert quantizers.find("mine_of_a_file:f")[0].factory() == 1  # of weights


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_signed_clip_is_the_closed_form(bits):
    q, n, c = create("learned_clip", bits=bits, signed=True), 2**bits - 1, 1.3371
    check_quantizer(q, forward="hard", shape=(4, 3, 3, 4), laws={1, 2, 3, 4, 13})
    x = np.concatenate([POINTS, -POINTS]).astype(np.float64)
    part = np.clip(x / c, -1, 1)
    rounded = 2 * np.floor((part + 1) / 2 * n + 0.5) / n - 1
    g = np.random.default_rng(0).normal(size=x.shape)
    loss = lambda c, x: jnp.sum(q.soft(c, x, step=0) * jnp.asarray(g, jnp.float32))
    c32, x32 = jnp.asarray(c, jnp.float32), jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(q.soft(c32, x32, step=0), c * rounded, rtol=1e-5)
    dc, dx = jax.grad(loss, (0, 1))(c32, x32)
    inside = np.abs(x) <= c
    np.testing.assert_allclose(dx, g * inside, rtol=1e-6)
    slope = np.where(inside, rounded - part, np.sign(x))
    np.testing.assert_allclose(dc, np.sum(g * slope), rtol=1e-4, atol=1e-5)


def test_a_calibrated_clip_passes_inputs_first():
    q = create("learned_clip", bits=2, warmup=3, calibration=0.5)
    x, c = images(5, (4, 2, 2, 3)), jnp.asarray(0.8)
    np.testing.assert_array_equal(q.soft(c, x, step=2), x)
    assert float(q.penalty(c, x, step=2)) == 0.0
    np.testing.assert_array_equal(q.soft(c, x, step=3), q.value(c, x))
    distance = np.abs(np.asarray(x, np.float64) - np.asarray(q.value(c, x))).mean()
    assert float(q.penalty(c, x, step=3)) == pytest.approx(0.5 * distance, rel=1e-5)
    some = create("learned_clip", warmup=3, quantile=0.75)
    expected = np.quantile(np.abs(np.asarray(x)), 0.75)
    change = some.observe(jnp.asarray(0.0), x, step=0)
    assert float(change) == pytest.approx(expected, rel=1e-5)


def test_a_slope_that_does_not_exist():
    with pytest.raises(ValueError, match="slope='flat' .known: identity"):
        sign_activation(slope="flat")


# ---------------------------------------------------------------- the networks


def captured(model, variables, x):
    """{path of a module: its output} of one forward pass."""
    run = lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=True)
    state = jax.jit(run)(variables, x)[1]
    return {
        path.split("/__call__")[0]: np.asarray(value, np.float64)
        for path, value in paths(state["intermediates"]).items()
    }


@pytest.mark.parametrize(
    ("name", "bits", "dtype", "options"),
    [
        ("sign_ste", 1, "float32", {"bi_real": True}),
        ("lsq", 2, "bfloat16", {"shortcut": "B"}),
        ("pact", 4, "float32", {}),
    ],
)
def test_inputs_of_inner_convolutions_take_few_values(name, bits, dtype, options):
    q, x = made(name, bits), images()
    model = models.create(
        "resnet8",
        outputs=3,
        width=4,
        dtype=dtype,
        act="hardtanh",
        act_quant=q,
        **options,
    )
    variables = randomized(model, x)
    values = captured(model, variables, x)
    inputs = {path: v for path, v in values.items() if path.endswith("_input")}
    blocks = [f"stage{s}_block0" for s in (1, 2, 3)]
    assert set(inputs) == {f"{b}/conv{i}_input" for b in blocks for i in (1, 2)}
    for path, value in inputs.items():
        assert 2 <= len(np.unique(value)) <= 2**bits, path
    # The stream that the shortcuts carry is real.
    assert len(np.unique(values["stage1_block0"])) > 100

    params = paths(variables["params"])
    learned = {p for p in params if "_input" in p}
    where = {f"{path}/qparams" for path in inputs}
    assert learned == (where if learns(MEMBERS[name].factory()) else set())
    for pattern in models.KERNELS.values():
        claimed = tree.plan([tree.Rule(pattern, q)], variables["params"])
        assert not learned & {path for bucket in claimed for path in bucket.paths}


def test_the_convolution_sees_the_quantized_input_of_its_block():
    """The captured input of conv1 is what NumPy makes of the stem's output."""
    x = images()
    model = models.create("small", outputs=3, act_quant=made("dorefa", 2))
    values = captured(model, randomized(model, x), x)
    stem = np.maximum(values["stem_bn"], 0)
    expected = np.floor(np.clip(stem, 0, 1) * 3 + 0.5) / 3
    np.testing.assert_allclose(values["conv1_input"], expected, rtol=1e-6)
    assert values["conv1_input"].std() > 0.1
    assert "stem_input" not in values and "head_input" not in values


def test_bottlenecks_quantize_every_convolution():
    model = ResNet(3, (1,), Bottleneck, width=2, shortcut="B", act_quant=made("lsq", 2))
    found = paths(jax.eval_shape(model.init, jax.random.key(0), images())["params"])
    learned = {path for path in found if path.endswith("qparams")}
    assert learned == {f"stage1_block0/conv{i}_input/qparams" for i in (1, 2, 3)}


class BiReal(NumpyNet):
    """A Bi-Real network from the paper: x + bn(conv(sign(x))) for every convolution."""

    def block(self, x, at, stride, bottleneck):
        for i, s in ((1, stride), (2, 1)):
            signs = np.where(x >= 0, 1.0, -1.0)
            y = self.conv_bn(signs, f"{at}/conv{i}", f"{at}/bn{i}", s)
            if f"{at}/shortcut/kernel" in self.v and i == 1:
                x = self.conv_bn(x, f"{at}/shortcut", f"{at}/shortcut_bn", s)
            else:
                x = x[:, ::s, ::s]
                new = np.zeros((*x.shape[:3], y.shape[3] - x.shape[3]))
                x = np.concatenate([x, new], axis=3)
            x = np.clip(x + y, -1, 1)
        return x

    def __call__(self, x):
        x = np.clip(self.conv_bn(x, "stem", "stem_bn"), -1, 1)
        for at in (f"stage{s}_block0" for s in (1, 2, 3)):
            x = self.block(x, at, 1 if at.startswith("stage1") else 2, False)
        return x.mean((1, 2)) @ self.v["head/kernel"] + self.v["head/bias"]


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_bi_real_equals_numpy(shortcut):
    x = images(1, (2, 9, 7, 2))
    model = models.create(
        "resnet8",
        outputs=3,
        width=2,
        shortcut=shortcut,
        act="hardtanh",
        act_quant=made("approx_sign", 1),
        bi_real=True,
    )
    variables = randomized(model, x)
    expected = BiReal(variables)(np.asarray(x, np.float64))
    logits = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)


def test_bi_real_blocks_may_start_as_identity():
    block = BiRealBlock(3, act=models.ACTS["identity"], zero_init_last=True)
    start = jax.jit(lambda key, x: block.init_with_output(key, x, train=True))
    y, _ = start(jax.random.key(0, impl="rbg"), images())  # compiles fast
    np.testing.assert_array_equal(y, images())


def test_bi_real_needs_basic_blocks():
    with pytest.raises(ValueError, match="bi_real=True, but .* Bottleneck"):
        models.create("resnet50", outputs=3, bi_real=True)


@pytest.mark.parametrize("act", models.ACTS)
def test_nonlinearities_by_name(act):
    x = jnp.asarray(POINTS)
    site = models.ACTS[act]()
    slope = {"slope": jnp.full(x.shape, 0.5)}
    params = {"prelu": slope} | {"before": -0.25 + 0 * x, "after": 0.5 + 0 * x}
    given = {"prelu": slope, "rprelu": params}
    y = site.apply({"params": given[act]}, x) if act in given else site(x)
    if act == "rprelu":  # a knee at (-0.25, 0.5)
        x, y = x + 0.25, y - 0.5
    negative, positive = {
        "relu": (0 * POINTS, POINTS),
        "hardtanh": (np.maximum(POINTS, -1), np.minimum(POINTS, 1)),
        "identity": (POINTS, POINTS),
        "prelu": (0.5 * POINTS, POINTS),
        "rprelu": (0.5 * x, x),
    }[act]
    wanted = np.where(np.asarray(x) < 0, negative, positive)
    np.testing.assert_allclose(y, wanted, rtol=1e-6)
    model = models.create("small", outputs=3, width=5, act=act)
    found = paths(jax.eval_shape(model.init, jax.random.key(0), images())["params"])
    slopes = [found[path].shape for path in found if path.endswith("slope")]
    assert slopes == ([(5,)] * 3 if act in given else [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"act": "rely"}, ["act='rely'", "relu, hardtanh, identity, prelu"]),
        ({"act": ["relu"]}, ["act=['relu']"]),
        ({"act_quant": "lsq"}, ["`act_quant` is 'lsq'", "Quantizer"]),
    ],
)
def test_hooks_that_are_none(options, words):
    with pytest.raises(ValueError) as error:
        models.create("small", outputs=3, **options)
    assert all(word in str(error.value) for word in words), error.value


# ---------------------------------------------------------------- runs


def activation_of(name, **options):
    return {"activation__name": name} | {
        f"activation__{name}__{key}": value for key, value in options.items()
    }


class Run(NamedTuple):
    """Three steps of a tiny network; states are on the host."""

    exp: experiment.Experiment
    start: TrainState
    state: TrainState
    metrics: dict[str, float]


def run(weights, bits, activation, **overrides):
    """Trains with quantized weights and activations of so many bits."""
    config = tiny_config(quantizer__name=weights, recalibration_batches=0, **overrides)
    config.activation.name = activation
    if weights != "binary_ste":
        config.quantizer[weights].bits = bits[0]
    if len(MEMBERS[activation].bits) > 1:
        config.activation[activation].bits = bits[1]
    with jax.default_prng_impl("rbg"):  # which compiles fast
        exp = experiment.build(config, jax.devices()[:1])
    start = jax.device_get(exp.state)  # the step donates its arrays
    state, metrics = train(exp, 3)
    return Run(exp, start, state, metrics)


def check_run(run, learned):
    """Finite losses and weights, and parameters of activations that have moved."""
    assert np.isfinite(run.metrics["loss"]) and run.metrics["grad_norm"] > 0
    before, after = (paths(s.params["model"]) for s in (run.start, run.state))
    for path, x in after.items():
        assert np.isfinite(x).all(), path
    moves = {
        path: np.abs(np.ravel(jax.device_get(after[path]) - before[path])[0])
        for path in after
        if path.endswith("qparams")
    }
    assert len(moves) == learned
    assert all(move > 1e-5 for move in moves.values()), moves


@pytest.fixture(scope="module")
def w1a2():
    """Binary weights, two-bit LSQ."""
    return run("binary_ste", (1, 2), "lsq")


def test_w1a2_trains_without_a_gap(w1a2):
    check_run(w1a2, learned=2)
    scores, _, _ = w1a2.exp.evaluate(w1a2.state)
    assert scores["gap"] == 0.0 and scores["kl"] == 0.0
    assert scores["loss_soft"] == scores["loss_hard"] > 0


@pytest.mark.parametrize(
    ("weights", "bits", "activation", "overrides"),
    [
        ("binary_ste", (1, 1), "sign_ste", {}),
        ("tanh_sign", (2, 2), "pact", {"activation__pact__start": 1.5}),
        ("tanh_sign", (4, 4), "dorefa", {}),
    ],
    ids=["W1A1", "W2A2", "W4A4"],
)
def test_other_widths_train(weights, bits, activation, overrides):
    done = run(weights, bits, activation, **overrides)
    check_run(done, learned=2 if activation == "pact" else 0)


def test_lsq_starts_from_real_images(w1a2):
    feed = w1a2.exp.feed
    sample = feed.sample()
    assert sample["image"].shape == (64, 8, 8, 3) and sample["label"].shape == (64,)
    first = next(feed.train(0))["index"]
    for name, x in feed.train_data.items():
        np.testing.assert_array_equal(sample[name][: len(first)], x[first])
    # BatchNorm gives unit normal numbers, the ReLU halves them: mean |x| is near 0.4.
    for name in ("conv1_input", "conv2_input"):
        step = float(np.ravel(w1a2.start.params["model"][name]["qparams"])[0])
        assert step == pytest.approx(2 * 0.4 / 3**0.5, rel=0.15)
    for path, x in paths(w1a2.start.batch_stats).items():
        assert np.all(x == (1 if path.endswith("var") else 0)), path


@pytest.mark.parametrize("streamed", [False, True])
def test_every_process_starts_from_the_same_images(streamed, tiny):
    config = tiny_config(data__train_size=0, data__test_size=0, data__image_size=16)
    if streamed:
        config.data.name, config.data.folder = "tfds:tiny_jpegs", str(tiny[0])
    runner = runners.make_runner("jit", jax.devices()[:1])
    first, second = (
        make_feed(config, runner._replace(process_index=i, process_count=2)).sample()
        for i in (0, 1)
    )
    assert first["image"].shape == (11 if streamed else 64, 16, 16, 3)
    assert first["image"].dtype == np.uint8 and first["image"].std() > 0
    assert set(first) >= {"image", "label", "position", "mask"}
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name])


# ---------------------------------------------------------------- configuration


def test_signed_activations_get_a_signed_nonlinearity():
    signed = lambda **model: tiny_config(
        model={"name": "small"} | model, **activation_of("sign_ste")
    )
    act = lambda **model: parts.make_model(signed(**model), {"outputs": 3}, None).act
    assert act() is models.ACTS["hardtanh"]
    assert act(act="prelu") is models.ACTS["prelu"]
    with pytest.raises(ValueError, match="model.act='relu'.*'sign_ste'.*hardtanh"):
        config_lib.check(signed(act="relu"))
    config = tiny_config(**activation_of("pact"))
    assert parts.make_model(config, {"outputs": 3}, None).act is models.ACTS["relu"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"activation__name": "dorfa"}, ["activation.name='dorfa'", "mean 'dorefa'"]),
        ({"activation": {"name": ""} | {"lqs": {}}}, ["'activation.lqs'", "'lsq'"]),
        ({"activation": {"name": ""} | {"lsq": 3}}, ["'activation.lsq'=3", "section"]),
        (
            activation_of("lsq") | {"activation__lsq": {"bit": 2}},
            ["'activation.lsq.bit'", "'bits'"],
        ),
        (activation_of("lsq", bits=9), ["activation.lsq.bits=9", "1 to 8"]),
    ],
)
def test_bad_sections_are_one_line(overrides, words):
    with pytest.raises(ValueError) as error:
        experiment.build(tiny_config(**overrides))
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
