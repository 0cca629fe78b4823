"""Short runs of the training program, each configuration compiled once."""

import copy
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np

from configs import smoke
from quantnet_jax import run as train
from quantnet_jax.checkpoint import manager
from quantnet_jax.training import experiment

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 12  # in three evaluations, each with a checkpoint
TIMING = ("seconds", "step_time", "examples_per_second", "data_wait", "device_memory")
BUILT = {}


def settings(**changes):
    """A configuration of 12 steps; `a__b=1` sets `a.b`."""
    config = smoke.get_config()
    config.epochs, config.eval_every = 1.5, 0.5
    config.log_every = 3
    config.tensorboard = config.report = config.export = False
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        setattr(config[section] if section else config, name, value)
    return config


def replaced(exp, **parts):
    """A copy of an experiment with other parts; it shares all that is compiled."""
    other = copy.copy(exp)
    vars(other).update(parts)
    return other


BUILD = experiment.build


def build_once(config):
    """Builds, and compiles, each configuration once for all tests of a process."""
    # Without what only the loop reads.
    loop = ("keep_latest", "eval_every", "log_every", "init_from", "checkpoint_every")
    key = str({k: v for k, v in config.to_dict().items() if k not in loop})
    if key not in BUILT:
        exp = BUILD(config)
        BUILT[key] = exp, jax.device_get(exp.state)
    exp, state = BUILT[key]
    state = exp.runner.replicate(state)  # steps donate theirs
    return replaced(exp, config=config, state=state)


def whole_run(make_folder):
    """(workdir, result) of a run from start to end; the workdir is a copy."""
    if "whole" not in BUILT:
        workdir = make_folder("whole") / "run"
        BUILT["whole"] = workdir, train.train(settings(), workdir)
    workdir, result = BUILT["whole"]
    return shutil.copytree(workdir, make_folder("copy") / "run"), result


def without_timing(record):
    return {k: v for k, v in record.items() if k not in (*TIMING, "commit")}


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [without_timing(json.loads(line)) for line in lines]


def state_of(workdir, config, step="latest"):
    like = experiment.build(config).state
    with manager.Checkpoints(workdir, read_only=True) as saved:
        return jax.device_get(saved.restore(jax.device_get(like), step).state)


def assert_same_run(workdir, other, config=None):
    """Parameters, optimizer, BatchNorm, log and result are equal to the last bit."""
    config = config or settings()
    a, b = state_of(workdir, config), state_of(other, config)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert len(jax.tree.leaves(a.opt_state)) > 4 and jax.tree.leaves(a.batch_stats)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    assert records(workdir) == records(other)
    results = [json.loads((w / "result.json").read_text()) for w in (workdir, other)]
    assert without_timing(results[0]) == without_timing(results[1])


def stop_at(monkeypatch, build, step):
    """Makes the run end, as by Ctrl-C, instead of taking its `step`-th own step."""

    def build_one(config):
        exp, taken = build(config), []

        def train_step(*args):
            taken.append(1)
            if len(taken) == step:
                raise KeyboardInterrupt
            return exp.train_step(*args)

        return replaced(exp, train_step=train_step)

    monkeypatch.setattr(train.experiment, "build", build_one)


def preempted(monkeypatch, build, step, number=signal.SIGTERM):
    """Makes the run get a signal while it takes its `step`-th own dispatch."""

    def build_one(config):
        exp, taken = build(config), []

        def told(run):
            def call(*args):
                taken.append(1)
                if len(taken) == step:
                    os.kill(os.getpid(), number)
                return run(*args)

            return call

        return replaced(
            exp, train_step=told(exp.train_step), train_chunk=told(exp.train_chunk)
        )

    monkeypatch.setattr(train.experiment, "build", build_one)
