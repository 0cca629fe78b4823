"""The training program: stop and resume, warm start, refusals, divergence, results."""

import json
import os
import re
import shutil
import signal

import chex
import jax
import numpy as np
import pytest
from program import (
    STEPS,
    assert_same_run,
    preempted,
    records,
    replaced,
    settings,
    state_of,
    stop_at,
    without_timing,
)

from quantnet_jax import run as train
from quantnet_jax.checkpoint import manager
from quantnet_jax.common import limits
from quantnet_jax.common.command import MENDABLE
from quantnet_jax.config import ranges
from quantnet_jax.trees.paths import flatten

pytestmark = pytest.mark.usefixtures("compile_once")


def contents(workdir):
    """{path: bytes} of every file of a run."""
    return {p: p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()}


# Stop and resume ----------------------------------------------------------------------


@pytest.mark.parametrize("after", [8, 6], ids=["at a checkpoint", "between two"])
def test_resumed_run_is_the_uninterrupted_run(
    whole, tmp_path, monkeypatch, compile_once, capsys, after
):
    workdir = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_at(patch, compile_once, after + 1)
        with pytest.raises(KeyboardInterrupt):
            train.train(settings(), workdir)
    assert not (workdir / "result.json").exists()
    last = after - after % 4
    result = train.train(settings(), workdir)
    assert f"resuming at step {last}" in capsys.readouterr().err
    assert_same_run(whole[0], workdir)
    assert without_timing(result) == without_timing(whole[1])
    assert len({r["step"] for r in records(workdir) if r["kind"] == "eval"}) == 3


def test_damaged_latest_checkpoint_falls_back(whole, tmp_path):
    workdir, _ = whole
    reference = tmp_path / "reference"
    shutil.copytree(workdir, reference)
    arrays = workdir / manager.FOLDER / f"{STEPS:08d}" / "weights"
    for path in arrays.rglob("*"):
        if path.is_file() and path.stat().st_size > 50:
            path.write_bytes(path.read_bytes()[:50])
    with pytest.warns(UserWarning, match="damaged.*falling back to step 8"):
        train.train(settings(), workdir)
    assert_same_run(reference, workdir)


def test_damaged_metrics_of_the_latest_checkpoint_fall_back(whole, tmp_path):
    workdir, _ = whole
    reference = tmp_path / "reference"
    shutil.copytree(workdir, reference)
    metrics = workdir / manager.FOLDER / f"{STEPS:08d}" / "metrics" / "metrics"
    metrics.write_text("")
    with pytest.raises(ValueError, match="cannot open the checkpoints"):
        manager.Checkpoints(workdir, read_only=True)
    with pytest.warns(UserWarning, match="metrics are damaged .renamed"):
        train.train(settings(), workdir)
    assert_same_run(reference, workdir)


def test_error_looked_for_is_not_hidden_by_a_stale_workdir(whole):
    with pytest.raises(MENDABLE, match="^batch_size=30 is not a positive"):
        train.train(settings(batch_size=30), whole[0])
    with pytest.raises(MENDABLE, match="seed=0, got 1 .and other task.classif"):
        changed = settings(seed=1)
        changed.task.classification.label_smoothing = 0.1
        train.train(changed, whole[0])


def test_wide_gap_in_the_middle_is_explained_once(whole, tmp_path, capsys):
    log = [r for r in records(whole[0]) if r["kind"] == "eval"]
    wide = any(abs(r["gap"]) > 0.1 * r["soft"] for r in log[:-1])
    train.train(settings(), tmp_path / "run")
    assert capsys.readouterr().err.count("note: the gap is soft - hard") == wide == 1


def test_unreadable_folder_of_checkpoints_is_told_in_one_line(whole):
    workdir, _ = whole
    for path in (workdir / manager.FOLDER).glob("*/metrics/*"):
        path.write_text("{")
    with pytest.raises(MENDABLE, match="^cannot open the checkpoints") as error:
        train.train(settings(), workdir)
    assert "\n" not in str(error.value)


def test_configuration_in_the_checkpoint_counts_where_config_json_is_lost(whole):
    workdir, _ = whole
    (workdir / "config.json").unlink()
    config = settings()
    config.weights.learning_rate = 0.05
    with pytest.raises(
        MENDABLE, match="^.*step 12.*weights.learning_rate=0.1, got 0.05"
    ):
        train.train(config, workdir)
    assert not (workdir / "config.json").exists()
    train.train(settings(), workdir)
    assert (workdir / "config.json").is_file()


