"""Tests of distillation: the teacher's logits, what it changes, what is refused."""

import functools
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config, train
from util import learned_tanh, make_step, normal, ready_task

from quantnet_jax import evaluate, models
from quantnet_jax.checkpoint import manager
from quantnet_jax.distributed import runners
from quantnet_jax.logging import records
from quantnet_jax.tasks import terms
from quantnet_jax.training import distillation, experiment, optim, parts
from quantnet_jax.training.estimators import gradients
from quantnet_jax.training.feed import make_feed
from quantnet_jax.training.state import create_state, eval_state
from quantnet_jax.trees import tree


def save_run(workdir, **overrides):
    """A float run that was never trained; returns (network, its variables)."""
    config = tiny_config(quantizer__name="identity", model__width=6, **overrides)
    runner = runners.make_runner("jit")
    feed = make_feed(config, runner)
    model = parts.make_model(config, {"outputs": len(feed.info["classes"])}, None)
    image = jnp.zeros((1, *feed.shape))
    shapes = jax.eval_shape(model.init, jax.random.key(7), image)
    made = jax.tree.map(lambda x: np.abs(normal(x.size, x.shape)) + 0.1, shapes)
    state = {
        "step": np.asarray(3, np.int32),
        "params": {"model": jax.tree.map(lambda x: 0.3 * x, made["params"])},
        "batch_stats": made["batch_stats"],
    }
    with manager.Checkpoints(workdir) as saved:
        saved.save(3, state)
    records.write_json(workdir / "config.json", config.to_dict())
    return model, made | {"params": state["params"]["model"]}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """(workdir, network, variables) of a teacher wider than the student."""
    workdir = tmp_path_factory.mktemp("teacher")
    return workdir, *save_run(workdir)


def load(workdir, **overrides):
    config = tiny_config(runner="jit", teacher=str(workdir), **overrides)
    return experiment.Experiment(config, jax.devices()[:1]).teacher


# The teacher -------------------------------------------------------------------------
def test_teacher_sees_the_augmented_batch_in_evaluation_mode(teacher):
    workdir, model, variables = teacher
    found = load(workdir)
    exp = experiment.Experiment(tiny_config(), jax.devices()[:1])
    augmented, batch = exp.prepare["train"], exp.feed.sample()
    both = jax.jit(distillation.with_teacher(augmented, found.outputs))
    made = both({"set": None, "teacher": found.folded}, batch)
    alone = jax.jit(augmented)(None, batch)
    np.testing.assert_array_equal(made["input"], alone["input"])
    apply = jax.jit(functools.partial(model.apply, train=False))
    wanted = apply(variables, alone["input"])
    np.testing.assert_allclose(made["teacher"], wanted, rtol=1e-4, atol=1e-4)
    assert made["teacher"].dtype == jnp.float32 and np.ptp(wanted) > 0.1


def test_teacher_is_data_of_the_program_not_a_part_of_it(teacher):
    found = load(teacher[0])
    made = jax.make_jaxpr(found.outputs)(found.folded, jnp.zeros((2, 8, 8, 3)))
    assert sum(np.size(x) for x in made.consts) == 0


# What it changes ---------------------------------------------------------------------
MODES = {
    "joint": gradients.joint,
    "bilevel": functools.partial(gradients.bilevel, rate=lambda step: 0.2, every=2),
}


def linear_step(mode, weight):
    """(state, step) of a linear network whose batches hold the teacher's logits."""
    params = {"kernel": jnp.asarray(normal(0, (5, 4)))}
    rule = tree.Rule("kernel", learned_tanh(), "model")
    quantizer = tree.tree_quantizer([rule], params)
    sgd = optim.optimizer("sgd", lambda step: 1.0, momentum=0.0)
    tx = optim.partition(sgd, sgd)
    state = create_state({"params": params}, quantizer, tx, jax.random.key(1))
    step = make_step(
        lambda variables, x, train: (x @ variables["params"]["kernel"], {}),
        *(quantizer, tx, ready_task(), MODES[mode]),
        terms=terms.weighted([(weight, terms.distillation(temperature=2.0))]),
    )
    return state, jax.jit(step, static_argnums=3)


@pytest.mark.parametrize(
    ("mode", "weight"), [("joint", 0.0), ("joint", 1.0), ("bilevel", 1.0)]
)
def test_weight_says_whose_word_counts(mode, weight):
    """0: as without a teacher. 1: labels count for nothing, held out or not."""
    rng = np.random.default_rng(3)
    batch = {"image": normal(2, (8, 5)), "mask": np.ones(8, np.float32)}
    labels = rng.integers(0, 4, (2, 8)).astype(np.int32)
    batch |= {"label": labels[0], "teacher": normal(4, (8, 4))}
    state, step = linear_step(mode, weight)
    ends = {
        "it": step(state, None, batch, None)[0].params,
        "other labels": step(state, None, batch | {"label": labels[1]}, None)[0].params,
    }
    if weight:
        chex.assert_trees_all_equal(ends["it"], ends["other labels"])
        # Both losses, of the weights and of the sub-network, follow the teacher.
        other = batch | {"teacher": -batch["teacher"]}
        moved = step(state, None, other, None)[0].params
        for a, b in zip(
            jax.tree.leaves(ends["it"]), jax.tree.leaves(moved), strict=True
        ):
            assert np.abs(a - b).max() > 1e-4
    else:
        alone = step(state, None, batch | {"teacher": -batch["teacher"]}, None)[0]
        chex.assert_trees_all_equal(ends["it"], alone.params)
        moved = ends["it"]["model"]["kernel"] - state.params["model"]["kernel"]
        assert np.abs(moved).max() > 1e-3


