"""Stops of the loop and chunks of steps: laws over many runs, and equal training."""

import itertools
import math
import tracemalloc

import jax
import numpy as np
import pytest
from tiny import tiny_config

from quantnet_jax.distributed import runners
from quantnet_jax.training import dispatch, experiment


@pytest.mark.parametrize(
    ("steps", "every", "save", "evaluations", "saves"),
    [
        (12, 4.0, 0, {4, 8, 12}, set()),
        (12, 4.0, 3, {4, 8, 12}, {3, 6, 9}),
        (10, 3.9, 5, {4, 8, 10}, {5}),
        (3, 0.25, 1, {1, 2, 3}, set()),
        (5, 100.0, 2, {5}, {2, 4}),
    ],
)
def test_stops(steps, every, save, evaluations, saves):
    found = dispatch.stops(steps, every, save)
    assert [set(filter(stop, range(-1, 200))) for stop in found] == [evaluations, saves]


def test_stops_of_a_long_run_are_not_listed():
    tracemalloc.start()
    evaluated, saved = dispatch.stops(80_000_000, 390.625, 3)
    counts = dispatch.counts(79_999_000, 80_000_000, 1, [evaluated, saved])
    assert sum(counts) == 1000
    assert tracemalloc.get_traced_memory()[1] < 1e5
    tracemalloc.stop()
    # As the rule says it, where rounding is at its worst.
    for every in (1.5, 2.5, 390.625, 1 / 3, 1e5 / 7):
        evaluated, _ = dispatch.stops(1000, every, 0)
        rule = {round(k * every) for k in range(1, math.ceil(1000 / every))}
        assert set(filter(evaluated, range(1001))) == rule - {0} | {1000}


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("every", [3.0, 6.5, 50.0])
def test_division_depends_on_the_step_alone(chunk, every):
    total = 23
    stops = dispatch.stops(total, every, 4)
    counts = list(dispatch.counts(0, total, chunk, stops))
    ends = list(itertools.accumulate(counts))
    sizes = {1, dispatch.part(chunk), chunk}
    wanted = {step for step in range(total + 1) if any(s(step) for s in stops)}
    assert ends[-1] == total and wanted <= set(ends) and set(counts) <= sizes
    assert not [c for end, c in zip(ends, counts, strict=True) if end % c]
    for i, end in enumerate(ends):
        assert list(dispatch.counts(end, total, chunk, stops)) == counts[i + 1 :]


def test_chunks_are_used_wherever_no_stop_is_in_between():
    assert list(dispatch.counts(0, 20, 5, [{10, 12}.__contains__])) == [
        5,
        5,
        1,
        1,
        1,
        1,
        1,
        5,
    ]
    assert list(dispatch.counts(3, 10, 5, [])) == [1, 1, 5]
    assert list(dispatch.counts(0, 18, 6, [{9}.__contains__])) == [6, 2, 1, 1, 2, 6]
    # CIFAR in batches of 128, evaluated every epoch: 391 steps in few dispatches.
    stops = dispatch.stops(78_125, 390.625, 0)
    assert sum(1 for _ in dispatch.counts(0, 78_125, 50, stops)) < 23 * 200


def test_size_of_a_chunk():
    size = dispatch.steps_per_call
    assert size(0, 50, in_memory=True, backend="cpu") == 1
    assert size(0, 50, in_memory=True, backend="gpu") == 50
    assert size(0, 50, in_memory=False, backend="gpu") == 1
    assert size(25, 50, in_memory=False, backend="cpu") == 25
    with pytest.raises(
        ValueError, match="^steps_per_call=7, .* divisor of log_every=50$"
    ):
        size(7, 50, in_memory=True, backend="gpu")


@pytest.mark.parametrize("runner", runners.RUNNERS)
def test_chunk_equals_its_steps(runner):
    exp = experiment.build(tiny_config(runner=runner, steps_per_call=3, log_every=3))
    assert exp.steps_per_call == 3
    start = jax.device_get(exp.state)
    singles, state = [], exp.state
    for batch in exp.train_batches(0, [1, 1, 1]):
        state, values = exp.train_step(state, exp.train_data, batch)
        singles.append(jax.device_get(values))
    (batch,) = exp.train_batches(0, [3])
    chunked, metrics = exp.train_chunk(
        exp.runner.replicate(start), exp.train_data, batch
    )
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    for name, values in jax.device_get(metrics).items():
        assert values.shape == (3,)
        wanted = [single[name] for single in singles]
        np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-6)
    assert int(chunked.step) == 3 and exp.is_finite(chunked)


def test_a_chunk_takes_rows_and_nothing_else_to_the_devices():
    """The images are there once for all, of training and of evaluation."""
    exp = experiment.build(
        tiny_config(runner="jit", steps_per_call=3, log_every=3), jax.devices()[:1]
    )
    first, second = exp.train_batches(0, [3, 3])
    evaluated = [exp.runner.shard(batch) for batch in exp.feed.test()]
    for batch, rows in [(first, (3, 16)), *((x, (12,)) for x in evaluated)]:
        kinds = {name: (x.shape, x.dtype.name) for name, x in batch.items()}
        types = {"index": "int32", "position": "uint32", "mask": "float32"}
        assert kinds == {name: (rows, kind) for name, kind in types.items()}
    state, _ = exp.train_chunk(exp.state, exp.train_data, first)
    with jax.transfer_guard("disallow_explicit"):
        state, values = exp.train_chunk(state, exp.train_data, second)
    assert int(state.step) == 6
    program = exp.train_chunk.lower(state, exp.train_data, second).compile().as_text()
    for word in ("infeed", "outfeed", "host_callback", "xla_python", "send("):
        assert word not in program, "a chunk must not speak to the host"
    with pytest.raises(Exception, match="Disallowed"):  # the guard sees transfers
        with jax.transfer_guard("disallow_explicit"):
            exp.runner.shard(next(exp.feed.train(0)))


def test_one_bad_number_makes_a_state_not_finite():
    exp = experiment.build(tiny_config())
    assert exp.is_finite(exp.state)
    state = jax.device_get(exp.state)
    leaves, structure = jax.tree.flatten(state)
    for i, leaf in enumerate(leaves):
        if np.issubdtype(leaf.dtype, np.floating) and leaf.size:
            bad = np.array(leaf)
            bad.flat[-1] = np.inf if i % 2 else np.nan
            changed = structure.unflatten([*leaves[:i], bad, *leaves[i + 1 :]])
            assert not exp.is_finite(exp.runner.replicate(changed)), i