@pytest.mark.parametrize("text", ["[]", "{}", '{"config": {}, "seen": 3}'])
def test_checkpoint_with_other_json_counts_as_damaged(whole, text):
    workdir, _ = whole
    for path in (workdir / manager.FOLDER / f"{STEPS:08d}" / "extra").iterdir():
        path.write_text(text)
    with pytest.warns(UserWarning, match="damaged.*falling back to step 8"):
        train.train(settings(), workdir)


def test_finished_run_is_not_trained_again(whole, monkeypatch, compile_once, capsys):
    workdir, result = whole
    before = contents(workdir)
    stop_at(monkeypatch, compile_once, 1)
    again = train.train(settings(), workdir)
    assert again | {"commit": 0} == result | {"commit": 0}
    printed = capsys.readouterr()
    for key in ("soft", "hard", "hard_bn"):
        assert f"{100 * result[key]:.2f}%" in printed.out
    after = contents(workdir)
    after.pop(workdir / "result.json"), before.pop(workdir / "result.json")
    assert after == before


# Warm start ---------------------------------------------------------------------------


def test_warm_start_takes_over_what_fits(whole, tmp_path, capsys):
    source, _ = whole
    # With all rates 0 the one step changes no parameter: they are those of `source`.
    frozen = dict(weights__learning_rate=0.0, meta__learning_rate=0.0, epochs=0.125)
    config = settings(init_from=str(source), data__classes=3, **frozen)
    train.train(config, tmp_path / "warm")
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "warm start" in x]
    # kernel and bias of the head
    assert re.search(r"warm start: \d+ matched, 0 missing, 0 unexpected, 2 mism", line)
    assert "head/kernel: float32[4,4] -> float32[4,3]" in line and str(source) in line
    assert "head/bias: float32[4] -> float32[3]" in line
    report = json.loads((tmp_path / "warm" / "warm_start.json").read_text())
    assert (report["from"], report["step"]) == (str(source), STEPS)
    built = flatten(state_of(tmp_path / "warm", config)._asdict())
    built = {k for k in built if k.split("/")[0] in ("params", "batch_stats")}
    other = {line.split(":")[0] for line in report["mismatched"]}
    assert other == {"params/model/head/kernel", "params/model/head/bias"}
    assert set(report["matched"]) == built - other and len(other) == 2
    assert report["missing"] == report["unexpected"] == []
    warm, old = state_of(tmp_path / "warm", config), state_of(source, settings())
    for name in ("stem", "conv1", "conv2", "bn1"):
        for a, b in zip(
            jax.tree.leaves(warm.params["model"][name]),
            jax.tree.leaves(old.params["model"][name]),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    assert int(warm.step) == 1


def test_warm_start_of_another_method(
    whole, tmp_path, monkeypatch, compile_once, capsys
):
    config = settings(init_from=str(whole[0]), quantizer__name="identity")
    stop_at(monkeypatch, compile_once, 1)  # what matched is told before
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "warm")
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "warm start" in x]
    assert re.search(r"0 missing, [1-9]\d* unexpected \(params/quant/", line)


@pytest.mark.parametrize("fits", [True, False], ids=["no run", "nothing fits"])
def test_useless_warm_start_claims_no_workdir(whole, tmp_path, fits):
    changes = {} if fits else dict(model__width=5, data__classes=3)
    source = tmp_path / "nowhere" if fits else whole[0]
    message = "init_from=.* holds no run" if fits else "init_from has no array"
    config = settings(init_from=str(source), quantizer__name="identity", **changes)
    with pytest.raises(MENDABLE, match=f"^{message}") as error:
        train.train(config, tmp_path / "warm")
    assert "\n" not in str(error.value)
    # The next try, with the name put right, is not refused.
    assert not (tmp_path / "warm" / "config.json").exists()


# Refusals -----------------------------------------------------------------------------


def test_workdir_of_another_configuration(whole):
    workdir, _ = whole
    before = contents(workdir)
    with pytest.raises(MENDABLE, match="^.* was created with seed=0, got 1"):
        train.train(settings(seed=1), workdir)
    assert contents(workdir) == before


def test_checkpoint_of_another_architecture(whole):
    workdir, _ = whole
    wider = settings(model__width=5)
    (workdir / "config.json").write_text(wider.to_json())
    before = contents(workdir)
    with pytest.raises(MENDABLE, match="is of another architecture: 'params/"):
        train.train(wider, workdir)
    assert contents(workdir) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 30}, "batch_size=30 is not a positive multiple of the 4"),
        ({"layers": "bread"}, "bread"),
        ({"data__image_size": 28, "data__name": "bundled", "data__pad": 28}, "pad=28"),
        ({"data__name": "bundled", "data__image_size": 32}, "28 x 28 pixels"),
        ({"model__name": "resnet9"}, "did you mean 'resnet"),
        ({"quantizer__name": "quantnte"}, "did you mean 'quantnet'"),
        ({"optimizers": ({"pattern": "bread"},)}, "optimizers[0].pattern='bread'"),
    ],
)
def test_bad_value_writes_nothing(tmp_path, changes, message):
    with pytest.raises(MENDABLE, match="^") as error:
        train.train(settings(**changes), tmp_path / "run")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# Divergence ---------------------------------------------------------------------------


