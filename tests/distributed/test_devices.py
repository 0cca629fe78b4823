"""Runs that are resumed, evaluated and exported on other devices than before."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from quantnet_jax import evaluate
from quantnet_jax.checkpoint import manager
from quantnet_jax.distributed import runners
from quantnet_jax.logging import records
from quantnet_jax.training import experiment

PLACES = (("pmap", 1, range(2)), ("jit", 4, range(2, 4)), ("pmap", 2, range(4, 25)))
EPOCHS = 4  # of 100 examples, in 25 steps; after step 6 the rates are 0


def test_one_curve_and_each_example_once_an_epoch(tmp_path):
    def go(exp, state, steps):
        """Trains; returns the state, the losses, and the examples that were fed."""
        losses, fed = [], []
        batches = exp.train_batches(steps[0], [1] * len(steps))
        for _, batch in zip(steps, batches, strict=True):
            fed.append(np.asarray(batch["index"]).ravel())
            state, numbers = exp.train_step(state, exp.train_data, batch)
            losses.append(float(numbers["loss"]))
        return state, losses, fed

    curve, seen, untouched = [], [], []
    for runner, count, steps in PLACES:
        # Programs of these places are made in test_parallel.py, too.
        exp = experiment.build(tiny_config(runner=runner), jax.devices()[:count])
        assert exp.runner.devices == count
        state = jax.device_get(exp.state)
        if not untouched:
            _, untouched, _ = go(exp, exp.runner.replicate(state), range(25))
        with manager.Checkpoints(tmp_path) as saved:
            if steps[0]:
                restored = saved.restore(state)
                assert restored.step == steps[0]
                state = restored.state
            state, losses, fed = go(exp, exp.runner.replicate(state), steps)
            saved.save(steps[-1] + 1, state)
        curve += losses
        seen += fed
    assert untouched[0] > 1.01 * untouched[5]
    np.testing.assert_allclose(curve, untouched, rtol=1e-5)
    for epoch in np.concatenate(seen).reshape(EPOCHS, 100):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(100))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """(workdir, scores) of a state that four devices shard in pairs."""
    workdir = tmp_path_factory.mktemp("sharded")
    config = tiny_config(runner="jit", fsdp=2, accumulation_steps=4)
    records.write_json(workdir / "config.json", config.to_dict())
    exp = experiment.build(config)
    with manager.Checkpoints(workdir) as saved:
        saved.save(1, exp.state)
    return workdir, exp.evaluate(exp.state)[0]


@pytest.mark.parametrize(("here", "used"), [(1, 1), (3, 2)])
def test_evaluation_on_other_devices(sharded, here, used, monkeypatch):
    """Two of three devices divide batches of 16 and 12; one cannot shard in pairs."""
    workdir, wanted = sharded
    devices = jax.devices()[:here]
    monkeypatch.setattr(runners.jax, "devices", lambda: devices)
    exp, state, step = evaluate.restore(str(workdir))
    assert (exp.runner.devices, step) == (used, 1)
    scores, _, _ = exp.evaluate(state)
    assert scores.keys() == wanted.keys()
    for name, value in wanted.items():
        assert scores[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
