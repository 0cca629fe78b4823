"""Axes of parameters found in traces: by hand, by which outputs a weight reaches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from util import normal

import quantnet_jax as qn
from quantnet_jax.trees.paths import flatten


def conv(w, x, spec=("NHWC", "HWIO", "NHWC"), padding="SAME", **options):
    """A convolution of stride 1."""
    return lax.conv_general_dilated(
        x, w, (1,) * (x.ndim - 2), padding, dimension_numbers=spec, **options
    )


def scanned(layer):
    """The layers of a stack one after another."""
    return lambda w, x: lax.scan(lambda x, w: (layer(w, x), None), x, w)[0]


def module(net, path):
    """`fn(w, x)` of a linen module whose other parameters are fixed."""

    def fn(w, x):
        params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
        params = jax.tree_util.tree_map_with_path(
            lambda at, leaf: (
                w
                if jax.tree_util.keystr(at, simple=True, separator="/") == path
                else jnp.ones(leaf.shape)
            ),
            params,
        )
        return net.apply({"params": params}, x)

    return fn


def dense(w, x):
    return x @ w


EQX = ("NCHW", "OIHW", "NCHW")
SHAPES = ("shape of w", "shape of x", "out", "stack", "inputs")
# name: (fn(w, x), shape of w, shape of x, out, stack, inputs); the rest are windows.
KERNELS = {
    "Dense": (dense, (5, 7), (2, 5), (1,), (), (0,)),
    "one unit": (lambda w, x: x @ w, (5,), (2, 5), (), (), (0,)),
    "head of one": (dense, (5, 1), (2, 5), (1,), (), (0,)),
    "Conv": (conv, (3, 3, 2, 4), (1, 5, 5, 2), (3,), (), (2,)),
    "Conv 1-D": (
        lambda w, x: conv(w, x, ("NWC", "WIO", "NWC")),
        *((3, 2, 4), (1, 5, 2), (2,), (), (1,)),
    ),
    "depthwise": (
        lambda w, x: conv(w, x, feature_group_count=4),
        *((3, 3, 1, 4), (1, 5, 5, 4), (3,), (), (2,)),
    ),
    "grouped": (
        lambda w, x: conv(w, x, feature_group_count=2),
        *((3, 3, 2, 6), (1, 5, 5, 4), (3,), (), (2,)),
    ),
    "attention query": (
        module(nn.DenseGeneral((2, 3), use_bias=False), "kernel"),
        *((4, 2, 3), (1, 4), (1, 2), (), (0,)),
    ),
    "attention out": (
        module(nn.DenseGeneral(4, axis=(-2, -1), use_bias=False), "kernel"),
        *((2, 3, 4), (1, 2, 3), (2,), (), (0, 1)),
    ),
    "fused qkv": (
        lambda w, x: jnp.split(x @ w.reshape(4, 6), 3, -1),
        *((4, 3, 2), (1, 4), (1, 2), (), (0,)),
    ),
    "heads first": (
        lambda w, x: jnp.einsum("btd,ndh->btnh", x, w),
        *((2, 5, 3), (1, 2, 5), (0, 2), (), (1,)),
    ),
    "experts": (
        lambda w, x: jnp.einsum("ebi,eio->ebo", x, w),
        *((3, 4, 5), (3, 2, 4), (2,), (0,), (1,)),
    ),
    "vmapped Dense": (
        jax.vmap(dense),
        *((3, 4, 5), (3, 2, 4), (2,), (0,), (1,)),
    ),
    "vmapped Conv": (
        jax.vmap(conv),
        *((2, 3, 3, 2, 4), (2, 1, 5, 5, 2), (4,), (0,), (3,)),
    ),
    "vmapped Conv of groups": (
        jax.vmap(lambda w, x: conv(w, x, feature_group_count=2)),
        *((3, 3, 3, 2, 4), (3, 1, 5, 5, 4), (4,), (0,), (3,)),
    ),
    "transposed": (
        lambda w, x: x @ w.T,
        *((7, 5), (2, 5), (0,), (), (1,)),
    ),
    "ConvTranspose": (
        module(nn.ConvTranspose(4, (3, 3), use_bias=False), "kernel"),
        *((3, 3, 2, 4), (1, 4, 4, 2), (3,), (), (2,)),
    ),
    "ConvTranspose of a transposed kernel": (
        module(
            nn.ConvTranspose(4, (3, 3), use_bias=False, transpose_kernel=True),
            "kernel",
        ),
        *((3, 3, 4, 2), (1, 4, 4, 2), (2,), (), (3,)),
    ),
    "equinox Linear": (
        jax.vmap(lambda w, x: w @ x, (None, 0)),
        *((7, 5), (2, 5), (0,), (), (1,)),
    ),
    "equinox Conv": (
        jax.vmap(lambda w, x: conv(w, x[None], EQX)[0], (None, 0)),
        *((4, 2, 3, 3), (1, 2, 5, 5), (0,), (), (1,)),
    ),
    "joined": (
        lambda w, x: x @ jnp.concatenate([w, w * 2.0, jnp.ones((5, 1))], axis=1),
        *((5, 4), (2, 5), (1,), (), (0,)),
    ),
    "picked": (
        lambda w, x: jnp.stack(
            [x @ w[0], x @ w[2], lax.cond(True, dense, dense, w[1], x)]
        ),
        *((3, 4, 5), (2, 4), (2,), (0,), (1,)),
    ),
    "normalized": (
        jax.checkpoint(
            lambda w, x: x @ (w * lax.rsqrt(jnp.sum(w * w, 0, keepdims=True)))
        ),
        *((5, 4), (2, 5), (1,), (), (0,)),
    ),
}
LAYERS = {
    "scanned Dense": (scanned(dense), (3, 4, 4), (2, 4), (2,), (0,), (1,)),
    "scanned Conv": (
        scanned(conv),
        *((2, 3, 3, 4, 4), (1, 5, 5, 4), (4,), (0,), (3,)),
    ),
    "scan in a scan": (
        scanned(scanned(dense)),
        *((2, 3, 4, 4), (2, 4), (3,), (0, 1), (2,)),
    ),
    "stacked in the network": (
        lambda w, x: scanned(dense)(jnp.stack([w, w]), x),
        *((4, 4), (2, 4), (1,), (), (0,)),
    ),
    "output of a scan": (
        lambda w, x: scanned(dense)(
            lax.scan(lambda c, w: (c, jnp.tanh(w)), 0, w)[1], x
        ),
        *((3, 4, 4), (2, 4), (2,), (0,), (1,)),
    ),
    "unstacked": (
        lambda w, x: sum(jnp.tanh(x @ part) for part in jnp.unstack(w, axis=1)),
        *((4, 3, 4), (2, 4), (2,), (1,), (0,)),
    ),
    "tiled": (
        lambda w, x: x @ jnp.tile(w, (1, 2)),
        *((4, 3), (2, 4), (1,), (), (0,)),
    ),
    "loop over an index": (
        lambda w, x: lax.fori_loop(0, 3, lambda i, x: x @ w[i], x),
        *((3, 4, 4), (2, 4), (2,), (0,), (1,)),
    ),
    "Embed": (
        lambda w, x: w[x.astype(int)],
        *((9, 4), (2, 3), (0,), (), (1,)),
    ),
    "tied Embed": (
        lambda w, x: jnp.tanh(jnp.take(w, x.astype(int), axis=0)) @ w.T,
        *((9, 4), (2, 3), (0,), (), (1,)),
    ),
    "Embed into Dense": (
        lambda w, x: w[x.astype(int)].reshape(2, 12) @ jnp.ones((12, 5)),
        *((9, 4), (2, 3), (0,), (), (1,)),
    ),
    "vmapped Embed": (
        jax.vmap(lambda w, x: w[x.astype(int)]),
        *((3, 9, 4), (3, 2), (1,), (0,), (2,)),
    ),
    "experts by token": (
        lambda w, x: jnp.einsum("bi,bio->bo", x, w[jnp.argmax(x, -1)]),
        *((6, 6, 5), (2, 6), (2,), (0,), (1,)),
    ),
    "ragged experts": (
        lambda w, x: lax.ragged_dot(x, w, jnp.full(3, 2, jnp.int32)),
        *((3, 4, 5), (6, 4), (2,), (0,), (1,)),
    ),
    "learned query": (
        lambda w, x: (jnp.ones((1, 4)) @ w.reshape(4, 6)) @ x.T,
        *((4, 2, 3), (5, 6), (1, 2), (), (0,)),
    ),
    "LSTM of one kernel": (
        lambda w, x: lax.scan(
            lambda h, x: (
                jnp.tanh(sum(jnp.split(jnp.concatenate([x, h], -1) @ w, 4, -1))),
                None,
            ),
            jnp.zeros((2, 3)),
            x,
        )[0],
        *((5, 12), (6, 2, 2), (1,), (), (0,)),
    ),
}


KEY = jax.random.key(0)


def found(fn, w, x):
    params, example = {"w": jax.ShapeDtypeStruct(w, jnp.float32)}, jnp.ones(x)
    return qn.axes(lambda p, x: fn(p["w"], x), params, example)["w"]


@pytest.mark.parametrize("name", [*KERNELS, *LAYERS])
def test_axes_of_kernels(name):
    fn, w, x, out, stack, inputs = (KERNELS | LAYERS)[name]
    axes = found(fn, w, x)
    window = {*range(len(w))} - {*out, *stack, *inputs}
    assert axes == qn.Axes(out, inputs, stack, tuple(sorted(window)))


@pytest.mark.filterwarnings("ignore:rule '.*' claims vectors")
def test_error_of_a_scale_for_each_unit_is_the_least():
    """By the axes that are found; the units of the comparison are those by hand."""
    params, axes, best = {}, {}, {}
    for name, (fn, shape, x, out, stack, _) in (KERNELS | LAYERS).items():
        sizes = [n if i in (*out, *stack) else 1 for i, n in enumerate(shape)]
        w = params[name] = normal(2, shape) * np.exp(normal(3, sizes))
        axes[name] = found(fn, shape, x)
        others = tuple(i for i in range(len(shape)) if i not in (*out, *stack))
        scale = np.abs(w).mean(others, keepdims=True)
        best[name] = np.where(w >= 0, scale, -scale)
    rules = [qn.Rule(".*", qn.binary_ste(), out="auto")]
    q = qn.tree_quantizer(rules, params, axes=axes)
    hard = jax.jit(lambda w: qn.dequantize_tree(q.hard(q.init(KEY, w), w)))(params)
    for name, wanted in best.items():
        np.testing.assert_allclose(hard[name], wanted, rtol=1e-5, err_msg=name)


def units(mask):
    """Numbers of the sets of weights that no output connects: union of supports."""
    labels = np.arange(len(mask))
    for column in mask.T:
        reached = np.flatnonzero(column)
        if len(reached):
            same = np.isin(labels, labels[reached])
            labels[same] = labels[same].min()
    return labels


@pytest.mark.parametrize("name", KERNELS)
def test_units_are_the_weights_that_share_outputs(name):
    """Of a layer that is linear in its kernel, and without look at the trace."""
    fn, shape, x, out, stack, _ = KERNELS[name]
    if name == "normalized":  # not linear
        fn = dense
    w, x = jnp.asarray(normal(0, shape)), jnp.asarray(normal(1, x))
    total = lambda w: jnp.concatenate([y.ravel() for y in jax.tree.leaves(fn(w, x))])
    jacobian = np.asarray(jax.jit(jax.jacrev(total))(w)).reshape(-1, w.size)
    labels = units(np.abs(jacobian.T) > 1e-7)
    expected = np.zeros(shape, int)
    for axis in (*stack, *out):
        expected = expected * shape[axis] + np.indices(shape)[axis]
    pairs = set(zip(expected.ravel().tolist(), labels.tolist(), strict=True))
    assert len(pairs) == len(set(labels.tolist())) == len(np.unique(expected))


@pytest.mark.parametrize(
    ("fn", "w", "x", "why"),
    [
        (lambda w, x: x + w[None], (4,), (2, 4), "it meets no product"),
        (lambda w, x: x @ w @ w.T, (4, 5), (2, 4), "axis 0 is summed over in one"),
        (lambda w, x: x @ jnp.sort(w), (4, 4), (2, 4), "through 'sort' before"),
        (lambda w, x: conv(jnp.ones((3, 3, 2, 2)), w), (1, 5, 5, 2), (1,), "input of"),
        (lambda w, x: x @ w.reshape(2, 2, 3)[1], (4, 3), (2, 2), "axis 0 is summed"),
        (
            lambda w, x: lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x),
            *((4, 4), (1, 4), "'while', whose products cannot be read"),
        ),
    ],
)
def test_what_cannot_be_known_is_said(fn, w, x, why):
    axes = found(fn, w, x)
    assert why in axes.unknown and axes.out == (len(w) - 1,)
    rules, params = [qn.Rule("w", qn.lsq(), out="auto")], {"w": jnp.ones(w)}
    with pytest.raises(ValueError, match="'w': out='auto', but") as error:
        qn.tree_quantizer(rules, params, axes={"w": axes})
    assert "\n" not in str(error.value) and why in str(error.value)


@pytest.mark.parametrize(
    ("rule", "axes", "words"),
    [
        ({"out": "auto"}, None, "needs axes=qn.axes"),
        ({"out": "auto"}, {}, "of another tree"),
        ({"out": "auto", "stack": 0}, {"w": qn.Axes((1,), (0,))}, "which finds both"),
        ({"out": "last"}, None, "expected an axis, axes or 'auto'"),
        ({}, {"w": qn.Axes((1,), (0,))}, "no rule says out='auto'"),
    ],
)
def test_rules_and_axes_that_do_not_fit_are_errors(rule, axes, words):
    with pytest.raises(ValueError, match=words) as error:
        qn.tree_quantizer(
            [qn.Rule("w", qn.lsq(), **rule)], {"w": jnp.ones((2, 3))}, axes=axes
        )
    assert "\n" not in str(error.value)


class Block(nn.Module):
    """A block of a transformer, as `nn.scan` takes it."""

    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm()(x))
        return x + nn.Dense(8, name="mlp")(nn.gelu(x)), None


class Linen(nn.Module):
    """Layers of Flax that arrange their kernels in many ways."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8, name="embed")
        stacked = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x = embed(tokens) + self.param("place", nn.initializers.normal(), (1, 4, 8))
        blocks = nn.scan(nn.remat(Block), length=3, **stacked)
        x = blocks(name="blocks")(x, None)[0]
        x = nn.RNN(nn.OptimizedLSTMCell(8, name="lstm"))(x)
        experts = nn.vmap(nn.Dense, in_axes=-2, out_axes=-2, **stacked)
        x = nn.WeightNorm(nn.Dense(8, name="normed"))(experts(8, name="experts")(x))
        x = nn.Einsum((8, 2, 4), "bti,ihd->bthd", name="einsum")(x).reshape(x.shape)
        return embed.attend(x)


