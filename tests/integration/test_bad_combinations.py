"""Values that are fine one by one and bad together, with the data or the devices."""

import os

import pytest
from ml_collections import ConfigDict, config_dict

from quantnet_jax import config as config_lib
from tests.integration.referee import build, config_of, fault, parse


@pytest.fixture(autouse=True)
def nothing_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.listdir(tmp_path)


RULE = {"pattern": "head/kernel", "quantizer": "lsq", "share": "layer"}
BUNDLED = {"data.name": "bundled", "data.train_size": 0, "data.test_size": 0}
STREAM = {"data.name": "imagenet2012", "data.train_size": 0, "data.test_size": 0}
BILEVEL = {"meta.mode": "bilevel"}
QUANTNET = "quantizer.quantnet"


def steps(section, milestones, warmup=0.0):
    values = {"schedule": "steps", "milestones": milestones, "warmup": warmup}
    return {f"{section}.{key}": value for key, value in values.items()}


# (keys of which one is named, changes)
CASES = [
    # Two keys
    ("fsdp", {"fsdp": 2}),
    ("model.act", {"model.act": "relu", "activation.name": "sign_ste"}),
    ("data.train_size", STREAM | {"data.train_size": 9}),
    ("data.classes", STREAM | {"data.classes": 9}),
    ("data.validation_size", STREAM | {"data.validation_size": 9}),
    ("data.workers", {"data.workers": 3}),
    ("data.max_unreadable", {"data.max_unreadable": 3}),
    ("data.folder", {"data.folder": "somewhere"}),
    ("data.name", STREAM | {"data.name": "tfds:"}),
    ("weights.milestones", steps("weights", (0.2, 0.95), 0.5)),
    ("meta.milestones", steps("meta", (0.2, 0.95), 0.5)),
    ("weights.milestones", steps("weights", ())),
    *(("meta.milestones", {"meta.milestones": x}) for x in (
        (0.5, 0.4), (0.5, 0.5), (0.0, 0.5), (1.5,), (0.5, "1"), (None,), ((0.5,),))),
    ("quantizer.recu.lowest", {"quantizer.recu": {"lowest": 0.9, "highest": 0.8}}),
    (f"{QUANTNET}.width", {QUANTNET: {"unit": "conv", "width": 17}}),
    (f"{QUANTNET}.window", {QUANTNET: {"window": 4}}),
    ("model.bi_real", {"model": {"name": "resnet50", "bi_real": True}}),
    ("model.groups", {"model": {"name": "sparse2d", "width": 8, "groups": 3}}),
    ("model.shortcut", {"model": {"name": "small", "shortcut": "A"}}),
    ("model.outputs", {"model.outputs": 3}),
    ("model.act_quant", {"model": {"name": "resnet8", "act_quant": "x"}}),
    ("weights.options", {"weights.options": (5,)}),
    ("accumulation_steps", {"batch_size": 40, "accumulation_steps": 21}),
    ("activation.name", {"activation.name": "quantnet"}),
    ("quantizer.name", {"quantizer.name": "sign_ste"}),
    ("model.name", {"model.name": "ResNet20"}),
    ("meta.holdout", {"meta.holdout": 0.3}),
    ("terms[0].name", {"terms": ({"name": "bread"},)}),
    ("terms[0]", {"terms": (3,)}),
    ("activation.learned_clip.warmup", {"activation.name": "learned_clip"}),
    ("activation.sites",
     {"task.name": "super_resolution", "data.name": "synthetic_x2", "data.pad": 0,
      "model": {"name": "srresnet"}, "activation.name": "pact",
      "activation.sites": ("rectified",)}),
    ("model.depth",
     {"task.name": "super_resolution", "data.name": "synthetic_x2", "data.pad": 0,
      "model": {"name": "edsr", "depth": 1024}}),
    # Rules and layers
    ("rules[0]", {"rules": ({"pattern": "head/kernel"},)}),
    ("rules[1].bitz", {"rules": (RULE, RULE | {"bitz": 3})}),
    ("rules[0]", {"rules": (RULE | {"pattern": "head/("},)}),
    ("rules[0]", {"rules": (RULE | {"quantizer": "LSQ"},)}),
    ("rules[0]", {"rules": (RULE | {"share": "bread"},)}),
    ("rules[0]", {"rules": (RULE | {"pattern": None},)}),
    ("rules[0]", {"rules": ("bread",)}),
    ("rules[0].bits", {"rules": (RULE | {"bits": 9},)}),
    ("rules[0].out", {"rules": (RULE | {"out": "last"},)}),
    ("rules", {"rules": (RULE | {"pattern": "stage9/kernel"},)}),
    ("rules", {"rules": (RULE, RULE)}),
    ("rules", {"rules": (RULE | {"pattern": "conv1/kernel"},) * 2}),
    ("layers", {"rules": (RULE | {"pattern": ".*kernel"},)}),
    ("layers", {"layers": "stage9/kernel", "rules": (RULE,)}),
    ("layers", {"layers": "stage9/kernel"}),
    ("layers", {"layers": "conv1/kerne"}),
    ("layers", {"layers": "*conv"}),
    ("layers", {"layers": "Inner"}),
    ("layers", {"layers": ".*scale"}),
    ("layers", {"layers": "head/bias"}),
    ("share layers", {"layers": "all", "share": "model"}),
    ("share layers", {"layers": "all", "share": "model",
                      QUANTNET: {"unit": "filter", "width": 2}}),
    # Data
    ("data.pad", {"data.pad": 8}),
    ("data.validation_size", {"data.validation_size": 100}),
    ("data.folder", {"data.name": "cifar10", "data.folder": "no/where"}),
    ("data.folder", {"data.name": "mnist", "data.folder": "x" * 270}),
    ("data.folder data.name", STREAM | {"data.folder": "no/where"}),
    ("data.name", {"data.name": "cifar11"}),
    ("data.train_size", {"data.train_size": 2**26 + 1}),
    ("data.train_size", {"data.image_size": 2048, "data.train_size": 2**20}),
    ("data.train_size", {"data.image_size": 4096, "data.train_size": 0}),
    ("data.folder", {"data.name": "folder"}),
    ("data.folder", {"data.name": "folder", "data.folder": "nowhere"}),
    ("data.image_size", BUNDLED | {"data.image_size": 32}),
    ("data.image_size", {"data.image_size": 30}),
    ("data.train_size", BUNDLED | {"data.train_size": 10_001}),
    ("data.test_size", BUNDLED | {"data.test_size": 2_001}),
    ("data.classes", BUNDLED | {"data.classes": 11}),
    ("data.classes", {"data.classes": 1}),
    ("data.first_class", BUNDLED | {"data.first_class": 3}),
    ("data.classes data.train_size", {"data.classes": 101}),
    ("data.classes data.train_size",
     BUNDLED | {"data.train_size": 5, "batch_size": 4}),
    # Batches and devices, epochs and steps
    ("batch_size", {"batch_size": 18}),
    ("batch_size", {"batch_size": 18, "runner": "jit"}),
    ("eval_batch_size", {"eval_batch_size": 18}),
    ("batch_size", {"batch_size": 104}),
    ("eval_batch_size", {"eval_batch_size": 2**17}),
    ("epochs", {"epochs": 1e-6}),
    ("epochs", {"epochs": 9e8}),
    ("steps_per_call", {"steps_per_call": 2**20, "log_every": 7}),
    ("eval_every", {"eval_every": 1e-9}),
    ("fsdp", {"fsdp": 3, "runner": "jit"}),
    ("fsdp", {"fsdp": 8, "runner": "jit"}),
    ("accumulation_steps", {"batch_size": 20, "accumulation_steps": 10}),
    ("meta.holdout", BILEVEL | {"meta.holdout": 1 / 3}),
    ("meta.holdout", BILEVEL | {"batch_size": 4}),
    # Networks and quantizers
    ("meta.mode", BILEVEL | {"quantizer.name": "metaquant"}),
    ("model.name task.name", {"model": {"name": "edsr"}}),
    ("model.name", {"model": {"name": "srresnet"}, "task.name": "retrieval"}),
    ("model.width", {"model": {"name": "resnet18", "width": 2**14}}),
    (QUANTNET, {QUANTNET: {"width": 2**14, "depth": 64}}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "changes"), CASES, ids=[f"{i}-{k}" for i, (k, _) in enumerate(CASES)]
)
def test_what_does_not_go_together_is_refused(keys, changes):
    assert not fault(lambda: build(config_of(changes)), keys)