def test_divergence_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    # The warm-up starts at 0, so the first step is harmless; the next ones are absurd,
    # by a rate that is refused otherwise.
    monkeypatch.setitem(ranges.LIMITS, "weights.learning_rate", limits.Number())
    config = settings(
        weights__learning_rate=1e38,
        weights__warmup=0.5,
        eval_every=0.125,
        quantizer__name="binary_ste",
    )
    with pytest.raises(MENDABLE, match=r"^diverged at step \d+: loss") as e:
        train.train(config, tmp_path / "run")
    text = str(e.value)
    assert "\n" not in text and "weights.learning_rate" in text
    step = int(re.search(r"at step (\d+)", text)[1])
    assert 1 < step < STEPS
    with manager.Checkpoints(tmp_path / "run", read_only=True) as saved:
        steps = saved.steps()
    assert steps and f"step {steps[-1]}" in text and steps[-1] < step
    for number in steps:
        state = state_of(tmp_path / "run", config, number)
        chex.assert_tree_all_finite(state)
    assert not (tmp_path / "run" / "result.json").exists()


# Results ------------------------------------------------------------------------------


def test_result_and_log(whole):
    workdir, result = whole
    assert json.loads((workdir / "result.json").read_text()) == result
    keys = {"method", "seed", "steps", "seconds", "soft", "hard", "hard_bn", "examples"}
    assert keys | {"versions", "device", "commit", "layers"} <= result.keys()
    assert "float" not in result
    assert (result["method"], result["seed"]) == ("quantnet", 0)
    assert result["steps"] == STEPS and result["examples"] == 64
    assert result["seconds"] > 0 and result["device"].startswith("4 x ")
    for key in ("soft", "hard", "hard_bn"):
        assert result[key] * 64 == round(result[key] * 64)
    assert result["gap"] == result["soft"] - result["hard"]
    assert set(result["layers"]) == {"conv1/kernel", "conv2/kernel"}
    log = records(workdir)
    assert [r["step"] for r in log if r["kind"] == "eval"] == [4, 8, 12]
    assert [r["step"] for r in log if r["kind"] == "train"] == [3, 4, 6, 8, 9, 12]
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "train":
            assert row["step_time"] > 0 and row["examples_per_second"] > 0
            assert 0 <= row["data_wait"] <= 1 and row["device_memory"] > 1e6
    last = [r for r in log if r["kind"] == "eval"][-1]
    assert all(last[key] == result[key] for key in ("soft", "hard", "hard_bn", "gap"))


def test_best_and_latest_checkpoint_are_kept(tmp_path):
    config = settings(keep_latest=1, eval_every=0.25)
    train.train(config, tmp_path / "run")
    hard = {r["step"]: r["hard"] for r in records(tmp_path / "run") if "hard" in r}
    with manager.Checkpoints(tmp_path / "run", read_only=True) as saved:
        assert hard[saved.best()] == max(hard.values())
        assert set(saved.steps()) == {saved.best(), STEPS}
        assert saved.latest() == STEPS


def test_straight_through_has_no_gap(tmp_path):
    config = settings(quantizer__name="binary_ste", epochs=0.5)
    result = train.train(config, tmp_path / "run")
    assert result["gap"] == 0.0 and result["soft"] == result["hard"]
    assert result["loss_soft"] == result["loss_hard"]
    assert result["kl"] == 0.0
    assert all(v["distance"] == 0.0 for v in result["layers"].values())


# Checkpoints between evaluations, SIGTERM, chunks, a trace ----------------------------


@pytest.mark.parametrize("chunk", [1, 3])
def test_sigterm_saves_the_step_and_asks_to_be_resumed(
    whole, tmp_path, monkeypatch, compile_once, capsys, chunk
):
    workdir, config = tmp_path / "told", settings(steps_per_call=chunk)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        preempted(patch, compile_once, 4)
        with pytest.raises(SystemExit) as stopped:
            train.train(config, workdir)
    assert stopped.value.code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    step = {1: 4, 3: 6}[chunk]  # of three chunks and single steps up to step 4
    assert f"checkpoint saved at step {step}" in capsys.readouterr().err
    result = train.train(config, workdir)
    assert f"at step {step}" in capsys.readouterr().err
    assert result["steps"] == STEPS
    if chunk == 1:
        assert_same_run(whole[0], workdir)


