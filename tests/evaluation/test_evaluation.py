"""Tests of the evaluation: exact zeros, exact counts, BatchNorm, numbers per layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config, train

from quantnet_jax import models
from quantnet_jax.core.qtensor import QTensor, dequantize
from quantnet_jax.data import prepare
from quantnet_jax.evaluation import gap, recalibration, scoring
from quantnet_jax.evaluation.forward import make_statistics
from quantnet_jax.tasks import Metric
from quantnet_jax.training import experiment

pytestmark = pytest.mark.optimized

QUANTIZED = {"conv1/kernel", "conv2/kernel"}
COUNTS = ("soft", "hard", "hard_bn", "examples")


@functools.cache
def trained(method, runner="jit", devices=4):
    """(experiment, state, (scores, layers, codes)) after three steps."""
    config = tiny_config(runner=runner, quantizer__name=method)
    exp = experiment.build(config, jax.devices()[:devices])
    state, _ = train(exp, 3)
    return exp, state, exp.evaluate(state)


# Straight-through: the harness's own zero check ---------------------------------------
@pytest.mark.parametrize(
    ("method", "runner"),
    [("binary_ste", "pmap"), ("binary_ste", "jit"), ("identity", "jit")],
)
def test_gap_of_a_straight_through_member_is_exactly_zero(method, runner):
    exp, _, (scores, layers, codes) = trained(method, runner)
    assert exp.runner.devices == 4
    assert scores["gap"] == 0.0
    assert scores["soft"] == scores["hard"]
    assert scores["loss_soft"] == scores["loss_hard"] > 0
    assert scores["kl"] == 0.0
    assert set(layers) == set(codes) == (set() if method == "identity" else QUANTIZED)
    for path, layer in layers.items():
        assert (layer["distance"], layer["undecided"]) == (0.0, 0.0), path


def test_gap_of_a_soft_member_is_seen():
    """The same numbers are not zero by construction."""
    _, _, (scores, layers, _) = trained("quantnet")
    assert scores["loss_soft"] != scores["loss_hard"]
    assert scores["kl"] > 1e-6
    assert all(layer["distance"] > 1e-3 for layer in layers.values())
    assert scores["gap"] == pytest.approx(scores["soft"] - scores["hard"], abs=1e-12)
    assert scores["gap_bn"] == pytest.approx(
        scores["soft"] - scores["hard_bn"], abs=1e-12
    )


# Every example once -------------------------------------------------------------------
def logits_of(exp, state, hard):
    """(50, 4) logits of the test set: eager, one batch, no mask, no runner."""
    state = jax.device_get(state)
    realized = gap.make_realize(experiment.tree.bucket_quantizer(exp.buckets))(
        state, None
    )
    model = models.create("small", outputs=4)
    data = exp.feed.test_data
    batch = {"index": np.arange(50), "position": np.zeros(50, np.uint32), "mask": None}
    image = prepare(
        data,
        batch,
        seed=0,
        train=False,
        pad=0,
        flip=False,
        mean=exp.feed.mean,
        std=exp.feed.std,
    )["image"]
    weights = realized.hard if hard else realized.soft
    variables = {"params": weights, "batch_stats": state.batch_stats}
    return np.asarray(model.apply(variables, image, False), np.float64)


def test_scores_against_one_plain_forward_pass():
    exp, state, (scores, _, _) = trained("quantnet")
    label = exp.feed.test_data["label"]
    log_p = {}
    for name, hard in (("soft", False), ("hard", True)):
        logits = logits_of(exp, state, hard)
        log_p[name] = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert scores[name] == (logits.argmax(-1) == label).sum() / 50
        loss = -log_p[name][np.arange(50), label].mean()
        assert scores[f"loss_{name}"] == pytest.approx(loss, rel=1e-5)
    kl = (np.exp(log_p["soft"]) * (log_p["soft"] - log_p["hard"])).sum(-1).mean()
    assert scores["kl"] == pytest.approx(kl, rel=1e-4)
    assert scores["examples"] == 50


@pytest.mark.parametrize(
    ("runner", "devices", "size"),
    [("jit", 4, 4), ("jit", 4, 52), ("jit", 1, 7), ("jit", 2, 100), ("pmap", 4, 8)]
    + [("pmap", 1, 50)],
)
def test_each_example_counts_once_for_any_batch_size(runner, devices, size):
    """50 test images: batches that divide them, that do not, and one larger batch."""
    exp, state, (wanted, _, _) = trained("quantnet")
    config = tiny_config(runner=runner, eval_batch_size=size)
    other = experiment.build(config, jax.devices()[:devices])
    seen = np.concatenate(
        [batch["index"][batch["mask"] > 0] for batch in other.feed.test()]
    )
    assert sorted(seen.tolist()) == list(range(50))
    # A deep copy: putting arrays where they are already would share them.
    moved = other.runner.replicate(jax.tree.map(np.array, jax.device_get(state)))
    scores, _, _ = other.evaluate(moved)
    for name in COUNTS:
        assert scores[name] == wanted[name], name
    for name in ("loss_soft", "loss_hard", "kl"):
        assert scores[name] == pytest.approx(wanted[name], rel=1e-5), name


@pytest.mark.parametrize("streamed", [False, True])
def test_the_host_reads_once(streamed, monkeypatch):
    """Of a streamed set it waits for early batches, so that few hold their images."""
    events = []
    for name in ("device_get", "block_until_ready"):
        original = getattr(jax, name)
        told = lambda x, name=name, f=original: (events.append(name), f(x))[1]
        monkeypatch.setattr(jax, name, told)

    def batches():
        for i in range(20):
            events.append("batch")
            yield {"image" if streamed else "index": jnp.float32(i)}

    forward = lambda tree, data, batch: tree * sum(batch.values())

    def tally(data, batch, outputs):
        of_trees = {name: {"m": value} for name, value in outputs.items()}
        sums = {"examples": jnp.float32(2), "trees": of_trees, "compare": {}}
        return sums | {"squares": of_trees["hard"]["m"] ** 2}

    trees = {"soft": jnp.float32(2), "hard": jnp.float32(1)}
    outputs = lambda batch: {k: forward(x, None, batch) for k, x in trees.items()}
    scores = gap.score(tally, outputs, None, batches(), Metric("m"))
    scores.pop("interval")  # of synthetic sums
    assert scores == {"soft": 9.5, "hard": 4.75, "gap": 4.75, "examples": 40}
    assert events.count("batch") == 20 and events[-1] == "device_get"
    assert events.count("device_get") == 1
    waits = [i for i, name in enumerate(events) if name == "block_until_ready"]
    assert len(waits) == (20 - gap.AHEAD if streamed else 0)
    for i in waits:
        sent = events[:i].count("batch")
        assert sent - events[:i].count("block_until_ready") == gap.AHEAD + 1


def test_an_evaluation_waits_for_the_devices_twice_at_most(monkeypatch):
    """For the scores, and for layers and codes, which were sent meanwhile."""
    exp, state, wanted = trained("quantnet")
    reads = []
    original = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: (reads.append(x), original(x))[1])
    assert exp.evaluate(state)[0] == wanted[0]
    # 50 images in batches of 12; the third read is of codes that are here by then.
    assert len(reads) <= 3 and len(reads[0]) == 5


def test_evaluation_changes_nothing():
    exp, state, first = trained("quantnet")
    before = jax.tree.map(np.array, jax.device_get(state))
    second = exp.evaluate(state)
    assert second[0] == first[0] and second[1] == first[1]
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


# BatchNorm of hard weights ------------------------------------------------------------
def test_re_estimated_statistics_are_the_mean_over_training_batches():
    """Recomputed layer by layer with NumPy, on the first augmented batches."""
    exp, state, (scores, _, _) = trained("quantnet")
    host = jax.device_get(state)
    quantizer = experiment.tree.bucket_quantizer(exp.buckets)
    hard = gap.make_realize(quantizer)(host, None).hard
    totals = {}
    for step in range(exp.config.recalibration_batches):
        batch = next(exp.feed.train(step))
        image = exp.prepare["train"](exp.feed.train_data, batch)["input"]
        x = np.asarray(image, np.float64)
        for kernel, norm, strides in (
            ("stem", "stem_bn", 2),
            ("conv1", "bn1", 1),
            ("conv2", "bn2", 1),
        ):
            x = convolve(x, np.asarray(hard[kernel]["kernel"], np.float64), strides)
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            totals.setdefault(norm, []).append((mean, var))
            scale, bias = (np.asarray(hard[norm][k]) for k in ("scale", "bias"))
            x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)
    wanted = {
        norm: dict(zip(("mean", "var"), np.mean(values, 0), strict=True))
        for norm, values in totals.items()
    }
    # Evaluating with these as the running statistics must give `hard_bn` as `hard`.
    stats = jax.tree.map(lambda x: np.asarray(x, np.float32), wanted)
    assert jax.tree.structure(stats) == jax.tree.structure(host.batch_stats)
    moved = exp.runner.replicate(host._replace(batch_stats=stats))
    again, _, _ = exp.evaluate(moved)
    assert again["hard"] == scores["hard_bn"]
    assert again["hard_bn"] == scores["hard_bn"]
    ships, same = exp.deployed(state, bn=True), exp.deployed(moved)
    for a, b in zip(jax.tree.leaves(ships), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    model = models.create("small", outputs=4, momentum=0.0)
    statistics = make_statistics(
        scoring.make_apply(model, exp.runner), exp.prepare["train"]
    )
    got = recalibration.average_statistics(
        jax.jit(lambda *args: statistics(*args, None)),
        hard,
        host.batch_stats,
        exp.feed.train_data,
        (next(exp.feed.train(step)) for step in range(2)),
    )
    for norm, values in wanted.items():
        for name, value in values.items():
            np.testing.assert_allclose(
                got[norm][name], value, rtol=1e-4, atol=1e-5, err_msg=f"{norm}/{name}"
            )


def convolve(x, kernel, strides):
    """3 x 3 convolution with one zero pixel around, in NumPy."""
    n, height, width, _ = x.shape
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = sum(
        x[:, i : i + height : strides, j : j + width : strides] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    return out


def test_average_statistics_needs_a_batch():
    with pytest.raises(ValueError, match="at least one batch"):
        recalibration.average_statistics(lambda *args: args, {}, {}, {}, [])


def test_no_re_estimation_where_it_is_off():
    config = tiny_config(recalibration_batches=0)
    exp = experiment.build(config, jax.devices()[:1])
    scores, _, _ = exp.evaluate(exp.state)
    assert not {"hard_bn", "gap_bn"} & set(scores)
    with pytest.raises(ValueError, match="recalibration_batches=0: expected some"):
        exp.deployed(exp.state, bn=True)


# Numbers of a layer -------------------------------------------------------------------
@pytest.mark.parametrize("scale", [1.0, 0.25, "channel"])
def test_compare_against_numpy(scale):
    rng = np.random.default_rng(0)
    levels = np.asarray([-1.0, 1.0], np.float32)
    if scale == "channel":
        scale = rng.uniform(0.1, 2.0, (1, 1, 1, 6))
    scale = np.asarray(scale, np.float32)
    codes = rng.integers(0, 2, (3, 3, 5, 6)).astype(np.uint8)
    soft = (scale * rng.uniform(-1.4, 1.4, codes.shape)).astype(np.float32)
    qt = QTensor(jnp.asarray(codes), jnp.asarray(levels), jnp.asarray(scale))
    got = jax.jit(gap.compare)(jnp.asarray(soft), qt)

    hard = levels[codes] * scale
    distance = np.mean((soft - hard) ** 2) / np.mean(hard**2)
    assert float(got["distance"]) == pytest.approx(distance, rel=1e-5)
    undecided = np.mean(np.abs(soft - hard) > 0.1 * np.abs(scale))
    assert float(got["undecided"]) == pytest.approx(undecided, abs=1e-6)
    counts = np.asarray(got["counts"])
    edges = np.linspace(-1.25, 1.25, 65)
    wanted, _ = np.histogram(np.clip(soft / scale, -1.25, 1.25), edges)
    assert counts.sum() == soft.size
    assert np.abs(counts - wanted).sum() <= 2  # a value on an edge may go either way


def test_undecided_is_below_nine_tenths_for_binary_weights():
    soft = jnp.asarray([0.0, 0.89, 0.91, -0.95, -0.3, 1.05, 1.2])
    qt = QTensor((soft >= 0).astype(jnp.uint8), jnp.asarray([-1.0, 1.0]), jnp.ones(()))
    got = gap.compare(soft, qt)["undecided"]
    assert float(got) == pytest.approx(4 / 7)  # 0, 0.89, -0.3, and 1.2 above


def test_compare_of_all_zero_weights_is_finite():
    qt = QTensor(jnp.ones((2, 3), jnp.uint8), jnp.asarray([-1.0, 1.0]), jnp.zeros(()))
    for value in jax.tree.leaves(gap.compare(jnp.zeros((2, 3)), qt)):
        assert np.isfinite(value).all()


def test_layer_report_counts_flips():
    exp, state, (_, layers, codes) = trained("quantnet")
    assert set(layers) == QUANTIZED
    for path, layer in layers.items():
        assert layer["shape"] == [3, 3, 4, 4] == list(codes[path].shape)
        assert layer["flips"] is None
        histogram = layer["histogram"]
        assert len(histogram["edges"]) == 65 and len(histogram["counts"]) == 64
        assert sum(histogram["counts"]) == codes[path].size
    previous = {path: code.copy() for path, code in codes.items()}
    previous["conv1/kernel"].flat[:18] ^= 1
    _, layers, _ = exp.evaluate(state, previous)
    assert layers["conv1/kernel"]["flips"] == pytest.approx(18 / 144)
    assert layers["conv2/kernel"]["flips"] == 0.0


def test_codes_are_those_of_the_hard_weights():
    exp, state, (_, _, codes) = trained("quantnet")
    assert all(np.array_equal(v, codes[k]) for k, v in exp.codes(state).items())
    quantizer = experiment.tree.bucket_quantizer(exp.buckets)
    host = jax.device_get(state)
    hard = quantizer.hard(host.params["quant"], host.params["model"])
    for layer in ("conv1", "conv2"):
        np.testing.assert_array_equal(
            np.sign(dequantize(hard[layer]["kernel"])),
            2.0 * codes[f"{layer}/kernel"] - 1.0,
        )


def test_realized_trees_leave_the_rest_of_the_network_alone():
    exp, state, _ = trained("quantnet")
    realized = gap.make_realize(experiment.tree.bucket_quantizer(exp.buckets))(
        jax.device_get(state), None
    )
    model = experiment.tree.flatten(state.params["model"])
    for name in ("soft", "hard"):
        for path, value in experiment.tree.flatten(getattr(realized, name)).items():
            same = np.array_equal(value, model[path])
            assert same == (path not in QUANTIZED), (name, path)


def test_flip_rate_counts_codes_and_not_layers():
    layers = {
        "small": {"shape": [2, 5], "flips": 0.5},
        "large": {"shape": [3, 30], "flips": 0.1},
    }
    assert gap.flip_rate(layers) == pytest.approx((5 + 9) / 100)
    layers["small"]["flips"] = None
    assert gap.flip_rate(layers) is None
    assert gap.flip_rate({}) is None
