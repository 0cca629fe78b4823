"""Tests of quantnet_jax.models against NumPy and counts made by hand."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy_net import (
    NumpyNet,
    images,
    paths,
    randomized,
)

from quantnet_jax import models
from quantnet_jax.core.qtensor import QTensor, dequantize
from quantnet_jax.models.layers import subsample_pad
from quantnet_jax.models.norm import BatchNorm
from quantnet_jax.models.resnet import Bottleneck, ResNet, cifar_resnet, imagenet_resnet


def shapes(model, size=32, channels=3):
    x = jnp.zeros((2, size, size, channels))
    return jax.eval_shape(model.init, jax.random.key(0), x)


def count(model, channels=3):
    params = shapes(model, channels=channels)["params"]
    return sum(x.size for x in jax.tree.leaves(params))


# ---------------------------------------------------------------- sizes and names


@pytest.mark.parametrize(
    ("name", "classes", "params"),
    [
        # stem 108, two 3x3 convolutions 2 * 144, BatchNorm 3 * 8, head 4 * 10 + 10
        ("small", 10, 470),
        # Published sizes; 269,722 is also what the sum by hand below gives.
        ("resnet20", 10, 269_722),
        ("resnet32", 10, 464_154),
        ("resnet44", 10, 658_586),
        ("resnet56", 10, 853_018),
        ("resnet110", 10, 1_727_962),
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
    ],
)
def test_parameter_counts(name, classes, params):
    assert count(models.create(name, outputs=classes)) == params


@pytest.mark.parametrize(("shortcut", "channels"), [("A", 3), ("B", 1)])
@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet20"])
def test_parameter_count_by_hand(name, shortcut, channels):
    n, w, classes = (int(name[6:]) - 2) // 6, 5, 7
    total = 9 * channels * w + 2 * w + 4 * w * classes + classes
    for cin, cout in ((w, w), (w, 2 * w), (2 * w, 4 * w)):
        total += 9 * cin * cout + (2 * n - 1) * 9 * cout * cout + 2 * n * 2 * cout
        if shortcut == "B" and cin != cout:
            total += cin * cout + 2 * cout
    model = models.create(name, outputs=classes, width=w, shortcut=shortcut)
    assert count(model, channels) == total


BLOCK = ["bn1/bias", "bn1/scale", "bn2/bias", "bn2/scale"]
BLOCK += ["conv1/kernel", "conv2/kernel"]
PROJECTION = ["shortcut/kernel", "shortcut_bn/bias", "shortcut_bn/scale"]
ENDS = ["head/bias", "head/kernel", "stem/kernel", "stem_bn/bias", "stem_bn/scale"]


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_golden_parameter_names(shortcut):
    expected = list(ENDS)
    for stage in (1, 2, 3):
        names = BLOCK + (PROJECTION if shortcut == "B" and stage > 1 else [])
        expected += [f"stage{stage}_block0/{name}" for name in names]
    found = shapes(models.create("resnet8", outputs=10, shortcut=shortcut))["params"]
    assert sorted(paths(found)) == sorted(expected)


@pytest.mark.parametrize("zero_init_last", [False, True])
def test_variables_are_float32_and_start_as_documented(zero_init_last):
    model = ResNet(5, (1,), width=24, dtype=jnp.bfloat16, zero_init_last=zero_init_last)
    variables = jax.jit(model.init)(jax.random.key(0), images())
    for path, x in paths(variables).items():
        assert x.dtype == jnp.float32, path
        last = path.endswith("bn2/scale")
        if path.endswith(("bias", "mean")) or (last and zero_init_last):
            assert not x.any(), path
        elif path.endswith(("scale", "var")):
            assert (x == 1).all(), path
    # Kaiming, fan out: the deviation is sqrt(2 / (3 * 3 * output channels)).
    kernel = variables["params"]["stage1_block0"]["conv1"]["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / (9 * 24)) ** 0.5, rel=0.05)
    stem = variables["params"]["stem"]["kernel"]
    assert float(stem.std()) == pytest.approx((2 / (9 * 24)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("pattern_use", [re.search, re.fullmatch])
def test_kernel_conventions(pattern_use):
    model = models.create("resnet8", outputs=10, shortcut="B")
    found = paths(shapes(model)["params"])

    def matched(convention):
        rule = models.kernel_rule(convention)
        return {path for path in found if pattern_use(rule, path)}

    convs = {f"stage{s}_block0/conv{c}/kernel" for s in (1, 2, 3) for c in (1, 2)}
    shortcuts = {f"stage{s}_block0/shortcut/kernel" for s in (2, 3)}
    assert matched("no_shortcut") == convs
    assert matched("inner") == convs | shortcuts
    assert matched("all") == convs | shortcuts | {"stem/kernel", "head/kernel"}
    assert set(models.KERNELS) == {"all", "inner", "no_shortcut"}
    with pytest.raises(ValueError, match="'most', expected one of all, inner, no_sho"):
        models.kernel_rule("most")


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("model", "shape", "numpy_options"),
    [
        (cifar_resnet(8, outputs=3, width=2), (2, 9, 7, 1), {}),
        (
            cifar_resnet(8, outputs=3, width=2, shortcut="B", stem_strides=2),
            (2, 8, 8, 3),
            {"stem_stride": 2},
        ),
        (
            imagenet_resnet(18, outputs=3, width=2),
            (1, 33, 33, 3),
            {"stem_stride": 2, "pool": True},
        ),
        (
            ResNet(3, (1, 2), Bottleneck, width=2, shortcut="B"),
            (2, 7, 7, 2),
            {"bottleneck": True},
        ),
    ],
    ids=["A", "B", "imagenet", "bottleneck"],
)
def test_network_equals_numpy(model, shape, numpy_options):
    x = images(1, shape)
    variables = randomized(model, x)
    expected = NumpyNet(variables)(np.asarray(x, np.float64), **numpy_options)
    logits = jax.jit(model.apply)(variables, x)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_shortcut_a(size):
    x = np.arange(np.prod(size) * 2, dtype=np.float32).reshape(1, *size, 2)
    y = subsample_pad(jnp.asarray(x), 2, 5)
    expected = np.zeros((1, -(-size[0] // 2), -(-size[1] // 2), 5), np.float32)
    for i in range(expected.shape[1]):
        for j in range(expected.shape[2]):
            expected[0, i, j, :2] = x[0, 2 * i, 2 * j]
    np.testing.assert_array_equal(y, expected)
    with pytest.raises(ValueError, match="from 2 to 1 channels; use shortcut 'B'"):
        subsample_pad(jnp.asarray(x), 1, 1)


def test_resnet50_strides_on_the_3x3():
    model = models.create("resnet50", outputs=4, width=2)
    _, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=True),
        shapes(model),
        jnp.zeros((1, 64, 64, 3)),
    )
    block = state["intermediates"]["stage2_block0"]
    sizes = [block[name]["__call__"][0].shape[1] for name in ("conv1", "conv2")]
    assert sizes == [16, 8]


DRAW = ("autoencoder", "edsr", "srresnet")
"""Networks that return images."""


def values_of(outputs):
    return outputs["outputs"], outputs["features"]


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [(name, 28, 1) for name in models.names() if name not in DRAW]
    + [(name, 33, 3) for name in ("small", "resnet8", "resnet18")],
)
def test_any_size_and_channel_count(name, size, channels):
    model = models.create(name, outputs=5, features=True)
    x = jnp.zeros((2, size, size, channels))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    logits, features = values_of(jax.eval_shape(model.apply, variables, x))
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    head = variables["params"]["head"]["kernel"]
    assert features.shape == (2, head.shape[0]) and features.dtype == jnp.float32


def test_mobilenet_equals_numpy():
    """Each depthwise kernel sees one channel; strides 2 keep the even pixels."""
    x = images(1, (2, 9, 7, 3))
    model = models.create("mobilenet", outputs=3, width=2)
    variables = randomized(model, x)
    values = {k: np.asarray(v, np.float64) for k, v in paths(variables).items()}
    at = lambda path: values[f"params/{path}"]

    def bn_relu(y, name):
        mean, var = (values[f"batch_stats/{name}/{s}"] for s in ("mean", "var"))
        y = (y - mean) / np.sqrt(var + 1e-5) * at(f"{name}/scale") + at(f"{name}/bias")
        return np.maximum(y, 0)

    def shifted(y):
        """(9, N, H, W, C): the neighbours of every pixel."""
        rows, cols = y.shape[1:3]
        y = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
        corners = [(i, j) for i in range(3) for j in range(3)]
        return np.stack([y[:, i : i + rows, j : j + cols] for i, j in corners])

    y = shifted(np.asarray(x, np.float64))
    kernel = at("stem/kernel").reshape(9, 3, 2)
    y = bn_relu(sum(a @ k for a, k in zip(y, kernel, strict=True)), "stem_bn")
    for i, (_, strides) in enumerate(model.blocks):  # pyright: ignore
        kernel = at(f"block{i}/depthwise/kernel").reshape(9, -1)
        y = sum(a * k for a, k in zip(shifted(y), kernel, strict=True))
        y = bn_relu(y[:, ::strides, ::strides], f"block{i}/depthwise_bn")
        y = y @ at(f"block{i}/pointwise/kernel")[0, 0]
        y = bn_relu(y, f"block{i}/pointwise_bn")
    expected = y.mean((1, 2)) @ at("head/kernel") + at("head/bias")
    got = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)
    assert y.shape[1:] == (3, 2, 16)


def test_features_are_what_the_head_sees():
    model = models.create("small", outputs=5, features=True)
    variables = randomized(model, images())
    logits, features = values_of(jax.jit(model.apply)(variables, images()))
    head = variables["params"]["head"]
    expected = np.asarray(features) @ np.asarray(head["kernel"]) + head["bias"][None]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert np.asarray(features).std() > 0


@pytest.mark.parametrize("name", ["small", "resnet8"])
def test_bfloat16_computes_close_to_float32(name):
    def train(dtype):
        model = models.create(name, outputs=5, width=4, dtype=dtype)
        variables = randomized(model, images())
        step = jax.jit(lambda v, x: model.apply(v, x, True, mutable="batch_stats"))
        return step(variables, images())

    (low, stats), (full, _) = train("bfloat16"), train("float32")
    assert low.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    scale = float(jnp.abs(full).max())
    assert 0 < float(jnp.abs(low - full).max()) < 0.1 * scale


def test_a_qtensor_may_stand_in_the_place_of_a_kernel():
    model = models.create("small", outputs=5)
    variables = randomized(model, images())

    def binarize(path, w):
        if path[-2].key not in ("conv1", "conv2", "head") or path[-1].key != "kernel":
            return w
        axes = tuple(range(w.ndim - 1))
        return QTensor(
            (w >= 0).astype(jnp.uint8),
            jnp.asarray([-1.0, 1.0]),
            jnp.abs(w).mean(axes, keepdims=True),
        )

    params = jax.tree_util.tree_map_with_path(binarize, variables["params"])
    floats = jax.tree.map(dequantize, params, is_leaf=lambda x: isinstance(x, QTensor))
    one = jax.jit(model.apply)(variables | {"params": params}, images())
    two = jax.jit(model.apply)(variables | {"params": floats}, images())
    assert not jnp.allclose(one, jax.jit(model.apply)(variables, images()), atol=1e-3)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- BatchNorm


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_batchnorm_statistics(momentum):
    x = images(3, (4, 3, 3, 2)) * 2 + 1
    norm = BatchNorm(momentum=momentum)
    variables = norm.init(jax.random.key(0), x, False)
    y, new = norm.apply(variables, x, True, mutable="batch_stats")
    mean = np.asarray(x, np.float64).mean((0, 1, 2))
    var = np.asarray(x, np.float64).var((0, 1, 2))
    expected = (np.asarray(x) - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    stats, share = new["batch_stats"], 1 - momentum
    np.testing.assert_allclose(stats["mean"], share * mean, rtol=1e-4)
    np.testing.assert_allclose(stats["var"], momentum + share * var, rtol=1e-4)
    assert set(variables["params"]) == {"scale", "bias"}


def test_batchnorm_over_devices_is_batchnorm_over_the_whole_batch():
    x = images(4, (8, 8, 8, 3)) + jnp.arange(8.0)[:, None, None, None]
    whole = models.create("resnet8", outputs=5, width=2)
    shared = models.create("resnet8", outputs=5, width=2, axis_name="batch")
    variables = randomized(whole, x)

    def train(model):
        return lambda v, x: model.apply(v, x, True, mutable="batch_stats")

    logits, stats = jax.jit(train(whole))(variables, x)
    spread = jax.pmap(
        train(shared),
        axis_name="batch",
        in_axes=(None, 0),
        out_axes=(0, None),
        devices=jax.devices()[:4],
    )
    p_logits, p_stats = spread(variables, x.reshape(4, 2, 8, 8, 3))
    np.testing.assert_allclose(
        p_logits.reshape(8, 5), np.asarray(logits), rtol=1e-4, atol=1e-4
    )
    for path, value in paths(p_stats).items():
        expected = paths(stats)[path]
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5, err_msg=path)

    # The same program as one jit over a mesh: no axis name, XLA sees the whole batch.
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("batch",))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    m_logits, m_stats = jax.jit(train(whole))(replicated, sharded)
    np.testing.assert_allclose(m_logits, logits, rtol=1e-4, atol=1e-4)
    for path, value in paths(m_stats).items():
        expected = paths(stats)[path]
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5, err_msg=path)


def test_axis_name_is_not_needed_to_init_or_to_evaluate():
    model = models.create("small", outputs=5, axis_name="batch")
    variables = jax.jit(model.init)(jax.random.key(0), images())
    plain = models.create("small", outputs=5)
    expected = jax.jit(plain.apply)(variables, images())
    assert jnp.array_equal(jax.jit(model.apply)(variables, images()), expected)


# ---------------------------------------------------------------- activation hook


class LearnedStep(nn.Module):
    """An activation with a parameter of its own."""

    @nn.compact
    def __call__(self, x):
        size = self.param("size", nn.initializers.ones, (), jnp.float32)
        return jnp.tanh(x * size.astype(x.dtype))


@pytest.mark.parametrize(
    ("model", "sites"),
    [
        (models.create("small", outputs=5, act=LearnedStep), 3),
        (models.create("resnet8", outputs=5, width=2, act=LearnedStep), 7),
        (ResNet(5, (1, 2), Bottleneck, width=2, shortcut="B", act=LearnedStep), 10),
    ],
    ids=["small", "basic", "bottleneck"],
)
def test_every_activation_site_owns_its_parameters(model, sites):
    found = paths(shapes(model)["params"])
    assert sum(path.endswith("/size") for path in found) == sites


@pytest.mark.parametrize("name", ["small", "resnet8"])
def test_the_activation_is_the_one_given(name):
    model = models.create(name, outputs=5, width=2, act=lambda: jnp.zeros_like)
    variables = randomized(model, images())
    logits = jax.jit(model.apply)(variables, images())
    bias = variables["params"]["head"]["bias"]
    if name == "small":  # the residual sum of a block ends in an activation too
        assert jnp.array_equal(logits, jnp.broadcast_to(bias, logits.shape))
    np.testing.assert_array_equal(logits[0], bias)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet-20", {}, ["'resnet-20'", "did you mean 'resnet20'", "resnet110"]),
        ("Small", {}, ["'Small'", "did you mean 'small'"]),
        ("resnet20", {"widht": 8}, ["'widht'", "did you mean 'width'", "shortcut"]),
        ("small", {"shortcut": "B"}, ["'small'", "no option 'shortcut'"]),
        ("resnet20", {"blocks": (1,)}, ["no option 'blocks'"]),
        ("resnet20", {"shortcut": "C"}, ["shortcut='C'", "A, B"]),
        ("resnet20", {"width": 0}, ["width=0", "whole number from 1"]),
        ("resnet20", {"stem_strides": 1.5}, ["stem_strides=1.5", "whole number"]),
        ("resnet20", {"outputs": 0}, ["outputs=0", "whole number from 1"]),
        ("resnet20", {"dtype": "int8"}, ["`dtype` is 'int8'", "bfloat16"]),
        ("resnet20", {"dtype": "float33"}, ["`dtype` is 'float33'", "bfloat16"]),
    ],
)
def test_create_errors_name_the_nearest_choice(name, options, words):
    with pytest.raises(ValueError) as error:
        models.create(name, **({"outputs": 10} | options))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("resnet20", "momentum", 5.0, "a number from 0 and below 1"),
        ("small", "width", 10**6, "a whole number from 1 to 16384"),
        ("autoencoder", "depth", -3, "a whole number from 0 to 1024"),
        ("sparse2d", "depth", 0, "a whole number from 1 to 1024"),
        ("sparse3d", "groups", 5, "a divisor of width=16"),
        ("resnet50", "bi_real", 3, "True or False"),
        ("mobilenet", "stem_strides", 100, "a whole number from 1 to 64"),
    ],
)
def test_create_refuses_what_a_configuration_may_not_set(name, option, value, expected):
    with pytest.raises(ValueError) as error:
        models.create(name, outputs=10, **{option: value})
    message = str(error.value)
    assert re.fullmatch(rf"{option}={value}\b.*, expected {expected}", message)
    with pytest.raises(ValueError) as error:
        models.check_options("model", name, {option: value})
    assert str(error.value) == f"model.{message}"


class Wider(models.Small, kw_only=True):
    """Somebody's own network, with an option that is no plain data."""

    note: "Unknown" = None  # noqa: F821  # pyright: ignore


