"""Summaries against written files and hand arithmetic: bytes, products, the command."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from artifacts import SPEC, make_params
from flax import linen as nn
from flax import nnx
from tiny import tiny_config

import quantnet_jax as qn
from quantnet_jax import data, deploy, exhibits, export
from quantnet_jax import summary as command
from quantnet_jax.checkpoint import manager
from quantnet_jax.deploy.summary import summarize, summarize_network, to_dict
from quantnet_jax.deploy.summary_text import to_text
from quantnet_jax.training import experiment
from quantnet_jax.trees import macs

ROOT = pathlib.Path(__file__).parents[2]


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def of_config(config, **more):
    params, spec = command.from_config(config)
    return summarize_network(params, dataclasses.replace(spec, **more))


def resnet_config(name, data_name, quantizer, **overrides):
    config = tiny_config(
        data__name=data_name, quantizer__name=quantizer, layers="inner", **overrides
    )
    config.model.name = name
    return config


# Bytes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quantizer, activation, dtype",
    [
        ("quantnet", "", "float32"),
        ("binary_ste", "sign_ste", "float16"),
        ("lq_nets", "pact", "float32"),  # learned tables; parameters of activations
        ("twn", "lsq", "float16"),  # three values take two bits
        ("identity", "", "float16"),
    ],
)
def test_payload_is_that_of_the_file(tmp_path, quantizer, activation, dtype):
    config = tiny_config(quantizer__name=quantizer, activation__name=activation)
    params, spec = command.from_config(config)
    file = tmp_path / "model.safetensors"
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    spec = dataclasses.replace(spec, floats=dtype)
    written = deploy.save(file, zeros, spec)
    found = summarize_network(params, spec)
    assert found.payload == written["payload"] > 0


def test_a_network_its_file_and_its_configuration_agree(tmp_path, capsys):
    config = tiny_config(quantizer__name="binary_ste")
    exp = experiment.build(config)
    state = exp.state  # untrained: no shape changes in training
    file = tmp_path / "model.safetensors"
    origin = {"method": "binary_ste"}
    spec = export.make_spec(config, exp.task, exp.feed, origin=origin)
    written = deploy.save(file, exp.deployed(state), spec)
    assert of_config(config).payload == written["payload"]
    # All that training keeps of the network, in float32.
    kept = jax.tree.leaves((state.params["model"], state.batch_stats))
    assert command.main([f"--artifact={file}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["payload"] == written["payload"]
    assert found["float_bytes"] == 4 * sum(x.size for x in kept)
    assert found["compression"] == found["float_bytes"] / found["payload"]
    assert found["model"] == "small" and found["method"] == "binary_ste"


def test_widths_that_were_learned_are_those_of_the_file(tmp_path, capsys):
    """Of 4 bits without masks, and 2 with both: half of the codes' bytes."""
    config = tiny_config(quantizer__name="dropbits")
    exp = experiment.build(config)

    def masked(path, x):
        dropped = path[-1].key == "kept" and "conv1" in str(path)
        return jnp.full_like(x, -1) if dropped else x

    params = jax.tree_util.tree_map_with_path(masked, exp.state.params)
    state = exp.state._replace(params=params)
    tree, spec = exp.deployed(state), export.spec_of(exp, "dropbits")
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "export").mkdir()
    written = deploy.save(tmp_path / "export" / "model.safetensors", tree, spec)
    assert exhibits.collect(exp, state)["size"]["payload"] == written["payload"]
    assert command.main([f"--workdir={tmp_path}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["payload"] == written["payload"]
    learned = {row["path"]: row for row in found["layers"]}
    widest = {row.path: row for row in of_config(config).rows}
    assert (learned["conv1"]["bits"], learned["conv2"]["bits"]) == (2, 4)
    assert 2 * learned["conv1"]["codes"] == widest["conv1"].codes
    assert learned["conv2"]["codes"] == widest["conv2"].codes
    # A run without an export is summarized by its weights as well.
    shutil.rmtree(tmp_path / "export")
    with manager.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    assert command.main([f"--workdir={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("quantizer, scales", [("quantnet", 18), ("binary_ste", 672)])
def test_resnet20_is_near_the_information_floor(classes, quantizer, scales):
    name = "cifar10" if classes == 10 else "cifar100"
    found = of_config(resnet_config("resnet20", name, quantizer, model__width=16))
    # Stage s: six 3x3 convolutions, the first of stages 2 and 3 from half the channels.
    bits = 9 * (6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    normalized = 16 * 7 + 32 * 6 + 64 * 6
    rest = 2 * normalized + 9 * 3 * 16 + 64 * classes + classes
    floor = bits // 8 + 4 * scales + 4 * rest
    if (classes, quantizer) == (10, "binary_ste"):
        assert floor == 45_928
    assert (found.total("quantized"), found.total("codes")) == (267_264, 33_408)
    assert found.total("scales") == 4 * scales and found.total("floats") == 4 * rest
    assert found.total("levels") == 18 * 2 * 4
    assert floor <= found.payload == floor + 144 <= 1.02 * floor
    assert found.total("weights") == bits + rest
    assert found.float_bytes == 4 * (bits + rest + 2 * normalized)
    if classes == 10:
        assert found.float_bytes == 1_084_392


def test_file_of_the_cifar100_network_is_its_summary(tmp_path):
    config = resnet_config("resnet20", "cifar100", "binary_ste", model__width=16)
    params, spec = command.from_config(config)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    written = deploy.save(tmp_path / "model.safetensors", zeros, spec)
    assert written["payload"] == of_config(config).payload
    # 267,264 bits, 672 scales, and 8,308 floats: stem, 18 + 1 normalizations, head.
    floor = 267_264 // 8 + 4 * 672 + 4 * (432 + 2 * 688 + 6_500)
    assert floor <= written["payload"] <= 1.02 * floor


def test_resnet18_has_the_size_that_others_give():
    # Larq's table: 4.00 MiB with folded normalizations, float shortcuts; no scales.
    config = resnet_config("resnet18", "imagenet2012", "quantnet", model__width=64)
    config.layers = "no_shortcut"
    found = of_config(config)
    assert found.total("quantized") == 10_985_472
    without = found.payload - found.total("scales") - found.total("levels")
    assert round(without / 2**20, 2) == 4.00
    assert round(found.float_bytes / 2**20, 1) == 44.6


# Products --------------------------------------------------------------------------


def resnet20_macs():
    """(stem, inner, head) of the CIFAR network with 100 classes, by hand."""
    inner = 6 * 32 * 32 * 9 * 16 * 16
    inner += 16 * 16 * 9 * (16 * 32 + 5 * 32 * 32)
    inner += 8 * 8 * 9 * (32 * 64 + 5 * 64 * 64)
    return 32 * 32 * 9 * 3 * 16, inner, 64 * 100


def resnet18_macs():
    """(stem, inner 3x3, 1x1 shortcuts, head) at 224 pixels, by hand."""
    inner, shortcuts = 4 * 56 * 56 * 9 * 64 * 64, 0
    for side, wide in ((28, 128), (14, 256), (7, 512)):
        inner += side**2 * 9 * (wide // 2 * wide + 3 * wide * wide)
        shortcuts += side**2 * wide // 2 * wide
    return 112 * 112 * 49 * 3 * 64, inner, shortcuts, 512 * 1000


def test_macs_of_resnet20():
    stem, inner, head = resnet20_macs()
    assert stem + inner + head == 40_556_800
    make = lambda act: resnet_config(
        "resnet20", "cifar100", "binary_ste", model__width=16, activation__name=act
    )
    real = of_config(make(""))
    assert real.macs == {"1/32": inner, "32/32": stem + head}
    assert of_config(make("lsq")).macs == {"1/2": inner, "32/32": stem + head}
    assert [row.path for row in real.rows[:3]] == [
        *("stem", "stem_bn", "stage1_block0/conv1"),
    ]
    assert real.rows[-1].path == "head" and real.rows[-1].output == (1, 100)


def test_macs_of_resnet18():
    stem, inner, shortcuts, head = resnet18_macs()
    assert round((stem + inner + shortcuts + head) / 1e9, 2) == 1.81
    config = resnet_config("resnet18", "imagenet2012", "binary_ste", model__width=64)
    config.activation.name, config.dtype = "sign_ste", "bfloat16"
    found = of_config(config)
    # The shortcuts of this convention have binary weights and float inputs.
    wanted = {"1/1": inner, "1/32": shortcuts, "32/32": stem + head}
    assert found.macs == wanted
    params, spec = command.from_config(config)
    batch = summarize_network(params, spec, batch=3).macs
    assert batch == {key: 3 * value for key, value in wanted.items()}


def test_bits_of_a_product():
    """Moved activations keep their bits; a float matrix makes binary weights float."""

    def net(p, x):
        x = macs.mark_activation(jnp.sign(x), 1)
        x = jnp.pad(x.reshape(1, 4).T.reshape(2, 2), 1).reshape(1, 16)[:, :4]
        y = x @ p["a"] + (2.0 * x) @ p["a"]  # 1/1, and then 1/32
        y = y + x @ (p["a"] * p["gain"])  # a factor per channel stays outside
        return y + x @ (p["a"] + p["b"])

    a = qn.QTensor(shape(4, 4), shape(2), shape())
    params = {"a": a, "b": shape(4, 4), "gain": shape(1, 4)}
    found = summarize(net, params, shape(1, 4))
    assert found.macs == {"1/1": 32, "1/32": 16, "32/1": 16}
    assert [row.path for row in found.rows] == ["a", "gain", "b"]
    assert found.payload == 2 + 8 + 4 + 64 + 16


# Networks of users ------------------------------------------------------------------


def example_file():
    path = ROOT / "examples" / "binarize_your_model.py"
    spec = importlib.util.spec_from_file_location("binarize_your_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def abstract_linen(example, images):
    model = example.LinenModel()
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return params, lambda params, x: model.apply({"params": params}, x)


def abstract_nnx(example, images):
    model = nnx.eval_shape(lambda: example.NnxModel(nnx.Rngs(0)))
    graphdef, state = nnx.split(model, nnx.Param)
    apply = lambda params, x: nnx.merge(graphdef, params)(x)
    return nnx.to_pure_dict(state), apply


@pytest.mark.parametrize("make", [abstract_linen, abstract_nnx])
def test_own_model(make):
    example, images = example_file(), shape(1, 28, 28, 1)
    params, apply = make(example, images)
    q = qn.tree_quantizer([qn.Rule(example.QUANTIZED, qn.binary_ste())], params)
    hard = jax.eval_shape(lambda p: q.hard(q.init(jax.random.key(0), p), p), params)
    found = summarize(apply, hard, images)
    inner = 9 * (14 * 14 * 16 * 32 + 7 * 7 * 32 * 32)
    outer = 28 * 28 * 9 * 16 + 7 * 7 * 32 * 10
    assert found.macs == {"1/32": inner, "32/32": outer}
    biases = 16 + 32 + 32 + 10
    norms = 2 * (16 + 32 + 32)
    floats = 9 * 16 + 7 * 7 * 32 * 10 + biases + norms
    codes = 9 * (16 * 32 + 32 * 32)
    assert found.total("floats") == 4 * floats
    assert found.payload == 4 * floats + codes // 8 + 2 * (8 + 4 * 32)
    assert found.float_bytes == 4 * (floats + codes)
    # A bias lies in the row of its kernel.
    (head,) = [row for row in found.rows if row.path == "head"]
    assert (head.shape, head.weights) == ((1568, 10), 15_690)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_file_of_an_own_model_is_its_summary(dtype, tmp_path):
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Conv(5, (3, 3))(x))
            return nn.Dense(3)(nn.Conv(7, (3, 3), use_bias=False)(x).mean((1, 2)))

    model, x = Own(), jnp.ones((1, 6, 6, 2))
    variables = model.init(jax.random.key(0), x)  # statistics ship as well
    q = qn.tree_quantizer([qn.Rule("params/Conv.*/kernel", qn.binary_ste())], variables)
    hard = q.hard(q.init(jax.random.key(0), variables), variables)
    packed = deploy.pack_tree(hard)
    written = deploy.write(tmp_path / "own.safetensors", packed, {}, dtype=dtype)
    # 90 and 315 bits fill no byte.
    assert written["payload"] == 12 + 40 + 4 * (2 * 2 + 5 + 7) + (
        np.dtype(dtype).itemsize * (5 + 4 * 5 + 7 * 3 + 3)
    )
    for params in (hard, packed, deploy.read(tmp_path / "own.safetensors")[0]):
        found = summarize(model.apply, params, x, dtype=dtype)
        assert found.payload == written["payload"]


def test_summary_of_a_file_whose_layers_count_bits(tmp_path, capsys):
    spec = dataclasses.replace(SPEC, activation={"name": "sign_ste"}, popcount=True)
    params = {k: v for k, v in make_params().items() if "input" not in k}
    file = tmp_path / "model.safetensors"
    written = deploy.save(file, params, spec)
    assert command.main([f"--artifact={file}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["payload"] == written["payload"]
    counting = deploy.load(file, popcount=True)  # no file holds what it runs
    with pytest.raises(ValueError, match="conv1/kernel: packed words .*popcount=False"):
        summarize_network(counting.params, counting.spec)
    with pytest.raises(ValueError, match="conv1/kernel: packed words .*popcount=False"):
        deploy.save(tmp_path / "again.safetensors", counting.params, spec)


def test_own_model_with_several_tensors_in_a_layer():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            make = lambda name: self.param(name, nn.initializers.ones, (8, 8))
            q, k, v = (x @ make(name) for name in ("wq", "wk", "wv"))
            x = nn.softmax(q @ k.swapaxes(1, 2)) @ v
            return nn.BatchNorm(use_running_average=True)(x)

    model, x = Attention(), shape(2, 5, 8)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    found = summarize(model.apply, variables, x)
    assert [row.path for row in found.rows] == [
        *("params/wq", "params/wk", "params/wv"),
        *("batch_stats/BatchNorm_0", "params/BatchNorm_0", "(no parameter)"),
    ]
    assert found.rows[-1].macs == {"32/32": 2 * 2 * 5 * 5 * 8}
    assert found.payload == found.float_bytes == 4 * (3 * 64 + 4 * 8)
    assert found.compression == 1.0


# Text and command -------------------------------------------------------------------

GOLDEN = """\
layer        shape    bits  input bits   output  weights  codes B  levels B  scales B  float B   MACs
-----------  -------  ----  ----------  -------  -------  -------  --------  --------  -------  -----
stem         3x3x3x4    32          32  1x4x4x4      108                                   432  1,728
stem_bn      4          32                             8                                    32
conv1_input             32                             1                                     4
conv1        3x3x4x4     1           2  1x4x4x4      144       18         8        16           2,304
bn1          4          32                             8                                    32
conv2_input             32                             1                                     4
conv2        3x3x4x4     1           2  1x4x4x4      144       18         8        16           2,304
bn2          4          32                             8                                    32
head         4x4        32          32      1x4       20                                    80     16
-----------  -------  ----  ----------  -------  -------  -------  --------  --------  -------  -----
total                                                442       36        16        32      616  6,352

weights             442, 65.2% of them as codes
payload             700 bytes, 0.001 MiB
float32 network     1,856 bytes, 0.002 MiB
compression         2.65 x
MACs, weight/input  4,608 of 1/2 bits (72.5%), 1,744 of 32/32 bits (27.5%)"""  # noqa: E501


def test_table():
    config = tiny_config(quantizer__name="binary_ste", activation__name="pact")
    found = of_config(config)
    text = to_text(found)
    assert text == GOLDEN, text
    assert max(map(len, text.splitlines())) <= 120


def test_json_has_what_the_table_has():
    found = of_config(tiny_config())
    plain = json.loads(json.dumps(to_dict(found)))
    for name in ("weights", "codes", "levels", "scales", "floats"):
        assert plain[name] == sum(row[name] for row in plain["layers"])
    parts = ("codes", "levels", "scales", "floats")
    assert plain["payload"] == sum(plain[name] for name in parts)
    total = sum(sum(row["macs"].values()) for row in plain["layers"])
    assert total == sum(plain["macs"].values())


# ml_collections reads configurations by a method that Python has deprecated.
READS = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@READS
def test_command_reads_configurations(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 0  # of 'default'
    out = capsys.readouterr().out
    assert out.startswith("resnet8, quantnet, bundled\n\nlayer ")
    file = ROOT / "configs" / "cifar100_resnet20.py"
    words = ["--config.quantizer.name=binary_ste", "--config.model.width=8", "--json"]
    assert command.main([f"--config={file}", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["method"], found["model"]) == ("binary_ste", "resnet20")
    assert found["layers"][0]["shape"] == [3, 3, 3, 8]
    assert command.main([f"--config={file}:runlocal", "--batch=2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resnet8, quantnet, synthetic\n") and "2x16x16x4" in out
    config = tiny_config()
    (tmp_path / "config.json").write_text(config.to_json())
    assert command.main([f"--workdir={tmp_path}", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["payload"] == of_config(config).payload
    assert err.startswith("note: no checkpoints in ") and "configuration" in err


def test_schedules_of_a_run_are_no_matter_in_what_ships():
    warm = {"schedule": "optax:warmup_cosine_decay_schedule", "init_value": 0.5}
    warm |= {"peak_value": 4.0, "warmup_steps": 0.1, "decay_steps": 1.0}
    warm |= {"end_value": 1.0}
    config = tiny_config(activation__name="soft_round")
    plain = of_config(config)
    with config.unlocked():
        del config.activation.soft_round.k, config.quantizer.quantnet.sharpness
        config.activation.soft_round.k = warm
        config.quantizer.quantnet.sharpness = warm
    assert of_config(config) == plain


def test_shapes_of_known_sets():
    bundled = data.load("bundled")
    assert bundled.train_image.shape[1:] == command.IMAGES["bundled"]
    assert set(command.IMAGES) == set(data.CLASSES)


@READS
@pytest.mark.parametrize(
    "args, words",
    [
        (["--config=nowhere.py"], ["nowhere.py"]),
        ([f"--config={ROOT / 'configs' / 'smoke.py'}:bread"], ["bread", "runlocal"]),
        (["--config.wieghts.momentum=1"], ["wieghts", "weights"]),
        (["--config.seed=x"], ["config.seed=x", "int"]),
        (["--config.quantizer.name=x"], ["quantizer.name='x'", "quantnet"]),
        (["--config.layers=x"], ["'x'", "conv1/kernel"]),
        (["--workdir=nowhere"], ["nowhere", "run"]),
        (["--artifact=nowhere"], ["nowhere", "not found"]),
    ],
)
def test_errors_are_one_line(capsys, monkeypatch, tmp_path, args, words):
    monkeypatch.chdir(tmp_path)
    assert command.main(args) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert not out and line.startswith("error: ") and all(w in line for w in words), err


@pytest.mark.parametrize(
    "args",
    [
        ["--bread"],
        ["--batch=0"],
        ["--workdir=a", "--artifact=b"],
        ["--workdir=a", "--config.seed=1"],
    ],
)
def test_wrong_usage(args, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(args)
    assert error.value.code == 2 and args[-1].split("=")[0] in capsys.readouterr().err


def test_summary_of_a_file_needs_no_training_code():
    heavy = ("optax", "orbax", "ml_collections", "tensorflow_datasets", "grain")
    code = (
        "import sys\nfrom quantnet_jax import summary\n"
        "assert summary.main(['--artifact=no']) == 1\n"
        f"print([m for m in (*{heavy!r}, 'quantnet_jax.training',"
        " 'quantnet_jax.data') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["[]"], done.stderr


def test_summary_is_a_call_and_a_command():
    params = {"a": {"kernel": shape(4, 8), "bias": shape(8)}, "columns": 3}
    q = qn.tree_quantizer([qn.Rule("a/kernel", qn.binary_ste())], params)
    hard = jax.eval_shape(
        lambda a: q.hard(q.init(jax.random.key(0), {"a": a}), {"a": a}), params["a"]
    )
    hard["columns"] = 3  # a number, which the network needs as such

    def apply(params, x, y):
        x = x @ params["a"]["kernel"] + params["a"]["bias"][None]
        return x[:, : params["columns"]] + y

    found = qn.summary(apply, hard, (shape(2, 4), shape(2, 3)))
    assert found.macs == {"1/32": 2 * 4 * 8} and found.payload == 4 + 8 + 32 + 32
    assert repr(found) == "Summary(1 rows, 76 bytes, compression 2.11)"
    assert str(found).splitlines()[2].split()[:4] == ["a", "4x8", "1", "32"]
    assert qn.summary is command and command.main  # whatever was imported first
