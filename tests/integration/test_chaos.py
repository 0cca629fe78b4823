"""Short form of chaos.py: a run is killed twice and loses nothing."""

import json
import signal

import pytest
from program import settings

from quantnet_jax import run as train
from tests.integration import chaos

pytestmark = pytest.mark.usefixtures("compile_once")

OPTIONS = [
    f"--config={chaos.ROOT / 'configs' / 'smoke.py'}",
    *("--config.epochs=1.5", "--config.eval_every=0.5", "--config.log_every=3"),
    *("--config.tensorboard=False", "--config.report=False"),
    "--config.checkpoint_every=2",
]


def test_killed_run_ends_like_one_that_nobody_touched(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUMPY_DTYPE_PROMOTION", "strict")
    reference, workdir = tmp_path / "reference", tmp_path / "killed"
    steps = train.train(settings(checkpoint_every=2), reference)["steps"]
    kills = [
        chaos.Kill(signal.SIGKILL, after="writing"),
        chaos.Kill(signal.SIGKILL, after="saved"),
    ]
    tally = chaos.Tally(steps)
    chaos.suffer(OPTIONS, workdir, iter(kills), tally)
    assert not tally.errors, chaos.text(f"{workdir}.log")
    assert tally.counts["kills"] == 2 and tally.counts["lost_checkpoints"] == 0
    assert tally.counts["kills_while_writing"] >= 1
    assert chaos.differences(workdir, reference) == []
    # The comparison sees one lost record and one other number.
    log = workdir / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    result = json.loads((workdir / "result.json").read_text())
    (workdir / "result.json").write_text(json.dumps(result | {"hard": 2.0}))
    found = chaos.differences(workdir, reference)
    assert found == ["metrics.jsonl differs", "'hard' of result.json differs"]