def test_own_networks_take_numbers_of_any_kind_and_factories():
    made = Wider(outputs=np.int64(3), momentum=np.float32(0.9), note=print)
    assert made.outputs == 3 and made.clone(note=None).momentum == np.float32(0.9)
    with pytest.raises(ValueError, match="^act='relu', expected a factory"):
        Wider(outputs=3, act="relu")
    with pytest.raises(ValueError, match="^momentum=5.0, expected a number from 0"):
        Wider(outputs=3, momentum=np.float64(5))


def test_depths():
    with pytest.raises(ValueError, match=r"`depth` is 21, expected 6n\+2"):
        cifar_resnet(21, outputs=10)
    with pytest.raises(ValueError, match="`depth` is 101, expected one of 18, 34, 50"):
        imagenet_resnet(101, outputs=10)
    assert cifar_resnet(26, outputs=10).blocks == (4, 4, 4)


@pytest.mark.parametrize(
    "x", [jnp.zeros((8, 8, 3)), jnp.zeros((1, 8, 8, 3), jnp.uint8)]
)
@pytest.mark.parametrize("name", ["small", "resnet8"])
def test_images_must_be_floating_nhwc(name, x):
    model = models.create(name, outputs=5)
    with pytest.raises(ValueError, match="images have shape .* expected floating"):
        model.init(jax.random.key(0), x)
