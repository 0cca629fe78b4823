"""Every entry point once, as a process of its own, as a user would start it."""

import importlib
import io
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from quantnet_jax.common import command

# ml_collections reads configurations by a method that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = pathlib.Path(__file__).parents[2]
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
    signs = lambda x: x.startswith("note: the gap ") or x.endswith(" ...")
    rest = [x for x in done.stderr.splitlines() if not signs(x)]
    assert len(lines) == len(rest), done.stderr


def test_evaluate_reproduces_the_numbers_exactly(trained, tmp_path):
    workdir, done = trained
    out = tmp_path / "out.json"
    again = run(
        "-m", "quantnet_jax.evaluate", workdir, f"--out={out}",
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
        (["--config.weights.lr", "1"], ["did you mean 'learning_rate'"]),
        (["--config.bs=1"], ["did you mean 'batch_size'"]),
        (["--config.wd=1"], ["mean 'meta.weight_decay' or 'weights.weight_decay'"]),
        (["--config.seed=x"], ["config.seed=x", "int"]),
        (["--config=nowhere.py"], ["nowhere.py"]),
        (["--config=cifar100_resnet21"], ["did you mean 'cifar100_resnet20'"]),
        (["--config=smoke:bread"], ["'bread'", "runlocal"]),
        ([f"--config={ROOT / 'configs' / 'smoke.py'}:bread"], ["'bread'", "runlocal"]),
        (["--config.runner=pamp"], ["runner='pamp'", "'pmap'"]),
        (["--workdir=s3://bucket/run"], ["s3://bucket/run", "gs://BUCKET"]),
    ],
)
def test_wrong_configuration_is_told_in_one_line(args, words, tmp_path, capsys):
    assert main_of("train")([f"--workdir={tmp_path / 'run'}", *args]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert not out and not (tmp_path / "run").exists()


COMMANDS = {
    "train": [],
    "evaluate": ["no"],
    "export": ["--workdir=no"],
    "export_onnx": ["--artifact=no"],
    "predict": ["no", "no.png"],
    "posttrain": ["no"],
    "sensitivity": ["no"],
    "summary": ["--artifact=no"],
    "report": ["no"],
    "zoo": ["no"],
    "experiments": ["table", "small"],
}
"""Command -> arguments that are well formed, of things that are not there."""


def main_of(name):
    package = (ROOT / "quantnet_jax" / name).is_dir()
    module = f"quantnet_jax.{name}" + (".__main__" if package else "")
    return importlib.import_module(module).main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_defaults(name, capsys):
    texts = []
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as ended:
            main_of(name)([flag])
        assert ended.value.code in (0, None)
        out, err = capsys.readouterr()
        assert not err and out.startswith(f"usage: python -m quantnet_jax.{name} ")
        texts.append(out)
    assert texts[0] == texts[1]
    defaults = {"train": "runs/default", "evaluate": "latest", "predict": "auto"}
    assert f"(default: {defaults.get(name, '')}" in texts[0] or name not in defaults


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_usage_is_one_line_and_2(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main_of(name)([*COMMANDS[name], "--debgu"])
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert ended.value.code == 2 and not out
    assert line.startswith("error: unknown argument '--debgu'; did you mean '--debug'")


@pytest.mark.parametrize("name", [x for x in COMMANDS if x not in ("train",)][:-1])
def test_what_is_not_there_is_one_line_and_1(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main_of(name)(COMMANDS[name]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("error: ") and "no" in line and not out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("train", ["configs/smoke.py"], "unknown argument 'configs/smoke.py'"),
        ("train", ["--config.seed=1", "2"], "unknown argument '2'"),
        ("train", ["--workdirs=x"], "did you mean '--workdir'"),
        ("train", ["--seed=1"], "unknown argument '--seed=1'"),
        ("train", ["--workdir="], "--workdir: '', expected a folder"),
        ("train", ["--coordinator=x"], "--coordinator=x: expected HOST:PORT"),
        ("train", ["--process=1"], "need --coordinator"),
        ("evaluate", [], "expected DIR, or --workdir=DIR"),
        ("evaluate", ["a", "--workdir=b"], "workdir is given twice"),
        ("evaluate", ["a", "--step=²"], "'²' is neither"),
        ("report", [], "expected DIR, or --workdir=DIR"),
        ("predict", ["a"], "expected FILE IMAGE"),
        ("predict", ["a", "b", "--top=0"], "--top=0: expected 1 or more"),
    ],
)
def test_usage(name, args, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main_of(name)(args)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_position_and_flag_are_the_same(trained, capsys):
    workdir, _ = trained
    for name in ("evaluate", "report", "summary"):
        texts = []
        for words in ([str(workdir)], [f"--workdir={workdir}"]):
            assert main_of(name)(words) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] and texts[0]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "a/b"), "a/b: Permission denied"),
        (ValueError("two\nlines"), "two lines"),
        (KeyboardInterrupt(), "interrupted"),
        (ModuleNotFoundError("x", name="onnx"), "'quantnet_jax[onnx]'"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "No module named 'x'"),
    ],
)
def test_errors_of_a_command_are_one_line_and_1(error, line, capsys):
    def work(args):
        raise error

    parser = command.Parser("x", "X.")
    assert command.run(parser, work, []) == 1
    assert capsys.readouterr().err.startswith("error: ")
    if isinstance(error, KeyboardInterrupt):
        return
    assert command.run(parser, work, ["--debug"]) == 1
    *trace, last = capsys.readouterr().err.splitlines()
    assert trace and line in last
    with pytest.raises(KeyError):  # a fault of the program: with its traceback
        command.run(parser, lambda args: {}["x"], [])


def test_what_takes_long_says_what_it_does(capsys):
    with command.phase("compiling", after=60):
        pass
    assert not capsys.readouterr().err
    said, stream = threading.Event(), io.StringIO()
    stream.flush = said.set
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with command.phase("compiling", after=0):
            assert said.wait(60)
    assert stream.getvalue() == "compiling ...\n"


def test_a_closed_pipe_is_no_traceback(tmp_path):
    code = "from quantnet_jax.zoo.__main__ import main; import sys; sys.exit(main())"
    done = subprocess.run(
        f"{sys.executable} -c '{code}' --json | head -c 10",
        shell=True, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert len(done.stdout) == 10 and not done.stderr


def test_tools_have_help(tmp_path):
    done = run("-m", "tools.make_bundled", "--help", cwd=tmp_path)
    assert "usage:" in done.stdout
    done = run(TRAIN, "--help", cwd=tmp_path)
    assert "resumes" in done.stdout
