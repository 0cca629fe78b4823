"""Own trees through `qn.save` and `qn.load`: they come back as they were."""

import collections
import dataclasses
import json
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from artifacts import SPEC, make_params
from flax import nnx, serialization
from flax.core import freeze

import quantnet_jax as qn
from quantnet_jax import deploy
from quantnet_jax.deploy.format.packed import is_packed

pytestmark = pytest.mark.optimized


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    w: Any
    size: int = dataclasses.field(metadata={"static": True})


def kernel(number, shape=(3, 4)):
    """A binary QTensor."""
    w = jax.random.normal(jax.random.key(number), shape)
    return qn.binary_ste().hard((), w)


DTYPES = ("bool", "int8", "uint16", "int32", "bfloat16", "float16", "float32")
WIDE = {name: np.asarray([[0, 1, 2**53 + 1]], name) for name in ("int64", "uint64")}
PLAIN = {
    "dict": {"a": {"b": kernel(0)}, "c": np.ones(2, np.float32)},
    "12 layers": {"layers": [{"w": kernel(i)} for i in range(12)]},
    "integer keys": {"layers": {i: {"w": kernel(i)} for i in range(12)}},
    "slashes": {"mlp/~/linear": {"w": kernel(0)}, "": {"/": np.ones(1, np.float32)}},
    "below a tensor": {"a": kernel(0), "a/b": kernel(1), "c/d": [kernel(2)]},
    "tuples": (kernel(0), ((), [np.ones(2, np.float32)]), {}, None),
    "dtypes": {name: jnp.asarray([[0, 1, 1]], name) for name in DTYPES},
    "wide": WIDE | {"float64": np.asarray([1 / 3])},
    "numbers": {"steps": 7, "rate": 0.1, "flag": True, "array": np.float32(0.5)},
    "empty arrays": [np.zeros((0, 3), np.float32), np.zeros((2, 0), np.int32)],
    "no leaves": {},
    "a leaf": kernel(0),
    "40 deep": kernel(0),
}
for _ in range(40):
    PLAIN["40 deep"] = {"a": PLAIN["40 deep"]}


def boxed_params():
    init = nn.with_partitioning(nn.initializers.ones, ("in", "out"))
    model = nn.Dense(4, kernel_init=init)
    return model, model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]


NEED_LIKE = {
    "named tuple": {"a": Pair(kernel(0), [np.ones(2, np.float32)])},
    "ordered dict": collections.OrderedDict(b=kernel(0), a=kernel(1)),
    "frozen dict": freeze({"layers": {"w": kernel(0)}}),
    "dataclass": [Module(kernel(0), 3)],
    "nnx state": nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0))),
    "boxes": boxed_params()[1],
}


def same(found, wanted):
    """Equal structures, static parts included, types, dtypes, shapes and bits."""
    found = deploy.unpack_tree(found)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if type(other) in (bool, int, float):
            assert type(one) is type(other) and one == other
            continue
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("name", PLAIN)
def test_plain_trees_come_back_as_they_were(name, tmp_path):
    path, tree = tmp_path / "own.safetensors", PLAIN[name]
    qn.save(path, tree)
    same(qn.load(path).params, tree)
    same(qn.load(path, like=jax.eval_shape(lambda: tree)).params, tree)
    again = tmp_path / "again"  # what was read, and in another order
    turned = lambda x: {k: x[k] for k in reversed(x)} if isinstance(x, dict) else x
    qn.save(again, turned(qn.load(path).params))
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("name", NEED_LIKE)
def test_other_nodes_need_an_example(name, tmp_path):
    path, tree = tmp_path / "own.safetensors", NEED_LIKE[name]
    qn.save(path, tree)
    same(qn.load(path, like=tree).params, tree)
    with pytest.raises(ValueError, match=r"is a \w+, expected `like`$"):
        qn.load(path)


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"a": (1, 2), "b": {0: 1}}, "'a' is list in the file, tuple in `like`"),
        (
            {"a": [1, 2], "b": {"0": 1}},
            r"'b' has keys .0. in the file, .'0'. in `like`",
        ),
        ({"a": Pair(1, 2), "b": {0: 1}}, "paths: .'a/0'"),
        ({"a": [1], "b": {0: 1}}, "paths: .'a/1'"),
        ({"a": [1, np.ones(3)], "b": {0: 1}}, r"'a/1' has shape \(\), `like` \(3,\)"),
        ([1, 2], "paths: .'0', '1'"),
    ],
)
def test_an_example_of_another_structure_is_refused(like, words, tmp_path):
    path = tmp_path / "own.safetensors"
    one = np.float32(1)
    qn.save(path, {"a": [one, one], "b": {0: one}})
    with pytest.raises(ValueError, match=words) as error:
        qn.load(path, like=like)
    assert "\n" not in str(error.value)


