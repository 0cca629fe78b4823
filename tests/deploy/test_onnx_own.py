"""ONNX models and StableHLO programs of any network; the judges run the files."""

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import quantnet_jax as qn

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

from quantnet_jax.deploy.onnx import elementwise, graph  # noqa: E402
from quantnet_jax.deploy.onnx.table import TABLE  # noqa: E402


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens(size, *shape):
    return np.random.default_rng(1).integers(0, size, shape).astype(np.int32)


def run(content, inputs):
    """Outputs of a model, by name."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    outs = [x.name for x in session.get_outputs()]
    found = session.run(
        outs, dict(zip(names, map(np.asarray, jax.tree.leaves(inputs)), strict=True))
    )
    return dict(zip(outs, found, strict=True))


class Net(nn.Module):
    """A linen network of a function of its module."""

    call: object

    @nn.compact
    def __call__(self, *args):
        return self.call(*args)


def mlp(x):
    x = nn.gelu(nn.LayerNorm()(nn.Dense(8)(x)))
    x = nn.silu(nn.RMSNorm()(nn.Dense(8)(x)))
    x = jax.nn.leaky_relu(nn.GroupNorm(num_groups=2)(nn.Dense(8)(x)))
    return {"log": jax.nn.log_softmax(nn.Dense(4)(x)), "tanh": (jnp.tanh(x), x > 0)}


def gpt(ids):
    width = ids.shape[1]
    x = nn.Embed(11, 8)(ids) + nn.Embed(6, 8)(jnp.arange(width))[None]
    mask = nn.make_causal_mask(ids)
    x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x), mask=mask)
    x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)), approximate=False))
    logits = nn.Embed(11, 8, name="head").attend(nn.LayerNorm()(x))
    return {"logits": logits, "next": jnp.argmax(logits[:, -1], -1)}


def vit(x):
    x = nn.Conv(8, (4, 4), (4, 4))(x)
    x = x.reshape(x.shape[0], -1, 8)
    first = jnp.zeros((1, 1, 8)) + 0.5
    x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, 8)), x], 1)
    x = x + nn.MultiHeadDotProductAttention(2)(x, x)
    return nn.Dense(3)(x[:, 0])


def pools(x):
    x = nn.Conv(4, (3, 3), feature_group_count=2)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    same = nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False)
    x = jnp.concatenate([nn.avg_pool(x, (2, 2), (2, 2)), same], -1)
    x = nn.max_pool(nn.Conv(8, (3, 3), feature_group_count=8)(x), (2, 2), (2, 2))
    return jax.nn.softmax(nn.Dense(3)(x.mean((1, 2)))), x.max(2), x.mean(-1)


def conv1d(x):
    x = nn.relu(nn.Conv(4, (3,), padding="CAUSAL", kernel_dilation=(2,))(x))
    x = nn.max_pool(x, (2,), (2,))
    return nn.Dense(2)(x), jnp.cumsum(x, 1), jnp.flip(x, 1)


def conv3d(x):
    x = nn.avg_pool(nn.relu(nn.Conv(4, (2, 3, 3), (1, 2, 1))(x)), (2, 2, 2), (1, 1, 1))
    return nn.Conv(2, (1, 1, 1))(x)


def upsample(x):
    a = nn.ConvTranspose(4, (3, 3), (2, 2))(x)
    b = nn.ConvTranspose(4, (2, 2), (3, 3), padding="VALID")(x)
    c = nn.ConvTranspose(3, (4, 4), (2, 2), kernel_dilation=(2, 1))(nn.relu(a))
    d = nn.ConvTranspose(2, (3,), (2,))(x[:, 0])
    return [c, b, d, jax.image.resize(x, (x.shape[0], 8, 8, 2), "nearest")]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(6)(jnp.tanh(nn.LayerNorm()(x))), x.mean(-1)


def layers(x):
    scanned = nn.scan(
        Layer, {"params": 0}, split_rngs={"params": True}, length=4, out_axes=1
    )
    return scanned()(x, None)


def lstm(x):
    return nn.RNN(nn.OptimizedLSTMCell(5))(x), nn.RNN(nn.GRUCell(3), reverse=True)(x)


def several(data):
    ids, mask = data["ids"], data["mask"]
    x = nn.Dense(4)(nn.Embed(7, 4)(ids) * mask[..., None])
    picked = jnp.take_along_axis(x, data["at"][:, None, None], 1)[:, 0]
    rows = x[jnp.arange(x.shape[0]), data["at"]]
    return {"mean": x.sum(1) / mask.sum(1)[:, None], "picked": picked, "rows": rows}


IMAGE = normal(0, 2, 8, 8, 2)
MODELS = {
    "mlp": (mlp, normal(0, 2, 5)),
    "gpt": (gpt, tokens(11, 2, 6)),
    "vit": (vit, IMAGE),
    "pools": (pools, IMAGE),
    "conv1d": (conv1d, normal(0, 2, 8, 3)),
    "conv3d": (conv3d, normal(0, 2, 4, 6, 5, 2)),
    "upsample": (upsample, normal(0, 2, 4, 4, 2)),
    "scanned layers": (layers, normal(0, 2, 6)),
    "lstm": (lstm, normal(0, 2, 4, 3)),
    "several inputs": (
        several,
        {
            "ids": tokens(7, 2, 5),
            "mask": np.float32([[1, 1, 0, 0, 0], [1] * 5]),
            "at": np.int32([1, 3]),
        },
    ),
}


def twice(example):
    """The example and its mirror image: another batch size."""
    return jax.tree.map(lambda x: np.concatenate([x, x[::-1]])[1:], example)


@pytest.mark.parametrize("name", MODELS)
def test_files_give_the_outputs_of_the_network(name, tmp_path):
    call, example = MODELS[name]
    model, inputs = Net(call), twice(example)

    @jax.jit
    def start(variables):
        rule = qn.Rule(".*(kernel|embedding)", qn.binary_ste())
        q = qn.tree_quantizer([rule], variables)
        hard = q.hard(q.init(jax.random.key(0), variables), variables)
        return hard, model.apply(qn.dequantize_tree(hard), inputs)

    with jax.numpy_dtype_promotion("standard"):  # some layers of flax need it
        shapes = jax.eval_shape(model.init, jax.random.key(0), example)
        variables = jax.tree.map(lambda x: normal(len(x.shape), *x.shape) / 3, shapes)
        if "batch_stats" in variables:
            variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
        hard, wanted = start(variables)
        path = tmp_path / "model.onnx"
        qn.to_onnx(model.apply, hard, example, path=path, tolerance=None)
        results = [run(str(path), inputs).values()]
        if name in ("gpt", "vit", "several inputs"):
            program = qn.to_stablehlo(model.apply, hard, example)
            again = jax.export.deserialize(bytearray(program)).call(inputs)
            assert jax.tree.structure(again) == jax.tree.structure(wanted)
            results.append(jax.tree.leaves(again))
    for found in results:
        for a, b in zip(found, jax.tree.leaves(wanted), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            size = max(1.0, np.abs(b).max())
            np.testing.assert_allclose(a, b, atol=1e-4 * size, rtol=0)


W = normal(3, 3, 3) / 2
WS = normal(4, 5, 3, 3) / 2
FLAT = normal(5, 4, 3)

# Functions of (N, 3) numbers.
WAYS = {
    "fori_loop": lambda x: jax.lax.fori_loop(0, 5, lambda i, h: jnp.tanh(h @ W), x),
    "scan of nothing": lambda x: jax.lax.scan(
        lambda h, _: (jnp.tanh(h @ W), h), x, None, length=5
    ),
    "scan backwards": lambda x: jax.lax.scan(
        lambda h, w: (jnp.tanh(h @ w), h.sum(1)), x, WS, reverse=True
    ),
    "while with a counter": lambda x: jax.lax.while_loop(
        lambda c: c[0] < 5, lambda c: (c[0] + 1, jnp.tanh(c[1] @ W)), (0, x)
    )[1],
    "cond of a constant": lambda x: jax.lax.cond(True, lambda h: h * 2, jnp.exp, x),
    "cond of the input": lambda x: jax.lax.cond(
        jnp.sum(x) > 1, lambda h: (h * 2, h > 0), lambda h: (h - 1, h < 0), x
    ),
    "switch": lambda x: jax.lax.switch(
        jnp.argmax(x[0]), [jnp.sin, jnp.cos, lambda h: -h], x
    ),
    "mean of the batch": lambda x: (
        x - x.mean(0, keepdims=True), x.var() + 0 * x, jnp.full_like(x, 1e9)
    ),
    "loop with an index": lambda x: jax.lax.fori_loop(
        0, 3, lambda i, h: h.at[:, i].set(h[:, i] * 2 + jnp.asarray(WS)[i, 0].sum()), x
    ),
    "copies": lambda x: (
        jnp.tile(x, (1, 2)), jnp.stack([x, x[:, ::-1]], 1), jnp.repeat(x, 2, 1),
        sum(jax.lax.unstack(x, axis=1)) if hasattr(jax.lax, "unstack") else x,
    ),
    "updates": lambda x: (
        x.at[:, 1:].add(1.0), x.at[:, 7].set(0.0), x.at[:, 0].add(x[:, 1])
    ),
    "dynamic slice": lambda x: jax.lax.dynamic_slice_in_dim(
        x, jnp.argmax(x[0]) + 1, 2, 1
    ),
    "batched product": lambda x: jnp.einsum("nc,knd->kcnd", x, x[None] * 2.0),
    "outer product": lambda x: jnp.einsum("nc,nd,ek->nkced", x, x, W),
    "integers": lambda x: (
        (x * 9).astype(jnp.int32) % 4,
        jnp.where(x > 0, x > 1, x < -1),
        jnp.round(x * 3),
        jax.lax.top_k(x, 2),
    ),
    "functions": lambda x: (
        jnp.expm1(x), jnp.log1p(x**2), jnp.power(x**2, 0.3), x**-3, jnp.exp2(x),
        jax.nn.softplus(x), jax.nn.hard_swish(x), jax.scipy.special.erfc(x),
        jnp.clip(x, -1, 0.5),
        jnp.isfinite(1 / (x - x)), jnp.logical_xor(x > 0, x > 1), jnp.all(x > -1, 1),
        jnp.prod(x, 1), jnp.min(x, 1), jnp.argmin(x, 1), jax.nn.logsumexp(x, 1),
    ),
    "state of ones": lambda x: jax.lax.scan(
        lambda h, w: (jnp.concatenate([h, x], 1) @ jnp.concatenate([w, w]), None),
        jnp.ones((len(x), 3)),
        WS,
    )[0],
    "windows": lambda x: (
        jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2), (1, 1), "SAME"),
        jax.lax.reduce_window(x, jnp.inf, jax.lax.min, (1, 2), (1, 1), "VALID"),
        jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3), (1, 1), "SAME"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_single_operations_equal_those_of_jax(way):
    apply = lambda params, x: WAYS[way](x)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model = qn.to_onnx(apply, {}, FLAT)
        inputs = np.concatenate([FLAT, -FLAT])[1:]
        wanted = jax.tree.leaves(jax.jit(WAYS[way])(inputs))
    found = run(model.SerializeToString(), inputs)
    for a, b in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def grows(x):
    return jax.lax.while_loop(lambda h: jnp.sum(h) > 1, lambda h: h / 2, x)


REFUSED = {
    "primitive 'while' runs a number of times that depends": grows,
    "primitive 'scan', unrolled, makes more than 200": lambda x: jax.lax.fori_loop(
        0, 100_000, lambda i, h: jnp.tanh(h), x
    ),
    "primitive 'scan' runs over the batch": lambda x: jax.lax.scan(
        lambda h, row: (h + row, None), jnp.zeros(3), x
    )[0],
    "primitive 'sort' of the network has no translation": lambda x: jnp.sort(x, 1),
    "primitive '.*' computes in bfloat16": lambda x: x.astype(jnp.bfloat16) @ W,
    "cuts or extends the batch": lambda x: x[1:],
    "the network has no outputs": lambda x: {},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_translation_is_refused_in_a_line(message, monkeypatch):
    monkeypatch.setattr(graph, "MOST", 200)
    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(ValueError, match=message) as e:
            qn.to_onnx(lambda params, x: REFUSED[message](x), {}, FLAT)
    assert "\n" not in str(e.value)


def test_loops_within_one_batch_size_and_shapes_as_examples():
    """`batch=False`: the axes of the example as they are, scalars among the inputs."""
    apply = lambda params, x, times: jax.lax.scan(
        lambda h, row: (h * times + row @ params["w"], None), jnp.zeros(3), x
    )[0]
    example = (jax.ShapeDtypeStruct((4, 3), jnp.float32), np.float32(0.5))
    model = qn.to_onnx(apply, {"w": W}, example, batch=False)
    assert [x.name for x in model.graph.input] == ["input_0", "input_1"]
    inputs = (FLAT, np.float32(0.5))
    found = run(model.SerializeToString(), inputs)["output"]
    np.testing.assert_allclose(found, apply({"w": W}, *inputs), rtol=1e-5, atol=1e-6)
    program = qn.to_stablehlo(apply, {"w": W}, example, batch=False)
    again = jax.export.deserialize(bytearray(program)).call(*inputs)
    np.testing.assert_allclose(again, found, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="free batch size") as e:
        qn.to_stablehlo(lambda params, x: x.reshape(2, -1)[:, :7], {}, FLAT)
    assert "\n" not in str(e.value)


def test_a_model_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(TABLE, "tanh", elementwise.rows()["sin"])
    path = tmp_path / "model.onnx"
    apply = lambda params, x: jnp.tanh(x)
    with pytest.raises(ValueError, match="output 'output' differs in onnxruntime by"):
        qn.to_onnx(apply, {}, FLAT, path=path)
    assert not path.exists()
    qn.to_onnx(apply, {}, FLAT, path=path, tolerance=None)
    assert path.exists()


def test_tables_in_numpy_are_indexed_by_tokens():
    apply = lambda params, ids: params["table"][ids]
    params, ids = {"table": normal(0, 5, 3)}, tokens(5, 2, 4)
    content = qn.to_onnx(apply, params, ids).SerializeToString()
    wanted = params["table"][ids]
    np.testing.assert_array_equal(run(content, ids)["output"], wanted)
    program = jax.export.deserialize(bytearray(qn.to_stablehlo(apply, params, ids)))
    np.testing.assert_array_equal(program.call(ids), wanted)
