"""The example on a few images: both frameworks learn, and ship two weight values."""

import inspect
import json
import math

import jax
import pytest

from examples import binarize_your_model as example

OPTIONS = "--train-size=160 --test-size=60 --batch-size=16 --epochs=3"


@pytest.mark.parametrize("framework", example.FRAMEWORKS)
def test_model_is_trained_and_binary(framework, tmp_path, capsys):
    out = tmp_path / "result.json"
    words = [f"--framework={framework}", *OPTIONS.split(), f"--out={out}"]
    with jax.numpy_dtype_promotion("standard"):  # optax's adam needs it
        result = example.main(words)
    assert list(result["values"]) == ["body_a/kernel", "body_b/kernel"]
    assert all(values == [-1.0, 1.0] for values in result["values"].values())
    losses = result["losses"]
    assert len(losses) == 3 and all(math.isfinite(x) for x in losses)
    assert losses[-1] < 0.8 * losses[0]
    assert 0.2 < result["hard"] <= 1 and 0.2 < result["soft"] <= 1  # chance is 0.1
    assert result["gap"] == result["soft"] - result["hard"]

    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert f"hard  {100 * result['hard']:6.2f}%" in printed
    assert "body_a/kernel: 2 values" in printed
    assert result.items() <= written.items()
    assert {"versions", "device", "commit"} <= written.keys()
    assert f"--framework={framework} --train-size=160" in written["command"]


@pytest.mark.parametrize("model", [example.LinenModel, example.NnxModel])
def test_models_know_nothing_of_the_library(model):
    source = inspect.getsource(example)
    begin, end = "Your model begins here", "Your model ends here"
    assert source.index(begin) < source.index(f"class {model.__name__}")
    assert source.index(inspect.getsource(model)) < source.index(end)
    yours = source[source.index(begin) : source.index(end)]
    assert "qn" not in yours and "quantnet" not in yours
    assert "quantnet_jax" not in "".join(
        line for line in source[: source.index(begin)].splitlines() if "import" in line
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--framework=torch"],
        ["--epochs=0"],
        ["--batch-size=0"],
        ["--train-size=10"],
        ["--train-size=20000"],
        ["--test-size=0"],
    ],
)
def test_impossible_options_end_in_one_line(options, capsys):
    with pytest.raises(SystemExit) as e:
        example.main(options)
    assert e.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].count("error: ") == 1
