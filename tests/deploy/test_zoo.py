"""Every network of the zoo is what the index says: file, hash, size, exact accuracy."""

import hashlib
import json
import pathlib

import artifacts
import jax
import numpy as np
import pytest

import quantnet_jax
from quantnet_jax import data, deploy, zoo
from quantnet_jax.zoo.__main__ import main
from tools import make_zoo

ROOT = pathlib.Path(__file__).parents[2]
ENTRIES = zoo.entries()
SMALLEST = min(ENTRIES, key=lambda name: ENTRIES[name]["bytes"])


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_is_its_file(name):
    entry, path = ENTRIES[name], zoo.path(name)
    content = path.read_bytes()
    assert len(content) == entry["bytes"] <= make_zoo.LARGEST
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    predictor = quantnet_jax.load(f"zoo:{name}")
    packed = [
        leaf
        for leaf in jax.tree.leaves(
            predictor.params, is_leaf=lambda x: isinstance(x, deploy.Packed)
        )
        if isinstance(leaf, deploy.Packed)
    ]
    assert max(leaf.bits for leaf in packed) == entry["bits"]
    assert predictor.spec.origin["method"] == entry["method"]
    config = entry["config"]
    assert predictor.spec.model["name"] == config["model"]["name"]
    assert config["data"]["validation_size"] == 0
    assert not any((config["data"]["folder"], config["init_from"]))
    for key in () if entry["bn"] else ("packed", "exported"):
        assert entry["result"].get(key, entry["accuracy"]) == entry["accuracy"]
    scored = "hard_bn" if entry["bn"] else "hard"
    assert entry["result"][scored] == pytest.approx(entry["accuracy"], abs=1e-9)


@pytest.fixture(scope="module")
def images():
    """`images(config of data) -> (test images, labels)`; each set is read once."""
    read = {}

    def get(section, shared_data):
        name = section["name"]
        if name not in read:
            folder = None if name == "bundled" else shared_data() / name
            read[name] = data.load(name, folder)
        dataset = read[name]
        parts = (section["train_size"], section["test_size"], section["classes"])
        if any(parts):
            dataset = data.subset(dataset, *(x or None for x in parts))
        return dataset.test_image, dataset.test_label

    return get


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_has_exactly_its_accuracy(name, images, request):
    entry = ENTRIES[name]
    folder = lambda: request.getfixturevalue("shared_data")  # skips without the data
    image, label = images(entry["config"]["data"], folder)
    assert len(label) == entry["examples"]
    logits = quantnet_jax.load(f"zoo:{name}")
    size = 500
    found = [logits(image[i : i + size]) for i in range(0, len(image), size)]
    right = int((np.concatenate(found).argmax(-1) == label).sum())
    assert right == round(entry["accuracy"] * entry["examples"])


def test_the_command_lists_all(capsys):
    assert ENTRIES
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in ENTRIES.items():
        (line,) = [x for x in lines if x.split(" ")[0] == name]
        assert f"{100 * entry['accuracy']:.2f}%" in line and entry["method"] in line
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ENTRIES


@pytest.mark.parametrize("name", ENTRIES)
def test_card_of_an_entry(name, capsys):
    entry = ENTRIES[name]
    assert main([name]) == 0
    text = capsys.readouterr().out
    assert main([f"zoo:{name}"]) == 0 and capsys.readouterr().out == text
    for fact in ("network", "data", "protocol", "accuracy", "size", "made", "licence"):
        assert f"- **{fact}**: " in text
    for value in (
        f"{100 * entry['accuracy']:.2f} % of {entry['examples']:,} test images",
        f"{entry['bytes']:,} bytes",
        f"{entry['config']['epochs']:g} epochs",
        "of 1/32 bits",
        "Apache-2.0",
    ):
        assert value in text, value
    assert text.strip() in (ROOT / "docs" / "zoo.md").read_text("utf-8")


def test_unknown_name_is_told_with_the_nearest():
    wrong = SMALLEST[:-1] + "xx"
    with pytest.raises(ValueError, match=f"did you mean 'zoo:{SMALLEST}'") as error:
        quantnet_jax.load(f"zoo:{wrong}")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        quantnet_jax.load("zoo")  # a file of that name


def test_adding_a_run(tmp_path, monkeypatch):
    """An entry from a run's folder, its export made up."""
    workdir, folder = tmp_path / "run", tmp_path / "zoo"
    workdir.mkdir()
    folder.mkdir()
    config = json.loads(json.dumps(ENTRIES[SMALLEST]["config"]))
    config |= {"init_from": "/somewhere"}
    config["quantizer"] = config["quantizer"] | {"other": {"bits": 1}}
    (workdir / "config.json").write_text(json.dumps(config))
    layers = {"a": {"shape": [3, 3, 4, 4], "bits": 1}}
    result = {"method": "x", "hard": 0.5, "layers": layers, "examples": 10}
    (workdir / "result.json").write_text(json.dumps(result))

    def export(workdir, out, bn):
        path = pathlib.Path(out) / "model.safetensors"
        deploy.save(path, artifacts.make_params(), artifacts.SPEC)
        return {"packed": 0.6 if bn else 0.5, "examples": 10}

    monkeypatch.setattr(make_zoo.export, "export", export)
    entry = make_zoo.add("made-up", workdir, folder=folder)
    assert entry["accuracy"] == 0.5 and entry["weights"] == 144 and entry["bits"] == 1
    assert entry["config"]["init_from"] == ""
    assert "other" not in entry["config"]["quantizer"]
    assert (folder / "made-up.safetensors").stat().st_size == entry["bytes"]
    with pytest.raises(ValueError, match="--replace"):
        make_zoo.add("made-up", workdir, folder=folder)
    again = make_zoo.add("made-up", workdir, folder=folder, replace=True, bn=True)
    assert not entry["bn"] and again["bn"] and again["accuracy"] == 0.6
    with pytest.raises(ValueError, match="expected small letters"):
        make_zoo.add("Made up", workdir, folder=folder)
    monkeypatch.setattr(make_zoo, "LARGEST", 100)
    with pytest.raises(ValueError, match="expected at most 100"):
        make_zoo.add("large", workdir, folder=folder)
    index = json.loads((folder / "index.json").read_text())
    assert list(index) == ["made-up"] and len(list(folder.iterdir())) == 2
    config["data"]["validation_size"] = 100
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="held-out"):
        make_zoo.add("held-out", workdir, folder=folder)


def test_networks_behind_a_table(tmp_path):
    words = ["study", "small", "--rows", "quantnet", "tanh_sign"]
    found = make_zoo.of_study(make_zoo.parse([*words, f"--results={tmp_path}"]))
    assert list(found) == ["small-quantnet", "small-tanh_sign"]
    workdir = found["small-quantnet"]
    assert workdir.parts[-3:] == ("small", "final", "quantnet-seed0")


def test_rows_of_no_table_are_refused(capsys):
    with pytest.raises(SystemExit):
        make_zoo.parse(["study", "small", "--rows", "bread"])
    assert "--rows 'bread': no such row" in capsys.readouterr().err
