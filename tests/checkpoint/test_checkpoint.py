"""Tests of checkpoints: exact round trips, retention, misuse, damage, warm starts."""

import json
import os
import re
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from quantnet_jax.checkpoint import manager

# Where one array cannot be read, Orbax closes its event loop under the other reads.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)


class State(NamedTuple):
    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


class Net(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def make_state(seed=0, width=4):
    rng = np.random.default_rng(seed)

    def normal(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    params = {
        "model": {
            "stage1_block0": {"conv1": {"kernel": normal(3, 3, 1, width)}},
            "head": {"kernel": normal(width, 10), "bias": normal(10)},
        },
        "quant": {
            "stage1_block0/conv1/kernel": Net(normal(5, 2), normal(2)),
            "shared.net": (
                normal(2, dtype=jnp.bfloat16),
                jnp.arange(3, dtype=jnp.uint8),
            ),
            "head/kernel": (),
            "none": {"empty": jnp.zeros((0, 3))},
        },
    }
    tx = optax.partition(
        {
            "w": optax.chain(
                optax.clip_by_global_norm(1.0),
                optax.masked(optax.trace(0.9), lambda p: jax.tree.map(jnp.ndim, p)),
                optax.adam(1e-3),
            ),
            "m": optax.sgd(optax.constant_schedule(0.1), momentum=0.9),
        },
        {"model": "w", "quant": "m"},
    )
    tx = optax.masked(tx, True)
    floats = params | {
        "quant": {"stage": params["quant"]["stage1_block0/conv1/kernel"]}
    }
    opt_state = jax.tree.map(
        lambda a: normal(*a.shape, dtype=a.dtype) if a.dtype.kind == "f" else a + 7,
        tx.init(floats),
    )
    stats = {"bn": {"mean": normal(width), "var": normal(width)}}
    return State(jnp.int32(seed + 1), params, stats, opt_state)


def tiny(value=0.0, size=2):
    return {"step": jnp.int32(0), "params": jnp.full(size, value, jnp.float32)}


def bits(tree):
    """Byte-level content of every leaf, in tree order."""
    return [
        (np.asarray(x).dtype.name, np.asarray(x).shape, np.asarray(x).tobytes())
        for x in jax.tree.leaves(tree)
    ]


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert bits(a) == bits(b)


def abstract(tree, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def step_folder(workdir, step):
    return os.path.join(workdir, "checkpoints", f"{step:08d}")


def test_round_trip_is_exact_and_retains_the_structure(tmp_path):
    state = make_state(3)
    with manager.Checkpoints(tmp_path) as saved:
        assert saved.latest() is None and saved.best() is None
        aux = {"codes": np.arange(3, dtype=np.uint8)}
        assert saved.save(4, state, {"hard": 0.5}, {"epoch": 2, "name": "a"}, aux)
        assert not saved.save(4, state)
    with manager.Checkpoints(tmp_path) as again:
        out = again.restore(abstract(state))
        assert (out.step, out.extra) == (4, {"epoch": 2, "name": "a"})
        assert bits(out.aux) == bits(aux) and out.aux.keys() == aux.keys()
        assert_identical(out.state, state)
        assert isinstance(out.state, State)
        assert out.state.params["quant"]["head/kernel"] == ()


def test_asynchronous_save_is_not_changed_by_a_donating_step(tmp_path):
    update = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    state = {**tiny(), "params": jnp.arange(1 << 16, dtype=jnp.float32)}
    with manager.Checkpoints(tmp_path) as saved:
        saved.save(1, state)
        for _ in range(20):
            state = update(state)
        jax.block_until_ready(state)
    with manager.Checkpoints(tmp_path, read_only=True) as again:
        out = again.restore(abstract(state)).state["params"]
    np.testing.assert_array_equal(out, np.arange(1 << 16, dtype=np.float32))


def test_latest_and_best_survive_also_after_reopening(tmp_path):
    state = tiny()
    with manager.Checkpoints(tmp_path, keep_latest=2) as saved:
        for step, hard in enumerate([0.1, 0.9, 0.3, 0.2], 1):
            saved.save(step, tiny(step), {"hard": hard})
        saved.save(5, state, {"hard": float("nan")})
        saved.wait()
        assert saved.steps() == [2, 4, 5]
    with manager.Checkpoints(tmp_path, keep_latest=2) as saved:
        assert (saved.latest(), saved.best()) == (5, 2)
        saved.save(6, state, {"hard": 0.4})
        saved.wait()
        assert saved.steps() == [2, 5, 6]
        like = tiny()
        assert saved.restore(like, "best").state["params"].tolist() == [2, 2]
        assert saved.restore(like, 2).step == 2


@pytest.mark.parametrize("higher", [True, False])
def test_direction_of_the_metric(tmp_path, higher):
    options = dict(keep_latest=1, metric="error", higher_is_better=higher)
    with manager.Checkpoints(tmp_path, **options) as saved:
        for step, error in enumerate([0.5, 0.9, 0.1, 0.3], 1):
            saved.save(step, tiny(), {"error": error})
        saved.wait()
        best = 2 if higher else 3
        assert (saved.best(), saved.steps()) == (best, [best, 4])


def test_restores_onto_other_device_counts(tmp_path):
    state = make_state(1)
    four = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("batch",))
    wide = jax.sharding.NamedSharding(four, jax.sharding.PartitionSpec())
    one = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    with manager.Checkpoints(tmp_path) as saved:
        saved.save(1, jax.device_put(state, wide))
        saved.wait()
        for target in (one, wide):
            out = saved.restore(abstract(state, target)).state
            assert_identical(out, state)
            stored = [x for x in jax.tree.leaves(out) if x.size]
            assert all(x.sharding == target for x in stored)
        kept = saved.restore(jax.device_put(state, wide)).state
        assert kept.step.sharding == wide


def test_params_are_read_without_the_optimizer(tmp_path):
    state = make_state(2)
    with manager.Checkpoints(tmp_path) as saved:
        saved.save(9, state)
    shutil.rmtree(os.path.join(step_folder(tmp_path, 9), "optimizer"))
    like = {"params": state.params, "batch_stats": state.batch_stats}
    with manager.Checkpoints(tmp_path, read_only=True) as saved:
        out = saved.restore(abstract(like))
        assert_identical(out.state, like)
        arrays = saved.load_arrays().state
    assert all(isinstance(a, np.ndarray) for a in arrays.values())
    name = "params/quant/stage1_block0/conv1/kernel/bias"
    expected = state.params["quant"]["stage1_block0/conv1/kernel"].bias
    np.testing.assert_array_equal(arrays[name], expected)
    assert "params/quant/none/empty" not in arrays


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda s: make_state(width=8),
            ("params/model/head/kernel", "float32[4,10]", "float32[8,10]"),
        ),
        (
            lambda s: s._replace(batch_stats={}),
            ("batch_stats/bn/mean", "as float32[4]", "builds nothing"),
        ),
        (
            lambda s: s._replace(step=s.step.astype(jnp.uint32)),
            ("'step'", "int32[]", "uint32[]"),
        ),
        (
            lambda s: s._replace(params={**s.params, "new": jnp.ones(2)}),
            ("params/new", "as nothing", "float32[2]"),
        ),
    ],
)
def test_another_architecture_is_named_in_one_line(tmp_path, change, parts):
    state = make_state()
    with manager.Checkpoints(tmp_path) as saved:
        saved.save(1, state)
        with pytest.raises(ValueError, match="another architecture") as error:
            saved.restore(abstract(change(state)))
        assert saved.steps() == [1]
    text = str(error.value)
    assert "\n" not in text and step_folder(tmp_path, 1) in text
    assert all(part in text for part in parts), text