LINEAR = {"schedule": "linear", "start": 0.0, "end": 1.0, "until": 0.5}
ROW = {"pattern": "head/kernel", "quantizer": "lsq", "bits": 4}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.act", "prelu"),
        ("model.bi_real", True),
        ("model.momentum", 0.8),
        ("model.width", 8),
        ("task.classification.label_smoothing", 0.1),
        ("activation.pact.start", 3.0),
        ("quantizer.lsq.bits", 4),
        ("quantizer.quantnet.window", 3),
        ("quantizer.quantnet.sharpness", 2.0),
        ("quantizer.quantnet.sharpness.end", 7.0),
        ("quantizer.quantnet.orthogonality", LINEAR),
        ("rules", (ROW,)),
    ],
)
def test_command_lines_set_any_option(key, value):
    config = parse([f"--config.{key}={value}"])
    config_lib.check(config)
    place = config.to_dict()
    for name in key.split("."):
        place = place[name]
    assert place == value and type(place) is type(value)


WORDS = [
    ("bread", "--config.bread=1"),
    ("weights.bread", "--config.weights.bread=1"),
    ("seed.bread", "--config.seed.bread=1"),
    ("weights.lr", "--config.weights.lr=0.1"),
    ("model.widht", "--config.model.widht=4"),
    ("model.act", "--config.model.act=silu"),
    ("rules[0].bitz", f"--config.rules=({ROW | {'bitz': 1}},)"),
    ("quantizer.quantnet.bread", "--config.quantizer.quantnet.bread=1"),
    *(("seed", f"--config.seed={x}") for x in ("bread", "1,2", "1e", "{}", "1 2", "")),
    *(("epochs", f"--config.epochs={x}") for x in ("bread", "(1,)", "0x")),
    *(("export", f"--config.export={x}") for x in ("bread", "2", "()", "maybe")),
    ("weights", "--config.weights=bread"),
    ("quantizer.quantnet", "--config.quantizer.quantnet=bread"),
    *(("rules", f"--config.rules={x}") for x in ("(0.5,", "bread", "[", "=")),
    ("runner", "--config.runner=pmapp"),
]


