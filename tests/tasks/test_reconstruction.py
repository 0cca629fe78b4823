"""A task that is not classification, through the same program: images, PSNR."""

import json
import re

import jax
import numpy as np
import pytest
from program import ROOT
from tiny import tiny_config

import quantnet_jax as qn
from quantnet_jax import evaluate
from quantnet_jax import run as train
from quantnet_jax.evaluation.gap import evaluate_tree
from quantnet_jax.logging import progress
from quantnet_jax.training import experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, result) of a run of the reconstruction task."""
    config = tiny_config(
        task__name="reconstruction",
        model__name="autoencoder",
        epochs=4.0,
        eval_every=2.0,
        weights__learning_rate=0.05,
        report=True,
        export=True,
    )
    workdir = tmp_path_factory.mktemp("reconstruction") / "run"
    return workdir, train.train(config, workdir)


def test_trains_and_evaluates(run):
    workdir, result = run
    assert result["metric"]["name"] == "psnr" and result["metric"]["unit"] == " dB"
    assert result["gap"] == pytest.approx(result["soft"] - result["hard"])
    assert result["examples"] == 50 and result["psnr_between"] > 0
    rows = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (row["psnr"] for row in rows if row["kind"] == "train")
    assert last > first + 1  # it learns
    again = evaluate.evaluate(str(workdir))
    for name in ("soft", "hard", "hard_bn", "loss_soft", "psnr_between"):
        assert again[name] == result[name]


def test_scores_against_numpy(run):
    exp, state, _ = evaluate.restore(str(run[0]))
    hard = exp.deployed(state)
    outputs = exp.scoring.predict(
        exp.runner.place(experiment.tree.dequantize_tree(hard))
    )
    image = exp.feed.test_data["image"] / 255.0
    pixels = outputs * np.asarray(exp.feed.std) + np.asarray(exp.feed.mean)
    mse = ((pixels - image) ** 2).mean((1, 2, 3))
    wanted = -10 * np.log10(mse).mean()
    assert run[1]["hard"] == pytest.approx(wanted, rel=1e-4)
    assert exp.scoring.measure(outputs) == pytest.approx(wanted, rel=1e-4)
    folded = exp.model.clone(folded=True)
    scores = evaluate_tree(
        lambda params, x: folded.apply({"params": params}, x),
        *(hard, exp.task, exp.feed.test()),
        data=jax.device_get(exp.data["test"]),
    )
    assert scores["hard"] == pytest.approx(wanted, rel=1e-4) and scores["gap"] == 0.0


def test_what_ships_is_what_was_evaluated(run):
    """The packed file and the StableHLO program give the images of the hard network."""
    workdir, result = run
    for name in ("packed", "exported"):
        assert result[name] == pytest.approx(result["hard"], rel=1e-5)
    predictor = qn.load(workdir / "export" / "model.safetensors")
    exp, state, _ = evaluate.restore(str(workdir))
    hard = experiment.tree.dequantize_tree(exp.deployed(state))
    images = exp.feed.test_data["image"]
    outputs = predictor(images)
    wanted = exp.scoring.predict(exp.runner.place(hard))
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-4)


def test_report_and_progress_are_in_decibels(run, capsys):
    workdir, result = run
    page = (workdir / "report.html").read_text()
    body = page.split("<body")[1].split("<script")[0]
    assert f"{result['hard']:.2f}" in body and "dB" in body and "accuracy" not in body
    text = progress.summary(result)
    scores = text.split("layer")[0].replace("95 %", "")
    assert f"{result['soft']:.2f} dB" in scores and "%" not in scores
    others = [k for k in result if k.endswith("_hard")]
    assert others
    for shown in (scores, body):
        assert f"{result['interval']:.2f} dB" in shown
        for key in others:
            assert (
                f"{key.removesuffix('_hard').replace('_', ' ')}, hard" in shown.lower()
            )


# What knows no task ------------------------------------------------------------------
WORDS = re.compile(
    r"(?<![-a-z])(labels?|classes|accurac(y|ies))(?![a-z])", re.IGNORECASE
)
NEUTRAL = (
    *("training", "evaluation", "checkpoint", "distributed", "deploy", "report"),
    *("logging", "posttrain", "export.py", "evaluate.py", "exhibits.py", "run.py"),
    "own.py",
)


def test_only_tasks_and_data_know_what_is_learned():
    found = []
    for room in NEUTRAL:
        top = ROOT / "quantnet_jax" / room
        for path in [top] if top.is_file() else sorted(top.rglob("*.py")):
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if WORDS.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found
