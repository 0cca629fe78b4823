"""One process of several: trains and evaluates both runners, writes what came out.

    python two_process.py FOLDER [HOST:PORT PROCESSES PROCESS]

`tests/test_distributed.py` starts it and calls `outcome` itself with four devices.
"""

import pathlib
import pickle
import sys

import jax
import numpy as np

from quantnet_jax.training import config as config_lib
from quantnet_jax.training import experiment, parallel

STEPS = 3


def tiny(runner):
    """A configuration small enough to be trained in every test."""
    config = config_lib.base()
    config.runner = runner
    config.data.name = "synthetic"
    config.data.train_size = 100
    config.data.test_size = 50
    config.data.pad = 1
    config.model.name = "small"
    config.quantizer.quantnet = {"width": 4, "sharpness": 2.0, "penalty": 0.1}
    config.batch_size = 16
    config.eval_batch_size = 12  # does not divide 50
    config.bn_batches = 2
    config.epochs = 1.0
    return config


def outcome(runner):
    """{'state': flat NumPy arrays after STEPS steps, 'metrics', 'scores', 'layers'}."""
    exp = experiment.build(tiny(runner))
    state, batches = exp.state, exp.train_batches(0)
    for _ in range(STEPS):
        state, metrics = exp.train_step(state, exp.train_data, next(batches))
    scores, layers, codes = exp.evaluate(state)
    return {
        "state": [np.asarray(x) for x in jax.tree.leaves(jax.device_get(state))],
        "metrics": {name: float(value) for name, value in metrics.items()},
        "scores": scores,
        "layers": layers,
        "codes": codes,
        "devices": (jax.local_device_count(), jax.device_count()),
    }


def main(folder, coordinator="", processes="1", process="0"):
    parallel.initialize(False, coordinator, int(processes), int(process))
    outcomes = {runner: outcome(runner) for runner in parallel.RUNNERS}
    path = pathlib.Path(folder) / f"process{process}.pickle"
    path.write_bytes(pickle.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
