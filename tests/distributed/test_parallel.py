"""Tests of the runners: pmap, jit with shardings and one device give the same run."""

import functools

import chex
import jax
import numpy as np
import pytest
from tiny import tiny_config, train

from quantnet_jax.distributed import hosts
from quantnet_jax.distributed import runners as parallel
from quantnet_jax.training import experiment

STEPS = 5
pytestmark = pytest.mark.optimized  # unoptimized programs drift apart in five steps
METHODS = {
    "quantnet": {},
    "binary_ste": {"quantizer__name": "binary_ste"},
    "bilevel": {"meta__mode": "bilevel", "meta__exact": True},
}
PLACES = [("pmap", 4), ("jit", 4), ("pmap", 1), ("pmap", 2)]


@functools.cache
def run(method, runner, devices):
    """(state, metrics) on the devices after STEPS steps with augmentation."""
    config = tiny_config(runner=runner, **METHODS[method])
    assert config.data.pad and config.data.flip and config.weights.momentum
    return train(experiment.build(config, jax.devices()[:devices]), STEPS)


def host(state):
    return jax.tree.map(np.array, jax.device_get(state))


CASES = [
    pytest.param(method, *place, id=f"{method}-{place[0]}{place[1]}")
    for method in METHODS
    # All methods' gradients are averaged alike: one of them on all places will do.
    for place in (PLACES if method == "quantnet" else PLACES[:2])
]


@pytest.mark.parametrize(("method", "runner", "devices"), CASES)
def test_runners_agree_with_one_program_on_one_device(method, runner, devices):
    """To 1e-6 after five steps: all of the state, and the metrics."""
    reference, reference_metrics = run(method, "jit", 1)
    state, metrics = run(method, runner, devices)
    got, wanted = host(state), host(reference)
    assert int(got.step) == int(wanted.step) == STEPS
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    parts = dict.fromkeys(
        ("params/model", "params/quant", "batch_stats", "opt_state"), 0
    )
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        parts |= {k: n + 1 for k, n in parts.items() if name.startswith(k)}
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=name)
        # Second moments are far below 1e-6: there the difference must be small too.
        size = np.max(np.abs(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * size, err_msg=name)
    lacking = {k for k, n in parts.items() if not n}
    assert lacking == ({"params/quant"} if method == "binary_ste" else set())
    assert metrics.keys() == reference_metrics.keys()
    for name, value in metrics.items():
        assert value == pytest.approx(reference_metrics[name], rel=2e-6), name


def test_training_moves_every_part_of_the_state():
    """Otherwise the agreement above would say nothing."""
    start = host(experiment.build(tiny_config(), jax.devices()[:1]).state)
    end = host(run("quantnet", "jit", 1)[0])
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(end), strict=True
    ):
        assert np.max(np.abs(a - b)) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("runner", parallel.RUNNERS)
def test_replicas_are_equal_bit_for_bit(runner):
    state, _ = run("quantnet", runner, 4)
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        assert len(x.addressable_shards) == 4, name
        assert x.is_fully_replicated, name
        first = np.asarray(x.addressable_shards[0].data)
        for shard in x.addressable_shards[1:]:
            np.testing.assert_array_equal(np.asarray(shard.data), first, err_msg=name)


@pytest.mark.parametrize("kind", parallel.RUNNERS)
def test_compile_replicates_splits_and_gathers(kind):
    """The contract of a runner, on a function that says what it was given."""
    runner = parallel.make_runner(kind)

    def fn(scale, x, axis_name):
        total = x.sum()
        if axis_name is not None:
            total = jax.lax.psum(total, axis_name)
        return scale * total

    x = np.arange(8, dtype=np.float32)
    scale = runner.replicate(np.float32(2.0))
    total = runner.compile(fn, replicated=1)(scale, runner.shard(x))
    assert float(total) == 56.0
    assert total.is_fully_replicated

    rows = runner.compile(lambda x, axis_name: 2.0 * x, 0, out=parallel.SHARDED)
    assert np.asarray(rows(runner.shard(x))).ravel().tolist() == (2 * x).tolist()
    alone = runner.compile(lambda s, axis_name: s + 1.0, replicated=1)
    assert float(alone(scale)) == 3.0


@pytest.mark.parametrize("kind", parallel.RUNNERS)
def test_donated_arguments_are_deleted_and_others_are_not(kind):
    runner = parallel.make_runner(kind)
    step = runner.compile(lambda s, x, axis_name: s + 1.0, 1, donate=True)
    state = runner.replicate(np.zeros(3, np.float32))
    batch = runner.shard(np.zeros(4, np.float32))
    step(state, batch)
    assert state.is_deleted()
    assert np.asarray(batch).sum() == 0.0


@pytest.mark.parametrize("kind", parallel.RUNNERS)
def test_second_call_does_not_compile_again(kind):
    """What the training loop relies on: another step is not another program."""
    chex.clear_trace_counter()
    runner = parallel.make_runner(kind)
    fn = lambda s, x, axis_name: s + 0.0 * x.sum()
    step = runner.compile(chex.assert_max_traces(fn, n=1), 1)
    state = runner.replicate(np.float32(0))
    for i in range(3):
        state = step(state, runner.shard(np.full(4, i, np.float32)))
    with pytest.raises(AssertionError, match="traced > 1 times"):
        step(state, runner.shard(np.ones(8, np.float32)))  # another shape is


def test_unknown_runner():
    with pytest.raises(ValueError, match="runner='threads', expected one of"):
        parallel.make_runner("threads")


@pytest.mark.parametrize("size", [0, -4, 3, 6])
def test_batch_must_be_divisible_by_the_devices(size):
    runner = parallel.make_runner("pmap")
    with pytest.raises(ValueError, match=f"^batch_size={size} is not .* of 4$"):
        parallel.check_batch("batch_size", size, runner)
    parallel.check_batch("batch_size", 8, runner)


@pytest.mark.parametrize(("process", "processes"), [(2, 2), (-1, 2), (0, 0)])
def test_process_number_out_of_range(process, processes):
    with pytest.raises(ValueError, match=f"process={process}, expected 0 to"):
        hosts.initialize(False, "localhost:1", processes, process)


def test_one_process_joins_nothing():
    hosts.initialize()
    assert hosts.describe_devices() == "4 x cpu"


@pytest.mark.parametrize("cache_home", [True, False])
def test_programs_are_cached_for_accelerators(cache_home, tmp_path, monkeypatch):
    key = "jax_compilation_cache_dir"
    given = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    wanted = tmp_path / ".cache" / "quantnet_jax"
    if cache_home:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        wanted = tmp_path / "other" / "quantnet_jax"
    try:
        monkeypatch.setattr(hosts, "backend", lambda: "gpu")
        hosts.initialize()
        assert jax.config.jax_compilation_cache_dir == given  # what is set stays
        jax.config.update(key, None)
        hosts.initialize()
        assert jax.config.jax_compilation_cache_dir == str(wanted)
        jax.config.update(key, None)
        monkeypatch.setattr(hosts, "backend", lambda: "cpu")
        hosts.initialize()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update(key, given)
