"""Tests of states that devices divide among them by output channel (`fsdp`)."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import tiny_config, train

from quantnet_jax import quantizers
from quantnet_jax.analysis.collectives import collectives
from quantnet_jax.checkpoint.manager import Checkpoints
from quantnet_jax.core.quantizer import Quantizer, prepared
from quantnet_jax.distributed import runners
from quantnet_jax.training import experiment
from quantnet_jax.trees import tree

STEPS = 5


@functools.cache
def build(runner="jit", devices=4, fsdp=1):
    config = tiny_config(runner=runner, fsdp=fsdp)
    return experiment.build(config, jax.devices()[:devices])


@functools.cache
def run(devices, fsdp):
    """(state at the start, state, metrics, evaluation) of a short training."""
    exp = build("jit", devices, fsdp)
    state, metrics = train(exp, STEPS)
    return exp.state, state, metrics, exp.evaluate(state)


def host(state):
    return jax.tree.map(np.array, jax.device_get(state))


def assert_placed(state, parts):
    """Every leaf lies where `leaf_spec` says, and a device holds just its part."""
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        spec = runners.leaf_spec(x.shape, parts)
        assert x.sharding.spec == spec, name
        share = parts if spec else 1
        assert {s.data.nbytes for s in x.addressable_shards} == {x.nbytes // share}


@pytest.mark.parametrize(
    ("shape", "parts", "spec"),
    [
        ((3, 3, 16, 32), 4, (None, None, None, "fsdp")),
        ((32,), 4, ("fsdp",)),
        ((4, 10), 2, (None, "fsdp")),
        ((4, 10), 4, ()),  # 10 channels cannot be divided by 4
        ((8, 2), 4, ()),
        ((), 4, ()),
        ((3, 0), 4, ()),
        ((3, 3, 16, 32), 1, ()),
    ],
)
def test_leaf_spec(shape, parts, spec):
    assert runners.leaf_spec(shape, parts) == PartitionSpec(*spec)


@pytest.mark.parametrize("fsdp", [2, 4])
def test_each_device_holds_its_part_of_the_state(fsdp):
    state = build(fsdp=fsdp).state
    assert_placed(state, fsdp)
    leaves = jax.tree.leaves((state.params, state.opt_state))
    whole = sum(x.nbytes for x in leaves)
    held = sum(x.addressable_shards[0].data.nbytes for x in leaves)
    rest = sum(x.nbytes for x in leaves if not x.shape or x.shape[-1] % fsdp)
    assert held == (whole - rest) / fsdp + rest
    assert rest < 0.2 * whole  # of this small network; see docs/tpu_pod.md


def test_sharded_training_is_the_same_training():
    """Two by two devices against one: states, metrics, scores; and codes."""
    _, wanted, wanted_metrics, (wanted_scores, _, wanted_codes) = run(1, 1)
    start, state, metrics, (scores, layers, codes) = run(4, 2)
    assert all(x.is_deleted() for x in jax.tree.leaves(start))  # donated
    assert_placed(state, 2)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(host(state)),
        jax.tree.leaves(host(wanted)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, 1e-6, 1e-6, err_msg=jax.tree_util.keystr(path))
    for name, value in wanted_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    for name, value in wanted_scores.items():
        assert scores[name] == pytest.approx(value, rel=1e-5), name
    assert layers.keys() == wanted_codes.keys() == codes.keys()
    differ = [np.mean(codes[path] != wanted_codes[path]) for path in codes]
    assert max(differ) < 0.01  # none but weights that lie on a threshold


def test_deployed_weights_come_to_the_host_whole():
    exp, state = build("jit", 4, 2), run(4, 2)[1]
    deployed = tree.flatten(jax.device_get(exp.deployed(state)))
    for path, codes in exp.codes(state).items():
        np.testing.assert_array_equal(deployed[path].codes, codes)


@pytest.mark.parametrize(
    "place", [("pmap", 1, 1), ("pmap", 4, 1), ("jit", 2, 1), ("jit", 4, 4)]
)
def test_checkpoints_go_to_other_places_and_back(tmp_path, place):
    """Exactly: to another runner, number of devices or division, and from there."""
    state, like = run(4, 2)[1], build("jit", 4, 2).state
    other = build(*place)
    with Checkpoints(tmp_path / "there") as there:
        there.save(STEPS, state)
        restored = there.restore(other.state)
    moved = other.runner.place(restored.state)
    assert_placed(moved, place[2])
    with Checkpoints(tmp_path / "back") as back:
        back.save(STEPS, moved)
        again = back.restore(like).state
    assert_placed(again, 2)
    for tree_ in (moved, again):
        for a, b in zip(jax.tree.leaves(tree_), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("unit", ["weight", "slice", "filter"])
def test_quantnet_sends_nothing_but_its_own_parameters(unit):
    """Output channels are independent: their weights and codes stay where they are."""
    runner = runners.make_runner("jit", None, 4)
    params = {k: jnp.ones((3, 3, 2, 8)) for k in ("a", "b")}
    q = quantizers.create("quantnet", total_steps=10, unit=unit, width=4)
    q = tree.tree_quantizer([tree.Rule(".*", q, "model")], params)
    qparams = jax.jit(q.init)(jax.random.key(9), params)
    q = prepared(q, runner.all_gather)

    def both(qparams, params, axis_name):
        codes = jax.tree.leaves(q.hard(qparams, params), is_leaf=tree.is_qtensor)
        return q.soft(qparams, params, step=0), [qt.codes for qt in codes]

    program = runner.compile(both, 2, out=runners.STATE)
    lowered = program.lower(runner.place(qparams), runner.place(params))
    found = collectives(lowered.compile().as_text())
    own = {f"f32[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(qparams)}
    assert {one.kind for one in found} <= {"all-gather"}
    assert {array for one in found for array in one.arrays} <= own


def test_prepared_changes_parameters_everywhere_but_in_init():
    q = Quantizer(
        init=lambda key, w: 1.0,
        soft=lambda p, w, *, step, key=None: p * w,
        hard=lambda p, w: p - w,
        penalty=lambda p, w, *, step: p * step,
    )
    doubled = prepared(q, lambda p: 2 * p)
    assert doubled.soft(3.0, 5.0, step=0) == 30.0
    assert doubled.hard(3.0, 5.0) == 1.0
    assert doubled.penalty(3.0, 5.0, step=7) == 42.0
    assert doubled.init is q.init
    assert doubled.gradient is None and doubled.project is None


@pytest.mark.parametrize("fsdp", [0, 3, 8])
def test_devices_that_cannot_be_divided(fsdp):
    with pytest.raises(ValueError, match=f"^fsdp={fsdp} does not divide the 4 devices"):
        runners.make_runner("jit", None, fsdp)


def test_fsdp_needs_jit():
    with pytest.raises(ValueError, match="^fsdp=2 needs runner='jit'"):
        runners.make_runner("pmap", None, 2)


def test_eight_devices_sharded_by_four():
    """Equal to eight whole ones, and each device holds about a quarter."""
    folder = pathlib.Path(__file__).parents[1]
    paths = [str(folder.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(folder / "eight_devices.py")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["error"] < 1e-5 and found["flipped"] == 0
    assert len(set(found["whole"])) == 1 and len(found["whole"]) == 8
    shares = [a / b for a, b in zip(found["sharded"], found["whole"], strict=True)]
    assert all(0.25 <= share < 0.3 for share in shares), shares
