"""Tests of building experiments: bad input before training, and what a build holds."""

import re

import jax
import numpy as np
import pytest
from tiny import tiny_config

from quantnet_jax import data as qdata
from quantnet_jax.training import experiment
from quantnet_jax.trees import tree


def refusal(**overrides):
    """The one line with which a configuration is refused, built on 4 devices."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        experiment.build(tiny_config(**overrides))
    message = str(error.value)
    assert "\n" not in message, message
    return message


def rule(pattern, quantizer, **options):
    return {"pattern": pattern, "quantizer": quantizer, **options}


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"batch_size": 18}, ["batch_size=18", "multiple of 4"]),
        ({"eval_batch_size": 50}, ["eval_batch_size=50", "multiple of 4"]),
        ({"data__name": "cifar11"}, ["cifar11", "cifar10"]),
        ({"data__folder": "nowhere"}, ["folder='nowhere'", "synthetic"]),
        ({"data__pad": 8}, ["data.pad=8", "less than the image size 8"]),
        ({"data__validation_size": 100}, ["100", "1 to 99"]),
        ({"model__name": "smal"}, ["smal", "small"]),
        ({"model": {"name": "small", "widht": 4}}, ["widht", "width"]),
        ({"model": {"name": "small", "width": 0}}, ["width", "0"]),
        ({"model": {"width": 4}}, ["model", "name"]),
        ({"quantizer__quantnet": {"widht": 4}}, ["quantnet", "widht", "width"]),
        ({"quantizer__quantnet": {"bits": 9}}, ["bits", "9"]),
        ({"quantizer__quantnet": {"unit": "kernel"}}, ["unit", "kernel", "slice"]),
        (
            {"quantizer__quantnet": {"sharpness": {"schedule": "cosine"}}},
            ["sharpness", "cosine", "linear"],
        ),
        ({"layers": "stage9/.*"}, ["stage9/.*", "conv1/kernel", "head/kernel"]),
        ({"layers": "conv1("}, ["conv1(", "regular expression"]),
        ({"share": "everything"}, ["share", "everything", "layer"]),
        ({"layers": "all", "share": "model"}, ["share='model'", "different"]),
        ({"rules": (("head/kernel", "binary"),)}, ["rules", "head/kernel"]),
        (
            {"rules": ({"pattern": "head/kernel", "quantizer": "binary"},)},
            ["rules[0].quantizer", "binary_ste"],
        ),
        (
            {"rules": ({"pattern": ".*bias9", "quantizer": "identity"},)},
            [".*bias9", "head/bias"],
        ),
        (
            {"rules": (rule("conv1/kernel", "lsq"), rule("conv1/k.*", "lsq"))},
            ["both claim", "conv1/kernel"],
        ),
        ({"weights__schedule": "cos"}, ["weights", "cos", "cosine"]),
        ({"weights__optimizer": "adamww"}, ["weights", "adamww", "adamw"]),
        ({"weights__learning_rate": -0.1}, ["weights", "learning_rate=-0.1"]),
        ({"meta__momentum": 1.5}, ["meta", "momentum=1.5"]),
        ({"meta__warmup": 1.0}, ["meta", "warmup=1.0"]),
        ({"weights__clip": -1.0}, ["weights", "clip=-1.0"]),
        (
            {"weights__schedule": "steps", "weights__milestones": (0.9, 0.1)},
            ["weights", "milestones"],
        ),
        ({"meta__mode": "bilevel", "meta__holdout": 1 / 3}, ["meta.holdout", "4"]),
    ],
    ids=lambda x: re.sub(r"\W+", "_", str(x))[:40] if isinstance(x, dict) else "",
)
def test_bad_input_is_one_line(overrides, parts):
    message = refusal(**overrides)
    for part in parts:
        assert part in message, message


def test_image_size_of_another_set():
    message = refusal(data__name="bundled", data__image_size=32)
    assert "data.image_size=32" in message and "28 x 28" in message


@pytest.mark.parametrize(
    ("key", "value"), [("train_size", 20000), ("test_size", 5000), ("classes", 11)]
)
def test_more_than_the_set_holds(key, value):
    sizes = {"train_size": 100, "test_size": 50} | {key: value}
    overrides = {f"data__{k}": v for k, v in sizes.items()}
    message = refusal(data__name="bundled", **overrides)
    assert str(value) in message and "bundled" in message


def test_missing_folder():
    message = refusal(data__name="cifar10", data__folder="/nowhere", data__train_size=0)
    assert "/nowhere" in message


@pytest.mark.parametrize("key", ["train_size", "classes", "validation_size"])
def test_streamed_sets_are_not_cut(key):
    sizes = {"data__train_size": 0, "data__test_size": 0, f"data__{key}": 7}
    assert f"data.{key}=7" in refusal(data__name="imagenet2012", **sizes)


# What a build holds -------------------------------------------------------------------
def test_steps_and_epochs():
    exp = experiment.build(tiny_config(epochs=2.0), jax.devices()[:1])
    assert exp.epoch_steps == 100 / 16
    assert exp.steps == round(2 * 100 / 16)
    assert float(exp.learning_rate(0)) == pytest.approx(0.1)
    assert float(exp.learning_rate(exp.steps)) == pytest.approx(0.0, abs=1e-7)


def test_rules_decide_what_is_quantized():
    """Mixed precision: the rows of `rules` come beside the rule of `layers`."""
    config = tiny_config(
        layers="conv1/kernel",
        rules=({"pattern": "head/kernel", "quantizer": "binary_ste"},),
    )
    exp = experiment.build(config, jax.devices()[:1])
    claimed = {path: bucket.shared for bucket in exp.buckets for path in bucket.paths}
    assert set(claimed) == {"conv1/kernel", "head/kernel"}
    # A row takes what `layers` would: four bits here, two there, the rest as it is.
    rows = (rule("head/kernel", "lsq", bits=4), rule("conv2/kernel", "lsq", bits=2))
    exp = experiment.build(tiny_config(layers="all", rules=rows), jax.devices()[:1])
    found = {path: repr(b.quantizer) for b in exp.buckets for path in b.paths}
    assert found["head/kernel"] == "lsq(bits=4)"
    assert found["conv2/kernel"] == "lsq(bits=2)"
    assert all(found[f"{k}/kernel"].startswith("quantnet(") for k in ("stem", "conv1"))
    assert claimed["head/kernel"] is None and claimed["conv1/kernel"] is not None
    hard = tree.bucket_quantizer(exp.buckets).hard(
        exp.state.params["quant"], exp.state.params["model"]
    )
    assert np.all(np.asarray(hard["head"]["kernel"].scale) > 0)


def test_state_depends_on_the_seed_alone():
    def start(seed):
        exp = experiment.build(tiny_config(seed=seed), jax.devices()[:1])
        return jax.device_get(exp.state.params)

    first, same, other = start(3), start(3), start(4)
    equal = lambda a, b: jax.tree.map(lambda x, y: bool(np.all(x == y)), a, b)
    assert all(jax.tree.leaves(equal(first, same)))
    differ = equal(first, other)
    for layer in ("stem", "conv1", "conv2", "head"):
        assert not differ["model"][layer]["kernel"]


def test_train_batches_start_anywhere():
    """Batch k of a stream from 0 is the first one of a stream from k."""
    exp = experiment.build(tiny_config(), jax.devices()[:1])
    stream = exp.train_batches(0)
    batches = [next(stream) for _ in range(9)]  # beyond one epoch
    for k in (1, 6, 8):
        again = next(exp.train_batches(k))
        for name, value in batches[k].items():
            np.testing.assert_array_equal(value, again[name])
    epoch = np.concatenate([np.ravel(b["index"]) for b in batches])[:100]
    assert sorted(epoch.tolist()) == list(range(100))


def test_subset_and_hold_out_of_the_bundled_set():
    config = tiny_config(
        data__name="bundled",
        data__train_size=300,
        data__test_size=100,
        data__validation_size=40,
    )
    exp = experiment.build(config, jax.devices()[:1])
    assert (exp.feed.train_size, exp.feed.test_size) == (260, 40)
    assert exp.feed.shape == (28, 28, 1)
    train = {image.tobytes() for image in exp.feed.train_data["image"]}
    test = {image.tobytes() for image in exp.feed.test_data["image"]}
    assert not train & test
    bundled = qdata.load("bundled")
    assert test <= {image.tobytes() for image in bundled.train_image}


def test_bfloat16_keeps_weights_in_float32():
    exp = experiment.build(tiny_config(dtype="bfloat16"), jax.devices()[:1])
    for x in jax.tree.leaves((exp.state.params, exp.state.batch_stats)):
        assert x.dtype == np.float32
    batch = next(exp.train_batches(0))
    state, metrics = exp.train_step(exp.state, exp.train_data, batch)
    for x in jax.tree.leaves((state.params, state.batch_stats, metrics)):
        assert x.dtype == np.float32 and np.isfinite(x).all()


def test_a_quantizer_of_ones_own_by_module_and_factory(tmp_path, monkeypatch):
    """From the command line, without a row in the package; errors in one line."""
    (tmp_path / "my_signs.py").write_text(
        "from quantnet_jax import clipped_ste, tanh_sign\n"
        "def sharp(*, factor=2.0):\n    return tanh_sign(sharpness=3.0 * factor)\n"
        "def loose(factor=2.0):\n    return sharp(factor=factor)\n"
    )
    monkeypatch.chdir(tmp_path)
    config = tiny_config(quantizer__name="my_signs:sharp(factor=4.0)")
    exp = experiment.build(config, jax.devices()[:1])
    assert repr(exp.buckets[0].quantizer).startswith("tanh_sign(")
    assert "sharpness=12.0" in repr(exp.buckets[0].quantizer)
    for name, words in (
        ("my_signs:blunt", "has no attribute 'blunt'"),
        ("my_signs:sharp(faktor=1.0)", "factor"),
        ("my_signs:sharp(3)", "expected NAME(option=value, ...)"),
        ("my_signs:loose(factor=3.0)", "'factor' must be keyword-only"),
        ("no_such_module:sharp", "No module named"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)) as error:
            experiment.build(tiny_config(quantizer__name=name), jax.devices()[:1])
        assert name.partition("(")[0] in str(error.value) and "\n" not in str(
            error.value
        )
