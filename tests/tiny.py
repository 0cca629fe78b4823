"""Configurations small enough to be trained in a test, and a loop that trains them."""

import jax
import numpy as np

from quantnet_jax import config as config_lib
from quantnet_jax.training import experiment


def tiny_config(**overrides):
    """A configuration of the smallest network on 8 x 8 images.

    Args:
      **overrides: values of config keys, '__' for the dot, such as `meta__mode`.
    """
    config = config_lib.base()
    config.data.name = "synthetic"
    config.data.train_size = 100
    config.data.test_size = 50
    config.data.pad = 1
    config.model.name = "small"
    fixed = {"width": 4, "sharpness": 2.0, "penalty": 0.1, "scale": "none"}
    config.quantizer.quantnet = fixed
    config.batch_size = 16
    config.eval_batch_size = 12  # does not divide 50
    config.recalibration_batches = 2
    config.epochs = 0.96  # 6 steps
    config.eval_every = 0.32
    config.tensorboard = config.export = False
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in overrides.items()}
    )
    return config


def train(exp, steps):
    """State after `steps` steps, and the metrics of the last one as floats."""
    state, metrics = exp.state, {}
    batches = exp.train_batches(0)
    for _ in range(steps):
        state, metrics = exp.train_step(state, exp.train_data, next(batches))
    return state, {name: float(value) for name, value in metrics.items()}


def outcome(config, steps, devices=None):
    """What a run of `steps` steps gives, on the host.

    Returns:
      {'state', 'metrics', 'scores', 'layers', 'codes', 'devices'}.
    """
    exp = experiment.build(config, devices)
    state, metrics = train(exp, steps)
    scores, layers, codes = exp.evaluate(state)
    return {
        "state": jax.tree.map(np.array, jax.device_get(state)),
        "metrics": metrics,
        "scores": scores,
        "layers": layers,
        "codes": codes,
        "devices": (jax.local_device_count(), jax.device_count()),
    }