def truncate_data(folder):
    for root, _, files in os.walk(folder):
        for name in files:
            if os.path.basename(root) == "d":
                os.truncate(os.path.join(root, name), 3)


def drop_item(folder):
    shutil.rmtree(os.path.join(folder, "weights"))


def drop_metadata(folder):
    os.remove(os.path.join(folder, "weights", "_METADATA"))


DAMAGES = [truncate_data, drop_item, drop_metadata]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_latest_checkpoint_falls_back_with_a_warning(tmp_path, damage):
    state = make_state()
    with manager.Checkpoints(tmp_path, keep_latest=3) as saved:
        for step in (1, 2):
            saved.save(step, state._replace(step=jnp.int32(step)))
    folder = step_folder(tmp_path, 2)
    damage(folder)
    with manager.Checkpoints(tmp_path, keep_latest=3) as saved:
        with pytest.raises(ValueError, match=re.escape(folder)) as error:
            saved.restore(abstract(state), 2)
        assert "\n" not in str(error.value)
        with pytest.warns(UserWarning, match="00000002.*falling back to step 1"):
            out = saved.restore(abstract(state))
        assert out.step == 1 and int(out.state.step) == 1
        assert os.path.isdir(folder + ".damaged")
        # The resumed run reaches step 2 again and must be able to save it.
        assert saved.save(2, state)
        saved.wait()
        assert saved.steps() == [1, 2]