@pytest.mark.parametrize(("keys", "word"), WORDS)
def test_command_lines_are_refused(keys, word):
    assert not fault(lambda: config_lib.check(parse([word])), keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(): return {'seed': 1}", "dict"),
        ("def get_config(): return None", "None"),
        ("def get_config(:", "invalid syntax"),
        ("import no_such_module", "no_such_module"),
        ("def get_config(): raise ValueError('a\\nb')", "b"),
        ("def get_config(): raise ValueError('bread')", "experiment.py: bread"),
    ],
)
def test_file_that_holds_no_configuration(tmp_path_factory, text, message):
    path = tmp_path_factory.mktemp("files") / "experiment.py"
    path.write_text(text)
    with pytest.raises((SystemExit, ValueError)) as error:
        config_lib.check(parse([f"--config={path}"]))
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_what_is_no_configdict_is_refused():
    with pytest.raises(ValueError, match="expected a ConfigDict"):
        config_lib.check({"seed": 1})
    config_lib.check(ConfigDict(config_of({}).to_dict()))


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("--config.weights.milestones[0]=1", "weights.milestones[0]"),
        ("--config.rules[0]=x", "rules[0]"),
        ("--config.optimizers[0].learning_rate=1", "optimizers[0].learning_rate"),
        ("--config.quantizer=quantnet", "quantizer.name"),
        ("--config.weights=3", "weights"),
        ("--config.weights.lr=3", "weights.lr"),
    ],
)
def test_odd_words_of_a_command_line(word, words):
    assert not fault(lambda: parse([word]), words)


def test_placeholder_without_a_value(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "mine.py"
    file.write_text(
        "from ml_collections import config_dict\n"
        "from quantnet_jax.config import base\n"
        "def get_config():\n"
        "  c = base()\n"
        "  c.weights.clip = config_dict.required_placeholder(float)\n"
        "  return c\n"
    )
    with pytest.raises(ValueError, match="mine.py: a required value is missing; set"):
        parse([f"--config={file}"])
    c = config_lib.base()
    c.weights.clip = config_dict.required_placeholder(float)
    assert not fault(lambda: config_lib.check(c), "weights.clip")