def test_ctrl_c_stops_as_sigterm_does_and_the_second_at_once(
    whole, tmp_path, monkeypatch, compile_once, capfd, request
):
    workdir, before = tmp_path / "told", signal.default_int_handler
    # A shell starts what runs in the background with the signal ignored.
    inherited = signal.signal(signal.SIGINT, before)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    with monkeypatch.context() as patch:
        preempted(patch, compile_once, 4, signal.SIGINT)
        with pytest.raises(SystemExit) as stopped:
            train.train(settings(), workdir)
    assert stopped.value.code == 75
    assert signal.getsignal(signal.SIGINT) is before
    printed = capfd.readouterr().err
    assert "received SIGINT: checkpoint saved at step 4" in printed
    assert "again to stop at once" in printed
    with pytest.raises(KeyboardInterrupt), train.Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_at_the_last_step_of_the_float_run_stops_the_run(
    tmp_path, monkeypatch, compile_once
):
    config = settings(float_baseline=True, epochs=0.125, eval_every=0.125)
    preempted(monkeypatch, compile_once, 1)
    with pytest.raises(SystemExit) as stopped:
        train.train(config, tmp_path / "run")
    assert stopped.value.code == 75
    assert (tmp_path / "run" / "float" / "result.json").is_file()
    assert not (tmp_path / "run" / "config.json").exists()  # of the main run


def test_sigterm_while_building_stops_after_the_first_step(
    whole, tmp_path, monkeypatch, compile_once
):
    workdir = tmp_path / "early"

    def build(config):
        os.kill(os.getpid(), signal.SIGTERM)
        return compile_once(config)

    with monkeypatch.context() as patch:
        patch.setattr(train.experiment, "build", build)
        with pytest.raises(SystemExit) as stopped:
            train.train(settings(), workdir)
    assert stopped.value.code == 75
    with manager.Checkpoints(workdir, read_only=True) as saved:
        assert saved.steps() == [1]
    train.train(settings(), workdir)
    assert_same_run(whole[0], workdir)


def test_checkpoints_between_evaluations(whole, tmp_path, monkeypatch, compile_once):
    # Stopped after step 7: the last checkpoint is of step 6, in the middle of a record
    # (of steps 5 and 6) and of the way from one evaluation to the next.
    workdir = tmp_path / "between"
    config = settings(checkpoint_every=2, log_every=5, keep_latest=9)
    with monkeypatch.context() as patch:
        stop_at(patch, compile_once, 8)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, workdir)
    with manager.Checkpoints(workdir, read_only=True) as saved:
        assert saved.steps() == [2, 4, 6]
        extra = saved.load_arrays(6).extra
    assert extra["config"]["checkpoint_every"] == 2 and len(extra["seen"]) == 1
    assert extra["data"]["position"] == 6 * config.batch_size
    train.train(config, workdir)
    other = settings(log_every=5)
    uninterrupted = tmp_path / "uninterrupted"
    train.train(other, uninterrupted)
    assert records(workdir) == records(uninterrupted)
    a, b = state_of(workdir, config), state_of(uninterrupted, other)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_checkpoint_of_other_data_is_refused(whole):
    workdir, _ = whole
    for path in (workdir / manager.FOLDER).glob("*/extra/*"):
        text = path.read_text()
        path.write_text(re.sub(r'"size": ?\d+', '"size": 127', text))
    with pytest.raises(MENDABLE, match="^.*step 12.*: size is 127 there"):
        train.train(settings(), workdir)


def test_state_that_is_not_finite_is_never_saved(tmp_path, monkeypatch, compile_once):
    def build_one(config):
        exp = compile_once(config)
        return replaced(exp, is_finite=lambda state: int(state.step) < 6)

    monkeypatch.setattr(train.experiment, "build", build_one)
    with pytest.raises(MENDABLE, match="^diverged at step 6: .*state nan"):
        train.train(settings(checkpoint_every=2), tmp_path / "run")
    with manager.Checkpoints(tmp_path / "run", read_only=True) as saved:
        assert saved.steps() == [2, 4]


def test_chunks_train_alike(whole, tmp_path):
    train.train(settings(steps_per_call=3), tmp_path / "chunks")
    assert [r["step"] for r in records(tmp_path / "chunks")] == [
        r["step"] for r in records(whole[0])
    ]
    a, b = (
        state_of(tmp_path / "chunks", settings(steps_per_call=3)),
        state_of(whole[0], settings()),
    )
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_profile_writes_a_trace(tmp_path):
    train.train(settings(epochs=4.0, eval_every=4.0), tmp_path / "run", profile=True)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
