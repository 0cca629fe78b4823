"""Post-training of a run: calibrated activations, scores, the command and its files."""

import ast
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import quantnet_jax as qn
from quantnet_jax import activations, evaluate, models, posttrain, sensitivity
from quantnet_jax.analysis.sensitivity import Choice
from quantnet_jax.posttrain import __main__ as command
from quantnet_jax.posttrain import run as posttrain_run
from quantnet_jax.posttrain.sites import calibrate_sites
from quantnet_jax.training import experiment


@pytest.mark.parametrize("quantile", [1.0, 0.9])
def test_clips_are_what_activations_reach(quantile):
    model = models.create(
        "small", outputs=3, act_quant=activations.learned_clip(bits=8)
    )
    x = jax.random.normal(jax.random.key(0), (3, 4, 8, 8, 3))
    variables = model.init(jax.random.key(1), x[0])
    apply = lambda p, x: model.apply({**variables, "params": p}, x)
    made = calibrate_sites(apply, variables["params"], list(x), quantile=quantile)
    plain = models.create("small", outputs=3)
    floats = {k: v for k, v in made.items() if not k.endswith("_input")}
    stem = lambda x: plain.apply(
        {"params": floats, "batch_stats": variables["batch_stats"]},
        x,
        capture_intermediates=lambda m, _: m.name == "stem_bn",
    )[1]["intermediates"]["stem_bn"]["__call__"][0]
    inputs = [np.maximum(np.asarray(stem(part)), 0.0) for part in x]
    wanted = (
        np.max(inputs) if quantile == 1.0
        else np.mean([np.quantile(part, quantile) for part in inputs])
    )  # fmt: skip
    np.testing.assert_allclose(made["conv1_input"]["qparams"], wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="no batches"):
        calibrate_sites(apply, variables["params"], [])
    with pytest.raises(ValueError, match="no sites"):
        calibrate_sites(lambda p, x: x, variables["params"], list(x))


@pytest.fixture(scope="module")
def trained():
    exp = experiment.build(tiny.tiny_config(quantizer__name="identity", layers="all"))
    state, _ = tiny.train(exp, 4)
    return exp, state


def test_the_command_scores_exports_and_resumes(trained, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        evaluate, "restore", lambda workdir, step="latest": (*trained, 4)
    )
    args = ["--workdir=run", f"--out={tmp_path}", "--images=32", "--activation-bits=8"]
    args += ["--method=error_feedback(per='tensor')", "--bits=5", "--layers=all"]
    assert command.main(args) == 0
    shown = capsys.readouterr()
    assert "error_feedback(per='tensor', bits=5), 4 tensors" in shown.out
    assert (
        "layer 4/4 head/kernel error_feedback(per='tensor', bits=5), output error"
        in shown.err
    )
    found = json.loads((tmp_path / "posttrain.json").read_text())
    assert found["activation_bits"] == 8 and set(found["layers"]) == {
        f"{name}/kernel" for name in ("stem", "conv1", "conv2", "head")
    }
    assert abs(found["hard"] - found["float"]) <= 0.1
    assert found["quantized"] == 4 and found["payload"] < found["file"]
    predictor = qn.load(tmp_path / "model.safetensors")
    assert predictor.spec.activation["name"] == "learned_clip"
    assert "error_feedback(per='tensor', bits=5)" in predictor.spec.origin["method"]
    stamps = [x.stat().st_mtime_ns for x in sorted((tmp_path / "layers").iterdir())]
    assert command.main([*args, "--no-export"]) == 0
    again = json.loads((tmp_path / "posttrain.json").read_text())
    assert again["hard_bn"] == found["hard_bn"]
    assert stamps == [
        x.stat().st_mtime_ns for x in sorted((tmp_path / "layers").iterdir())
    ]


