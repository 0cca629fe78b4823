"""The recipe of ImageNet at full size on real images: a step, and an evaluation."""

import math

import chex
import jax
import numpy as np

from configs import imagenet_resnet18
from quantnet_jax.training import experiment


def test_resnet18_learns_from_real_images_and_is_scored_on_them(real):
    """224 pixels, bfloat16, QuantNet, smoothing, an average."""
    config = imagenet_resnet18.get_config()
    config.data.name, config.data.folder = "tfds:many_labels", str(real[0])
    config.data.workers = 0
    config.batch_size = config.eval_batch_size = 4
    config.weights.warmup = config.meta.warmup = 0.0  # the first step moves something
    config.recalibration_batches = 0
    assert (
        config.dtype,
        config.task.classification.label_smoothing,
        config.ema_decay,
    ) == (
        "bfloat16",
        0.1,
        0.9999,
    )
    exp = experiment.build(config, jax.devices()[:1])
    assert exp.feed.shape == (224, 224, 3) and exp.feed.train_size == 40
    batch = next(exp.train_batches(0))
    assert batch["image"].dtype == np.uint8
    before = jax.device_get((exp.state.params, exp.state.ema["params"]))
    state, metrics = exp.train_step(exp.state, exp.train_data, batch)
    chex.assert_tree_all_finite(metrics)
    assert abs(metrics["loss"] - math.log(40)) < 1  # knows nothing, of 40 classes
    for old, new in zip(before, (state.params, state.ema["params"]), strict=True):
        for part in ("model", "quant"):
            pairs = zip(
                jax.tree.leaves(old[part]), jax.tree.leaves(new[part]), strict=True
            )
            assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
    scores, layers, _ = exp.evaluate(state)
    assert scores["examples"] == 11 and len(layers) == 19  # all but stem and head
    chex.assert_tree_all_finite(scores)