def test_the_only_checkpoint_damaged_is_an_error_and_is_left_alone(tmp_path):
    state = make_state()
    with manager.Checkpoints(tmp_path) as saved:
        saved.save(1, state)
    truncate_data(step_folder(tmp_path, 1))
    with manager.Checkpoints(tmp_path) as saved:
        with pytest.raises(ValueError, match="damaged or incomplete"):
            saved.restore(abstract(state))
    assert os.path.isdir(step_folder(tmp_path, 1))


def test_one_of_several_processes_never_falls_back_alone(tmp_path):
    state = make_state()
    with manager.Checkpoints(tmp_path) as saved:
        for step in (1, 2):
            saved.save(step, state)
    drop_item(step_folder(tmp_path, 2))
    with manager.Checkpoints(tmp_path, processes=2) as saved:
        with pytest.raises(ValueError, match="00000002' is damaged"):
            saved.restore(abstract(state))
    assert os.path.isdir(step_folder(tmp_path, 2))


def test_read_only_falls_back_without_renaming(tmp_path):
    state = make_state()
    with manager.Checkpoints(tmp_path) as saved:
        for step in (1, 2):
            saved.save(step, state)
    drop_item(step_folder(tmp_path, 2))
    with manager.Checkpoints(tmp_path, read_only=True) as saved:
        with pytest.warns(UserWarning, match="falling back to step 1"):
            assert saved.restore(abstract(state)).step == 1
    assert os.path.isdir(step_folder(tmp_path, 2))


def test_a_save_cut_off_by_a_kill_is_not_seen(tmp_path):
    state = make_state()
    with manager.Checkpoints(tmp_path) as saved:
        saved.save(1, state)
    partial = step_folder(tmp_path, 2) + ".orbax-checkpoint-tmp"
    shutil.copytree(step_folder(tmp_path, 1), partial)
    with manager.Checkpoints(tmp_path) as saved:
        assert saved.latest() == 1
        assert saved.save(2, state)
    assert not os.path.exists(partial)


def test_misuse_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoints in workdir"):
        manager.Checkpoints(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()
    with pytest.raises(ValueError, match="keep_latest=0"):
        manager.Checkpoints(tmp_path, keep_latest=0)
    with manager.Checkpoints(tmp_path) as saved:
        with pytest.raises(FileNotFoundError, match="saved steps: none"):
            saved.restore(tiny())
        with pytest.raises(ValueError, match="'params' is float, expected"):
            saved.save(1, {"params": 1.0})
        with pytest.raises(ValueError, match="no arrays for the item 'optimizer'"):
            saved.save(1, {"params": jnp.ones(2)})
        with pytest.raises(ValueError, match="'a/b' names two leaves"):
            saved.save(1, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})
        saved.save(5, tiny())
        saved.wait()
        with pytest.raises(ValueError, match="step=4 is below"):
            saved.save(4, tiny())
        with pytest.raises(ValueError, match="step='newest'"):
            saved.restore(tiny(), "newest")
        with pytest.raises(FileNotFoundError, match=r"step=3 .*\[5\]"):
            saved.restore(tiny(), 3)
        with pytest.raises(FileNotFoundError, match="step='best'"):
            saved.restore(tiny(), "best")


def test_metrics_of_the_best_are_on_disk(tmp_path):
    with manager.Checkpoints(tmp_path) as saved:
        saved.save(1, tiny(), {"hard": 0.25})
    path = os.path.join(step_folder(tmp_path, 1), "metrics", "metrics")
    with open(path, encoding="utf-8") as file:
        assert json.load(file) == {"hard": 0.25}


def test_a_kill_in_a_deletion_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path, monkeypatch
):
    # A deletion that never gets anywhere, as of a process killed again and again.
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with manager.Checkpoints(tmp_path, keep_latest=1) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, tiny(step), {"hard": 0.5})
    folder = tmp_path / "checkpoints"
    assert (folder / "deleted").is_dir()  # the way it goes, or nothing is tested
    with manager.Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        kept = checkpoints.steps()
        assert 3 in kept and len(kept) < 3
        for step in kept:
            assert_identical(checkpoints.restore(tiny(0), step).state, tiny(step))
    assert not (folder / "deleted").exists()