def test_refuses_in_one_line(trained, monkeypatch, capsys):
    monkeypatch.setattr(
        evaluate, "restore", lambda workdir, step="latest": (*trained, 4)
    )
    for args, message in (
        (["--bits=9"], "error: gpfq.bits=9, expected a whole number from 1 to 8"),
        (["--method=bitat", "--bits=1"], "error: unknown config key 'bitat.bits'"),
        (
            ["--method=rtn(scalars=())"],
            "error: rtn.scalars=(), expected a tuple of one",
        ),
        (["--method=rtn(4)"], "error: method='rtn(4)', expected NAME(option=value, "),
        (["--images=0"], "error: images=0, expected a whole number from 1"),
        (["--positions=2"], "error: positions=2.0, expected a number above 0 to 1"),
        (["--layers=(("], "error: --layers='((' is not a regular expression"),
        (["--layers=nothing"], "error: rule 'nothing' matches no parameter"),
    ):
        assert command.main(["--workdir=run", *args]) == 1
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    quantized = experiment.build(tiny.tiny_config())
    monkeypatch.setattr(evaluate, "restore", lambda *_: (quantized, quantized.state, 0))
    assert command.main(["--workdir=run"]) == 1
    assert "quantizer.name='quantnet', expected 'identity'" in capsys.readouterr().err


def test_widths_for_a_budget(trained, monkeypatch, tmp_path, capsys):
    """Each layer alone, by hand; the fewest bits, the most, and what is refused."""
    monkeypatch.setattr(
        evaluate, "restore", lambda workdir, step="latest": (*trained, 4)
    )
    out = tmp_path / "widths.json"
    args = ["run", "--quantizer=lsq", "--bits", "2", "8", "--layers=all"]
    assert sensitivity.main([*args, "--budget=1000000", f"--out={out}"]) == 0
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    assert set(found["options"]) == {
        f"{name}/kernel" for name in ("stem", "conv1", "conv2", "head")
    }
    run = posttrain_run.of_state(*trained)
    w = run.params["conv1"]["kernel"]
    q = qn.quantizers.create("lsq", bits=2)
    made = qn.dequantize(q.hard(q.init(jax.random.key(0), w), w))
    assert len(np.unique(made)) <= 4
    alone = run.params | {"conv1": {"kernel": made}}
    two, eight = (found["options"]["conv1/kernel"][b] for b in ("2", "8"))
    assert two["score"] == pytest.approx(run.score(run.folded(alone)))
    assert two["nbytes"] < eight["nbytes"]
    assert found["float"] == pytest.approx(run.score(run.folded(run.params)))
    line = next(x for x in said.splitlines() if "--config.rules=" in x)
    rules = ast.literal_eval(ast.literal_eval(line.split("--config.rules=")[1]))
    assert found["nbytes"] <= 1_000_000 and found["loss"] >= 0
    config = tiny.tiny_config(rules=rules, layers="all", quantizer__name="lsq")
    config.quantizer.lsq.bits = found["bits"]
    rows = dict.fromkeys(found["options"], found["bits"])
    rows |= {row["pattern"]: row["bits"] for row in rules}
    built = experiment.Experiment(config).buckets
    for path in rows:
        (bucket,) = [b for b in built if path in b.paths]
        assert f"bits={rows[path]}" in repr(bucket.quantizer)
    fewest = sum(x["2"]["nbytes"] for x in found["options"].values())
    assert sensitivity.main([*args, f"--budget={fewest}"]) == 0
    assert f"{fewest:,} bytes by" in capsys.readouterr().out
    assert sensitivity.main([*args, f"--budget={fewest - 1}"]) == 1
    said = capsys.readouterr().err
    assert f"budget={fewest - 1} bytes, expected {fewest} at least" in said


def test_most_layers_follow_the_default_rule():
    choice = Choice({"a/kernel": "2", "b/kernel": "8", "c/kernel": "2"}, 0.1, 10)
    made = sensitivity._chosen(choice, "lsq")
    row = {"pattern": "b/kernel", "quantizer": "lsq", "bits": 8}
    assert (made["bits"], made["rules"]) == (2, (row,))


def test_the_room_can_be_called(trained):
    params = {"kernel": jnp.ones((3, 2))}
    rules = [qn.Rule("kernel", posttrain.rtn(bits=2))]
    apply = lambda p, x: x @ p["kernel"]
    made = qn.posttrain(apply, params, [jnp.ones((1, 3))], rules, report=lambda _: None)
    np.testing.assert_allclose(qn.dequantize(made["kernel"]), params["kernel"])
