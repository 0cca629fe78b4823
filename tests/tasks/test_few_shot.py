"""Few-shot learning: episodes, adaptation and Reptile against NumPy, and whole runs."""

import io
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import outcome, tiny_config, train
from util import normal, ready_task

from quantnet_jax import config as config_lib
from quantnet_jax import data, run
from quantnet_jax.core import pruning
from quantnet_jax.data.sets import omniglot
from quantnet_jax.evaluation import gap
from quantnet_jax.logging.progress import summary
from quantnet_jax.ops import cpu_conv
from quantnet_jax.tasks.base import Source
from quantnet_jax.tasks.few_shot import few_shot, order
from quantnet_jax.training import experiment
from quantnet_jax.training.estimators import reptile
from quantnet_jax.training.state import TrainState
from quantnet_jax.trees import tree

LABEL = np.repeat(np.arange(6), 4).astype(np.int32)
HELD = {"train": {"label": LABEL}, "test": {"label": LABEL}}


def source(shape=(2, 2, 1), held=HELD):
    """Images whose first pixel is their row, the others 0."""

    def prepare(data, batch, *, seed, train):
        image = jnp.zeros((batch["index"].size, *shape))
        image = image.at[:, 0, 0, 0].set(batch["index"].astype(jnp.float32))
        return {"image": image, "mask": batch["mask"]}

    info = {"classes": list("abcdef")}
    return Source(prepare, shape, (0.0,), (1.0,), info, held)


OPTIONS = {"ways": 3, "shots": 1, "queries": 2, "train_shots": 2, "steps": 3}
OPTIONS |= {"batch_size": 4, "test_steps": 2, "test_batch_size": 3}


@pytest.mark.parametrize("train", [True, False])
def test_an_episode_is_of_different_images_of_a_few_classes(train):
    task = few_shot(source(), **OPTIONS)
    positions = np.arange(40, dtype=np.uint32)
    batch = {"position": positions, "mask": np.ones(40, np.float32)}
    found = task.prepare({"label": LABEL}, batch, seed=0, train=train)
    shots = 2 if train else 1
    support, label = found["support"]["input"], found["support"]["label"]
    assert support.shape == (40, 3 * shots, 2, 2, 1)
    assert found["input"].shape == (40, 6, 2, 2, 1)
    assert found["order"].shape == ((40, 3, 4) if train else (40, 2, 3))
    images = np.concatenate([support, found["input"]], axis=1)
    labels = np.concatenate([label, found["label"]], axis=1)
    corners = images[:, :, [0, 0, 1, 1], [0, 1, 1, 0], 0]
    rows, seen = corners.max(-1).astype(int), set()
    for row, own in zip(rows, labels, strict=True):
        characters = [LABEL[row[own == way]] for way in range(3)]
        assert all((c == c[0]).all() for c in characters)
        for way in range(3):  # drawn without replacement
            assert len(set(row[own == way])) == shots + 2
        seen.add(tuple(c[0] for c in characters))
        # Only turned, in training, may one character be two classes.
        assert train or len({c[0] for c in characters}) == 3
    assert len(seen) > 20
    turn = np.where(rows > 0, corners.argmax(-1), 0)
    assert set(turn.ravel()) == ({0, 1, 2, 3} if train else {0})
    again = task.prepare(
        {"label": LABEL}, {k: x[5:6] for k, x in batch.items()}, seed=0, train=train
    )
    np.testing.assert_array_equal(again["input"][0], found["input"][5])


def test_the_order_of_an_adaptation_goes_through_all_images(key):
    found = np.asarray(order(key, 6, 5, 4))
    assert found.shape == (5, 4)
    for start in (0, 6, 12):
        assert sorted(found.ravel()[start : start + 6]) == list(range(6))
    assert (found.ravel()[:6] != found.ravel()[6:12]).any()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"ways": 7}, "ways=7, but the train images have 6 classes"),
        ({"queries": 4}, "ways=3, but the train images have 0 classes of at least 6"),
        ({"shape": (2, 3, 1)}, "rotations=True, but images are 2 x 3"),
    ],
)
def test_what_gives_no_episodes(changed, message):
    of_source = {k: changed[k] for k in changed if k == "shape"}
    options = OPTIONS | {k: v for k, v in changed.items() if k not in of_source}
    with pytest.raises(ValueError, match=message):
        few_shot(source(**of_source), **options)