class Layer(nnx.Module):
    """Attention and a Linear."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.linear = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return x + self.linear(self.attention(x))


@nnx.split_rngs(splits=2)
@nnx.vmap(in_axes=0, out_axes=0)
def stack_of_layers(rngs):
    return Layer(rngs)


class Nnx(nnx.Module):
    """Two layers in a scan, one in a list."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.scanned = stack_of_layers(rngs)
        self.list = nnx.List([Layer(rngs)])

    def __call__(self, tokens):
        run = lambda x, layer: layer(x)
        scan = nnx.scan(run, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.list[0](scan(self.embed(tokens), self.scanned))


def linen(tokens):
    """(parameters, apply) of the linen network."""
    net = Linen()
    shapes = jax.eval_shape(net.init, jax.random.key(0), tokens)
    return shapes["params"], lambda p, x: net.apply({"params": p}, x)


def as_nnx(tokens):
    """The same of the nnx network."""
    definition, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)
    apply = lambda p, x: nnx.merge(definition, p, rest)(x)
    return nnx.to_pure_dict(params), apply


QUERY, ATTENDED, LINEAR = ((1, 2), (0,)), ((2,), (0, 1)), ((1,), (0,))
STACKED = {
    QUERY: ((2, 3), (1,), (0,)),
    ATTENDED: ((3,), (1, 2), (0,)),
    LINEAR: ((2,), (1,), (0,)),
}
BLOCK = {f"attention/{x}/kernel": QUERY for x in ("query", "key", "value")}
BLOCK |= {"attention/out/kernel": ATTENDED}
NETS = {
    linen: {
        "embed/embedding": ((0,), (1,)),
        **{f"blocks/{k}": STACKED[x] for k, x in BLOCK.items()},
        "blocks/mlp/kernel": STACKED[LINEAR],
        **{
            f"lstm/{source}{gate}/kernel": LINEAR
            for source in "ih"
            for gate in ("i", "f", "g", "o")
        },
        "experts/kernel": STACKED[LINEAR],
        "normed/kernel": LINEAR,
        "WeightNorm_0/normed/kernel/scale": ((0,), ()),
        "einsum/kernel": QUERY,
    },
    as_nnx: {
        "embed/embedding": ((0,), (1,)),
        **{f"scanned/{k}": STACKED[x] for k, x in BLOCK.items()},
        "scanned/linear/kernel": STACKED[LINEAR],
        **{f"list/0/{k}": x for k, x in BLOCK.items()},
        "list/0/linear/kernel": LINEAR,
    },
}


@pytest.mark.parametrize("make", NETS)
def test_axes_of_networks(make):
    tokens = jnp.zeros((2, 4), int)
    params, apply = make(tokens)
    axes = qn.axes(apply, params, tokens)
    assert set(axes) == set(flatten(params))
    known = {path: x for path, x in axes.items() if not x.unknown}
    assert known == {path: qn.Axes(*x) for path, x in NETS[make].items()}
    others = {axes[path].unknown for path in set(axes) - set(known)}
    assert others <= {"it meets no product"}
