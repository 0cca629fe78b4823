"""The order of examples: exactly once, full batches, the same for any process count."""

import collections

import numpy as np
import pytest

from quantnet_jax.data import eval_batches, eval_steps, train_indices


@pytest.mark.parametrize("size", [1, 2, 7, 12, 30])
@pytest.mark.parametrize("batch_size", [1, 4, 6, 12, 40])
def test_every_epoch_sees_each_example_once(size, batch_size):
    epochs = 3
    steps = -(-size * epochs // batch_size)
    batches = [
        train_indices(t, size=size, batch_size=batch_size, seed=3) for t in range(steps)
    ]
    assert all(b["index"].shape == (batch_size,) for b in batches)
    index = np.concatenate([b["index"] for b in batches])
    position = np.concatenate([b["position"] for b in batches])
    assert position.tolist() == list(range(steps * batch_size))
    for e in range(epochs):
        assert sorted(index[e * size : (e + 1) * size]) == list(range(size))


def test_order_differs_between_epochs_and_seeds():
    def epoch(seed, number):
        batch = train_indices(number, size=100, batch_size=100, seed=seed)
        return batch["index"].tolist()

    orders = [epoch(s, e) for s in (0, 1) for e in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert all(o != sorted(o) for o in orders)
    assert orders[0] == epoch(0, 0)


def test_the_order_never_changes():
    """Golden values: if they change, resumed runs see other batches. Say so."""
    batch = train_indices(2, size=10, batch_size=4, seed=5)
    assert batch["index"].tolist() == [7, 8, 7, 4]
    assert [batch[k].dtype for k in ("index", "position", "mask")] == [
        np.int32,
        np.uint32,
        np.float32,
    ]


def test_permutations_are_uniform():
    """Each example is first about equally often (chi-square, 9 degrees of freedom)."""
    first = [
        train_indices(e, size=10, batch_size=10, seed=0)["index"][0]
        for e in range(2000)
    ]
    count = np.bincount(first, minlength=10)
    assert (np.square(count - 200) / 200).sum() < 27.9  # 0.1 % quantile


@pytest.mark.parametrize("count", [2, 3, 4])
def test_order_does_not_depend_on_the_process_count(count):
    args = dict(size=17, batch_size=12, seed=1)
    for step in (0, 1, 5):
        whole = train_indices(step, **args)
        parts = [
            train_indices(step, **args, process_index=p, process_count=count)
            for p in range(count)
        ]
        for key in whole:
            joined = np.concatenate([p[key] for p in parts])
            np.testing.assert_array_equal(joined, whole[key])


def test_position_wraps_at_32_bits():
    batch = train_indices(2**30, size=3, batch_size=4, seed=0)
    assert batch["position"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [1, 5, 8, 16, 23])
@pytest.mark.parametrize("batch_size, count", [(1, 1), (4, 1), (4, 2), (12, 4), (6, 3)])
def test_evaluation_counts_each_example_once(size, batch_size, count):
    seen, lengths = collections.Counter(), set()
    for p in range(count):
        process = {"process_index": p, "process_count": count}
        batches = list(eval_batches(size, batch_size, **process))
        lengths.add(len(batches))
        for b in batches:
            assert {v.shape for v in b.values()} == {(batch_size // count,)}
            assert set(b["mask"].tolist()) <= {0.0, 1.0}
            assert b["index"].min() >= 0 and b["index"].max() < size
            seen.update(b["index"][b["mask"] == 1].tolist())
    assert seen == collections.Counter(range(size))
    assert lengths == {eval_steps(size, batch_size)}


@pytest.mark.parametrize(
    "args, says",
    [
        (
            dict(batch_size=10, process_count=4),
            "batch_size=10 is not divisible.*8 and 12",
        ),
        (dict(batch_size=3, process_count=4), "nearest that are: 4$"),
        (dict(batch_size=0), "batch_size=0, expected at least 1"),
        (dict(process_index=2, process_count=2), "process_index=2, expected 0 to"),
        (dict(size=0), "size=0, expected at least 1"),
    ],
)
def test_errors(args, says):
    args = {"size": 10, "batch_size": 8, **args}
    with pytest.raises(ValueError, match=says):
        train_indices(0, seed=0, **args)
    with pytest.raises(ValueError, match=says):
        eval_batches(**args)  # at the call, before the first batch


@pytest.mark.parametrize("args", [dict(step=-1), dict(seed=-1)])
def test_negative_arguments(args):
    args = {"step": 0, "seed": 0, **args}
    with pytest.raises(ValueError, match="expected at least"):
        train_indices(**args, size=4, batch_size=2)