def test_episodes_of_a_streamed_dataset():
    task = few_shot(source(held=None), **OPTIONS)
    with pytest.raises(ValueError, match="need a dataset that is held in memory"):
        task.prepare(None, {}, seed=0, train=True)


def quadratic(model, quant, stats, data, examples, step):
    """Mean over images of |w - x|^2 / 2; the statistics count the steps."""
    error = model["w"][None] - examples["input"]
    value = jnp.mean(jnp.sum(error**2, -1) * examples["mask"]) / 2
    return value, (stats + 1, {"loss": value})


def adapted_by_numpy(optimizer, w, x, order, rate):
    w, v = w.astype(np.float64), np.zeros(w.shape)
    for t, rows in enumerate(order, 1):
        g = (w[None] - x[rows]).mean(0)
        v = 0.999 * v + 0.001 * g**2
        size = {"adam": np.sqrt(v / (1 - 0.999**t)) + 1e-8, "sgd": 1.0}[optimizer]
        w = w - rate * g / size
    return w


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_reptile_against_numpy(optimizer):
    w, x = normal(0, (3,)), normal(1, (4, 6, 3))
    rows = np.random.default_rng(0).integers(0, 6, (4, 5, 2))
    mask = np.asarray([1, 1, 0, 2], np.float32)
    examples = {"support": {"input": x}, "order": rows, "mask": mask}
    state = TrainState(
        *(jnp.zeros((), jnp.int32), {"model": {"w": jnp.asarray(w)}, "quant": {}}),
        *(jnp.zeros(()), (), {}),
    )
    task = few_shot(source(), **OPTIONS, inner_optimizer=optimizer, inner_rate=0.1)
    adapt = reptile.make_adapt(quadratic, task.inner)
    params, stats, metrics = adapt(state, None, jax.tree.map(jnp.asarray, examples))
    pairs = zip(x, rows, strict=True)
    wanted = np.stack([adapted_by_numpy(optimizer, w, *z, 0.1) for z in pairs])
    np.testing.assert_allclose(params["model"]["w"], wanted, rtol=1e-5, atol=1e-6)
    assert stats.tolist() == [5.0] * 4 and metrics["loss"].shape == (4,)
    estimate = reptile.reptile(adapt, lambda data, batch: batch)
    grads, _, _ = estimate(state, None, jax.tree.map(jnp.asarray, examples), None)
    mean = (wanted * mask[:, None]).mean(0)
    np.testing.assert_allclose(grads["model"]["w"], w - mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size, strides", [(3, 2), (3, 1), (1, 2), (2, 1)])
def test_a_convolution_as_a_product(size, strides):
    x, w = (
        jnp.asarray(normal(0, (2, 7, 6, 3))),
        jnp.asarray(normal(1, (size,) * 2 + (3, 4))),
    )
    pads = ((size - 1) // 2, size - 1 - (size - 1) // 2)
    plain = jax.lax.conv_general_dilated(
        *(x, w, (strides, strides), (pads, pads)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = cpu_conv.as_product(x, w, strides, (pads, pads))
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)


def test_the_interval_of_a_score():
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 0, 0, 0]]
    label = np.arange(8) % 4
    examples = {"image": logits, "label": label, "mask": np.ones(8, np.float32)}
    weights = {"scale": jnp.ones((1, 1))}
    found = gap.evaluate_tree(
        lambda w, x: x * w["scale"], weights, ready_task(), [examples]
    )
    right = (logits.argmax(-1) == label).astype(float)
    error = np.std(right, ddof=1) / np.sqrt(8)
    assert found["interval"] == pytest.approx(1.96 * error, rel=1e-6)


def config(**changes):
    """A tiny run: episodes of 2 of 4 classes."""
    c = tiny_config(
        task__name="few_shot",
        meta__mode="reptile",
        model__name="conv4",
        model__width=4,
        quantizer__name="binary_ste",
        eval_batch_size=8,
        batch_size=8,
        epochs=0.4,
        eval_every=0.4,
    )
    options = {"ways": 2, "shots": 2, "queries": 3, "train_shots": 3, "steps": 2}
    options |= {"batch_size": 4, "test_steps": 3, "test_batch_size": 4}
    c.task.few_shot.update(options | {"episodes": 10, "inner_rate": 0.01})
    for section in (c.weights, c.meta):
        section.optimizer, section.momentum, section.weight_decay = "sgd", 0.0, 0.0
        section.schedule, section.learning_rate = "linear", 1.0
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def test_tasks_are_divided_over_devices():
    many = outcome(config(sparsity=0.3), 2)
    one, _ = train(experiment.build(config(sparsity=0.3), jax.devices()[:1]), 2)
    scores = many["scores"]
    assert scores["gap"] == 0 and scores["examples"] == 10 and scores["interval"] > 0
    over = scores["hard_train"] - scores["hard"]
    assert scores["generalization_gap"] == pytest.approx(over)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    jax.tree.map(close, many["state"].params, one.params)
    weights = tree.flatten(many["state"].params["model"])
    assert np.mean(weights["conv2/kernel"] == 0) == pytest.approx(0.3, abs=0.01)


def test_a_mask_is_computed_once_and_then_released():
    c = config(quantizer__name="identity", batch_size=4)  # 10 steps
    c.sparsity = pruning.dense_sparse_dense(0.5, start=0.3, end=0.7)
    exp = experiment.build(c, jax.devices()[:1])
    state, zeros = exp.state, []
    batches = exp.train_batches(0)
    for _ in range(exp.steps):
        state, _ = exp.train_step(state, exp.train_data, next(batches))
        zeros.append(np.asarray(state.params["model"]["conv3"]["kernel"]) == 0)
    shares = [z.mean() for z in zeros]
    assert exp.steps == 10
    # A step is of the mask of its own number: the third update prunes for step 3.
    np.testing.assert_allclose(shares[:7], [0] * 2 + [0.5] * 5, atol=0.01)
    assert max(shares[7:]) < 0.4  # but for channels that no image excites
    assert all((z == zeros[2]).all() for z in zeros[2:7])


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"meta__mode": "joint"}, "meta.mode='joint', expected 'reptile'"),
        ({"task__name": "classification"}, "meta.mode='reptile', expected 'joint'"),
        ({"export": True}, "export=True, expected False for task.name='few_shot'"),
        ({"quantizer__name": "metaquant"}, "'metaquant' learns through the update"),
        ({"accumulation_steps": 2}, "accumulation_steps=2 cannot be combined"),
        ({"task__few_shot__ways": 5}, "task.few_shot: ways=5, but the train images"),
    ],
)
def test_what_cannot_be_combined(changed, message):
    with pytest.raises(ValueError, match=message):
        experiment.build(config(**changed), jax.devices()[:1])


