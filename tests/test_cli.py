"""Every entry point once, as a process of its own, as a user would start it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TRAIN = str(ROOT / "train.py")


def run(*args, cwd, code=0):
    """Runs `python *args` outside the repository, with pipes; checks the exit code."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of the run, what the command printed)."""
    folder = tmp_path_factory.mktemp("cli")
    done = run(
        TRAIN,
        f"--config={ROOT / 'configs' / 'smoke.py'}",
        "--workdir=runs/smoke",
        "--config.float_baseline=True",
        "--config.epochs=1.25",
        "--config.weights.milestones=(0.25,0.5)",
        cwd=folder,
    )
    return folder / "runs" / "smoke", done


def read(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_training_leaves_a_whole_run(trained):
    workdir, done = trained
    for part in (workdir, workdir / "float"):
        for name in ("config.json", "metrics.jsonl", "result.json", "report.html"):
            assert (part / name).is_file()
        assert list((part / "checkpoints").iterdir())
    assert list((workdir / "tensorboard").iterdir())
    config = json.loads((workdir / "config.json").read_text())
    assert config["epochs"] == 1.25 and config["weights"]["milestones"] == [0.25, 0.5]
    assert config["quantizer"]["name"] == "quantnet"


def test_float_baseline_stands_in_the_table(trained):
    workdir, done = trained
    result, baseline = read(workdir), read(workdir / "float")
    assert (result["method"], baseline["method"]) == ("quantnet", "identity")
    assert result["float"] == baseline["hard"] == baseline["soft"]
    assert baseline["gap"] == 0.0 and not baseline["layers"]
    tables = done.stdout.split("quantnet", 1)
    (line,) = [x for x in tables[1].splitlines() if x.startswith("float")]
    assert line.split()[1] == f"{100 * result['float']:.2f}%"
    for name in ("soft - hard", "hard + BN", "conv1/kernel"):
        assert name in tables[1]


def test_pipes_get_plain_lines(trained):
    _, done = trained
    assert "\r" not in done.stderr and "\x1b" not in done.stderr + done.stdout
    lines = [x for x in done.stderr.splitlines() if x.startswith("step ")]
    assert lines[-1].startswith("step 10/10 | loss ") and " gap " in lines[-1]
    assert len(lines) == len(done.stderr.splitlines()), done.stderr


def test_evaluate_reproduces_the_numbers_exactly(trained, tmp_path):
    workdir, done = trained
    out = tmp_path / "out.json"
    again = run(
        "-m", "quantnet_jax.evaluate", f"--workdir={workdir}", f"--out={out}",
        cwd=tmp_path,
    )  # fmt: skip
    result, evaluated = read(workdir), json.loads(out.read_text())
    keys = ("soft", "hard", "hard_bn", "gap", "gap_bn", "loss_soft", "loss_hard", "kl")
    for key in (*keys, "examples", "method", "seed"):
        assert evaluated[key] == result[key], key
    assert evaluated["step"] == result["steps"]
    for path, layer in result["layers"].items():
        assert layer["distance"] == evaluated["layers"][path]["distance"]
    table = [x for x in again.stdout.splitlines() if x.startswith(("soft", "hard"))]
    assert table and all(line in done.stdout for line in table)


def test_report_of_several_runs(trained, tmp_path):
    workdir, _ = trained
    page = tmp_path / "page.html"
    done = run(
        "-m", "quantnet_jax.report", "--workdir", workdir, workdir / "float",
        "--out", page, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == str(page)
    text = page.read_text()
    assert "quantnet" in text and "identity" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--config.wieghts.learning_rate=1"],
            ["'wieghts.learning_rate'", "did you mean 'weights'"],
        ),
        (["--config.sead=0"], ["'sead'", "did you mean 'seed'"]),
        (["--config.seed=x"], ["config.seed=x", "int"]),
        (["--config=nowhere.py"], ["nowhere.py"]),
        ([f"--config={ROOT / 'configs' / 'smoke.py'}:bread"], ["'bread'", "runlocal"]),
        (["--config.runner=pamp"], ["runner='pamp'", "'pmap'"]),
        (["--workdir=s3://bucket/run"], ["s3://bucket/run", "gs://BUCKET"]),
    ],
)
def test_wrong_command_line_is_told_in_one_line(args, words, tmp_path):
    done = run(TRAIN, "--workdir=run", *args, cwd=tmp_path, code=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert not done.stdout and not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["evaluate", "report"])
def test_folder_without_a_run(module, tmp_path):
    done = run("-m", f"quantnet_jax.{module}", "--workdir=no", cwd=tmp_path, code=2)
    (line,) = done.stderr.splitlines()
    assert "no" in line and ("run" in line or "folder" in line)


def test_help(tmp_path):
    done = run(TRAIN, "--help", cwd=tmp_path, code=1)  # absl's code for help
    for word in ("--config", "--workdir", "resumes"):
        assert word in done.stdout
    done = run("-m", "tools.make_bundled", "--help", cwd=tmp_path)
    assert "usage:" in done.stdout