# Predictions --------------------------------------------------------------------------


def network(tree, x, *, scale=1.0):
    for layer in tree["layers"]:
        x = jnp.tanh(x @ layer["w"]) * scale
    return {"logits": x, "steps": tree["steps"]}


@pytest.fixture
def own():
    """(quantizer, qparams, params, tree that ships)."""
    keys = jax.random.split(jax.random.key(0), 12)
    layers = [{"w": jax.random.normal(key, (8, 8)) / 3} for key in keys]
    params = {"layers": layers, "steps": jnp.int32(3)}
    q = qn.tree_quantizer([qn.Rule("layers/.*", qn.lsq(bits=2))], params)
    qparams = q.init(jax.random.key(0), params)
    return q.hard(qparams, params)


def test_what_is_loaded_predicts_as_hard(own, tmp_path):
    path, x = tmp_path / "own.safetensors", jax.random.normal(jax.random.key(1), (5, 8))
    sizes = qn.save(path, own, apply=network, example=x, info={"words": ["a", "ü"]})
    model = qn.load(path, apply=network)
    wanted = jax.jit(network)(qn.dequantize_tree(own), x)
    same(model(x), wanted)
    same(jax.jit(model.apply)(model.params, x)["steps"], jnp.int32(3))
    assert all(is_packed(layer["w"]) for layer in model.params["layers"])
    assert model.info == {"words": ["a", "ü"]}
    size = 12 * (64 * 2 // 8 + 16 + 4) + 4
    assert repr(model) == f"TreePredictor(13 leaves, 12 packed, {size:,} bytes)"
    kept = [int((qn.dequantize(x["w"]) != 0).sum()) for x in own["layers"]]
    saved = [max(0, 16 - (64 // 8 + -(-2 * n // 8))) for n in kept]  # by a mask
    assert sizes["payload"] == size - sum(saved)
    # Several inputs; and the loaded tree can be saved again.
    own = lambda tree, x, y: network(tree, x + y)
    qn.save(path, model.params, apply=own, example=(x, x))
    same(
        qn.load(path, apply=own)(x, x),
        jax.jit(own)(qn.dequantize_tree(deploy.unpack_tree(model.params)), x, x),
    )
    with pytest.raises(TypeError, match="^the file was loaded without `apply`"):
        qn.load(path)(x)


def test_a_file_that_is_not_verified_gets_no_name(own, tmp_path, monkeypatch):
    path = tmp_path / "own.safetensors"
    path.write_text("older")
    read = deploy.format.artifact.read

    def damaged(path, like):
        params, header = read(path, like=like)
        params["layers"][3]["w"].codes[0] ^= 1
        return params, header

    def apply(tree, x):
        return network(tree, x)["logits"]

    with monkeypatch.context() as patch:
        patch.setattr(deploy.format.artifact, "read", damaged)
        with pytest.raises(ValueError, match="otherwise than the tree: . of 8 outputs"):
            qn.save(path, own, apply=apply, example=jnp.ones((1, 8)))
    with pytest.raises(ZeroDivisionError):
        qn.save(path, own, apply=lambda tree, x: 1 / 0, example=jnp.ones((1, 8)))
    with pytest.raises(ValueError, match="^`example` is missing; `apply` alone"):
        qn.save(path, own, apply=apply)
    with pytest.raises(ValueError, match="^`apply` is missing; `example` alone"):
        qn.save(path, own, example=1)
    assert path.read_text() == "older"
    assert [x.name for x in tmp_path.iterdir()] == [path.name]


def test_exported_networks_load_as_before_or_with_an_apply(tmp_path):
    path = tmp_path / "model.safetensors"
    deploy.save(path, make_params(), SPEC)
    assert isinstance(qn.load(path), deploy.Predictor)
    head = qn.load(path, apply=lambda tree: tree["head"]["bias"])
    assert head().tolist() == make_params()["head"]["bias"].tolist()
    with pytest.raises(ValueError, match="use `quantnet_jax.load`"):
        qn.save(path, {"a": np.ones(2, np.float32)})
        deploy.load(path)


# Flax ---------------------------------------------------------------------------------


def test_boxes_and_frozen_dicts_from_rules_to_file(tmp_path):
    model, params = boxed_params()
    plain = nn.meta.unbox(params)
    x = jax.random.normal(jax.random.key(1), (2, 3))
    apply = lambda tree, x: model.apply({"params": tree}, x)
    rules = [qn.Rule("kernel", qn.lsq(bits=2))]
    outputs = []
    for tree in (plain, params, freeze(params)):
        q = qn.tree_quantizer(rules, tree)
        qparams = q.init(jax.random.key(0), tree)
        assert list(qparams) == ["kernel"]
        grads = jax.grad(
            lambda t, q=q, p=qparams: apply(q.soft(p, t, step=0), x).sum()
        )(tree)
        assert jax.tree.structure(grads) == jax.tree.structure(tree)
        path = tmp_path / "own.safetensors"
        qn.save(path, q.hard(qparams, tree), apply=apply, example=x)
        found = qn.load(path, apply=apply, like=tree)
        outputs.append(found(x))
    assert (outputs[0] == outputs[1]).all() and (outputs[0] == outputs[2]).all()


def test_nnx_states_in_rules():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    q = qn.tree_quantizer([qn.Rule("kernel", qn.binary_ste())], state)
    hard = q.hard(q.init(jax.random.key(0), state), state)
    assert isinstance(hard, nnx.State)
    x = jnp.ones((2, 3))
    w = qn.dequantize(qn.binary_ste().hard((), model.kernel[...]))
    found = nnx.merge(graph, qn.dequantize_tree(hard))(x)
    np.testing.assert_allclose(found, x @ w, rtol=1e-6)


def test_statistics_of_nnx_are_in_the_file(tmp_path):
    class Net(nnx.Module):
        def __init__(self, rngs):
            make = lambda: nnx.Linear(4, 4, rngs=rngs)
            self.layers = nnx.List([make() for _ in range(12)])
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            for layer in self.layers:
                x = self.norm(layer(x))
            return x

    params, state, apply = qn.nnx.split(Net(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (16, 4))
    _, state = apply(params, state, x, train=True)
    q = qn.tree_quantizer([qn.Rule("layers/.*kernel", qn.binary_ste())], params)
    hard = q.hard(q.init(jax.random.key(0), params), params)
    path = tmp_path / "own.safetensors"
    predict = lambda tree, x: apply(*tree, x)[0]
    qn.save(path, (hard, state), apply=predict, example=x)
    found = qn.load(path, apply=predict)
    same(found.params[1], state)
    same(found(x), jax.jit(predict)((qn.dequantize_tree(hard), state), x))


# Files --------------------------------------------------------------------------------


def header_of(path):
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header, json.loads(header["__metadata__"]["quantnet_jax"])


def test_arrays_are_in_the_file_in_their_own_dtype(tmp_path):
    path = tmp_path / "own.safetensors"
    sizes = qn.save(path, PLAIN["dtypes"])
    header, _ = header_of(path)
    names = {"bool": "BOOL", "bfloat16": "BF16"}
    short = lambda name: name.replace("uint", "U").replace("int", "I")
    for name in DTYPES:
        wanted = names.get(name, short(name).replace("float", "F"))
        assert header[name]["dtype"] == wanted
    assert sizes["payload"] == 3 * (1 + 1 + 2 + 4 + 2 + 2 + 4)


BAD = [
    3,
    "x",
    ["set", []],
    ["list", [[1, "*"]]],
    ["list", [["0", "*"]]],
    ["dict", [["a", "*"], ["a", "*"]]],
    ["dict", [["a", "*"], ["b", "*"], ["c", "*"]]],
    ["dict", [["a", "*"]]],
    ["dict", [[True, "*"]]],
    ["dict", [["a", {"value": "x"}], ["b", "*"]]],
    ["dict", [["a", {}], ["b", "*"]]],
    ["dict", [["a", "*"], ["b", "*"], ["c", {"value": 2**31}]]],
    ["dict", {"a": "*"}],
    ["dict", [["a", ["class X", []]], ["b", "*"]]],
    ["dict", [["a", ["class X", 3]], ["b", "*"]]],
]


@pytest.mark.parametrize("nodes", [*BAD, "deep"], ids=str)
def test_hostile_descriptions_of_a_tree_are_refused(nodes, tmp_path):
    if nodes == "deep":
        for _ in range(300):
            nodes = ["list", [[0, nodes]]]
    one, path = np.ones(2, np.float32), tmp_path / "own.safetensors"
    deploy.write(path, {"a": one, "b": one}, {})
    _, text = header_of(path)
    tensors = {"a": one, "b": one}
    reseal(path, text | {"plain": False, "tree": nodes}, tensors)
    for like in (None, [one, one]):
        with pytest.raises(ValueError) as error:
            qn.load(path, like=like)
        assert "\n" not in str(error.value) and len(str(error.value)) < 800


@pytest.mark.parametrize("plain", [16, "false", None, []])
def test_whether_a_tree_is_plain_is_true_or_false(plain, tmp_path):
    path, tensors = tmp_path / "own.safetensors", {"a": np.ones(2, np.float32)}
    deploy.write(path, tensors, {})
    _, text = header_of(path)
    reseal(path, text | {"plain": plain}, tensors)
    with pytest.raises(ValueError, match=f"{path.name}: plain=.*, expected true or"):
        qn.load(path)


@pytest.mark.parametrize("number", [2**31, 10**30, float("nan")])
def test_numbers_that_no_network_takes_are_not_saved(number, tmp_path):
    tree = {"w": np.ones(2, np.float32), "n": {"deep": number}}
    with pytest.raises(ValueError, match="^n/deep=.*, expected a finite number, of 32"):
        qn.save(tmp_path / "own.safetensors", tree)
    assert not any(tmp_path.iterdir())


def reseal(path, spec, tensors):
    """Writes a file whose hash is right, whatever it says."""
    text, format_ = json.dumps(spec), deploy.format.artifact
    metadata = {"quantnet_jax": text, "sha256": format_.digest(text, tensors)}
    path.write_bytes(format_.save(tensors, metadata))


# Other formats ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes():
    """{name: tree} with every node of the package."""
    params = {"a": {"kernel": kernel_of(0)}, "layers": {0: {"kernel": kernel_of(1)}}}
    q = qn.tree_quantizer([qn.Rule(".*kernel", qn.lsq(bits=2))], params)
    qparams = q.init(jax.random.key(0), params)
    hard = q.hard(qparams, params)
    return {"qparams": qparams, "hard": hard, "packed": deploy.pack_tree(hard)}


def kernel_of(seed):
    return jax.random.normal(jax.random.key(seed), (3, 4))


@pytest.mark.parametrize("name", ["qparams", "hard", "packed"])
def test_flax_stores_the_nodes(name, nodes):
    tree = nodes[name]
    blank = jax.tree.map(jnp.zeros_like, tree)
    same(serialization.from_bytes(blank, serialization.to_bytes(tree)), nodes_of(tree))
    state = serialization.to_state_dict(tree)
    same(serialization.from_state_dict(blank, state), nodes_of(tree))
    if name == "hard":
        del state["a"]["kernel"]["scale"]
        with pytest.raises(ValueError, match="of a QTensor has other fields: .'scale'"):
            serialization.from_state_dict(blank, state)


def nodes_of(tree):
    """As `same` compares: with QTensors in the place of packed leaves."""
    return deploy.unpack_tree(tree)


def test_orbax_stores_the_nodes(nodes, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "all", nodes)
        checkpointer.wait_until_finished()
        blank = jax.tree.map(jnp.zeros_like, nodes)
        found = checkpointer.restore(tmp_path / "all", blank)
    for name, tree in nodes.items():
        same(found[name], nodes_of(tree))