def archive(path, alphabets):
    drawing = io.BytesIO()
    Image.fromarray(np.full((105, 105), 255, np.uint8)).convert("1").save(
        drawing, "PNG"
    )
    with zipfile.ZipFile(path, "w") as file:
        for alphabet in alphabets:
            for i in range(2):
                name = f"images/{alphabet}/character01/{i}.png"
                file.writestr(name, drawing.getvalue())


def test_whole_archives_come_first(tmp_path):
    for names, alphabets in (
        (omniglot.SMALL, ("Greek", "Latin")),
        (omniglot.WHOLE, ("Greek", "Oriya")),
    ):
        for name, alphabet in zip(names, alphabets, strict=True):
            archive(tmp_path / name, [alphabet])
        found = data.load("omniglot", tmp_path)
        assert [x.split("/")[0] for x in found.classes] == list(alphabets)


def test_a_short_study(tmp_path, shared_data):
    """What the study trains, made short: Omniglot's held-out alphabets, DSD."""
    from sweeps.few_shot import STUDY

    c = STUDY.base()
    c.data.folder = str(shared_data / "omniglot")
    c.model.width, c.batch_size, c.eval_batch_size = 8, 4, 8
    c.epochs = c.eval_every = 60 * 4 / 2720
    c.sparsity, c.quantizer.name = pruning.dense_sparse_dense(0.3), "identity"
    c.task.few_shot.episodes, c.task.few_shot.test_steps = 16, 10
    c.report = c.tensorboard = False
    config_lib.check(c)
    result = run.train(c, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["examples"] == 16 and saved["interval"] == result["interval"]
    assert result["hard"] > 0.3 + result["interval"]  # of five classes
    assert "generalization gap" in summary(result)
    assert result["hard"] == result["soft"]