# A whole run -------------------------------------------------------------------------
def test_run_with_teacher_average_and_parts(teacher, tmp_path):
    """What is scored and shipped, now and from the checkpoint, are averaged weights."""
    gone, workdir = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teacher[0], gone)
    options = {
        "ema_decay": 0.9,
        "accumulation_steps": 2,
        "teacher": str(gone),
        "terms": ({"name": "distillation", "weight": 0.5},),
    }
    options |= {"quantizer__name": "lsq", "recalibration_batches": 0, "runner": "jit"}
    config = tiny_config(**options)
    exp = experiment.build(config, jax.devices()[:1])
    state, _ = train(exp, 3)
    scores, _, codes = exp.evaluate(state)
    with manager.Checkpoints(workdir) as saved:
        saved.save(3, state)
    records.write_json(workdir / "config.json", config.to_dict())
    host = jax.device_get(state)
    averaged = eval_state(host).params
    for a, b in zip(
        jax.tree.leaves(host.params), jax.tree.leaves(averaged), strict=True
    ):
        assert np.abs(a - b).max() > 1e-6

    shutil.rmtree(gone)  # training alone needs it
    _, later, _ = evaluate.restore(str(workdir))
    for a, b in zip(jax.tree.leaves(later.ema), jax.tree.leaves(host.ema), strict=True):
        np.testing.assert_array_equal(a, b)
    # The last weights themselves count for nothing, and the averaged ones for all.
    blank = {
        k: jax.tree.map(np.zeros_like, getattr(host, k))
        for k in ("params", "batch_stats")
    }
    state = state._replace(**exp.runner.replicate(blank))
    assert exp.evaluate(state)[0] == scores
    quantizer = tree.bucket_quantizer(exp.buckets)
    hard = tree.flatten(quantizer.hard(averaged["quant"], averaged["model"]))
    shipped = tree.flatten(exp.deployed(state))
    assert codes.keys() == exp.codes(state).keys() and codes
    for path, got in exp.codes(state).items():
        for other in (codes[path], hard[path].codes, shipped[path].codes):
            np.testing.assert_array_equal(got, other)
    wanted = models.fold(averaged["model"]["bn1"], host.ema["batch_stats"]["bn1"])
    got = {k: shipped[f"bn1/{k}"] for k in ("scale", "bias")}
    chex.assert_trees_all_close(got, wanted, rtol=1e-5, atol=1e-6)


# What is refused ---------------------------------------------------------------------
def refused(workdir, message, **overrides):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load(workdir, **overrides)
    text = str(error.value)
    assert text.startswith(f"teacher={str(workdir)!r}: ") and "\n" not in text


def test_refuses_what_is_no_float_run(teacher, tmp_path):
    refused(tmp_path / "nothing", "config.json not found: .* holds no run")
    copy = tmp_path / "copy"
    shutil.copytree(teacher[0], copy)
    config = json.loads((copy / "config.json").read_text())
    for change, message in (
        ({"quantizer": config["quantizer"] | {"name": "lsq"}}, "quantizer.name='lsq'"),
        ({"rules": [{"pattern": "head", "quantizer": "lsq"}]}, "rules="),
        ({"activation": config["activation"] | {"name": "lsq"}}, "activation.name='l"),
        ({"model": {"name": "small", "width": 5}}, "saved as float32.* config builds"),
        ({"model": {"name": "resnet8"}}, "was saved as nothing"),
        ({"seed": "one"}, "seed='one' is a str"),
    ):
        records.write_json(copy / "config.json", config | change)
        refused(copy, message)
    shutil.rmtree(copy / "checkpoints")
    records.write_json(copy / "config.json", config)
    refused(copy, "no checkpoints in")


def test_refuses_other_classes_and_images(teacher):
    workdir, *_ = teacher
    refused(workdir, "with classes in number 4, expected 3", data__classes=3)
    refused(workdir, "shape .8, 8, 3., expected .12, 12, 3.", data__image_size=12)
    # The same images under other words in the configuration are welcome.
    load(workdir, data__image_size=8)


def test_data_may_tell_numbers_to_its_task():
    """The factor of super-resolution, of teacher and student, is no list."""
    given = {
        "data__name": "synthetic_x2",
        "data__pad": 0,
        "quantizer__name": "identity",
    }
    config, other = (tiny_config(**given, data__flip=x) for x in (True, False))
    runner = runners.make_runner("jit")
    feed = make_feed(config, runner)
    distillation._check(other, config, feed, runner)
    changed = feed._replace(info=dict(feed.info) | {"scale": 4})
    with pytest.raises(ValueError, match=r"scale\[0\] 2, expected 4"):
        distillation._check(other, config, changed, runner)
