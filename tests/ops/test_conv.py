"""Tests of quantnet_jax.ops.products against loops in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantnet_jax import ops
from quantnet_jax.core.qtensor import QTensor, dequantize


def numpy_conv(x, w, strides, padding, groups):
    """Convolution by its definition: one output number at a time, in float64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    n, kh, kw, cin, cout = x.shape[0], *w.shape
    pads = []
    for size, k, s, axis in zip(x.shape[1:3], (kh, kw), strides, (0, 1), strict=True):
        if padding == "VALID":
            pads.append((0, 0))
        elif padding == "SAME":
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads.append((total // 2, total - total // 2))
        else:
            pads.append(padding[axis])
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    out = [
        (size - k) // s + 1
        for size, k, s in zip(x.shape[1:3], (kh, kw), strides, strict=True)
    ]
    y = np.zeros((n, *out, cout))
    for b, i, j, o in itertools.product(*map(range, y.shape)):
        group = o // (cout // groups)
        patch = x[
            b,
            i * strides[0] : i * strides[0] + kh,
            j * strides[1] : j * strides[1] + kw,
            group * cin : (group + 1) * cin,
        ]
        y[b, i, j, o] = (patch * w[..., o]).sum()
    return y


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_qtensor(shape, scale_shape, levels=(-1.0, 1.0), seed=0):
    rng = np.random.default_rng(seed)
    return QTensor(
        codes=jnp.asarray(rng.integers(0, len(levels), shape), jnp.uint8),
        levels=jnp.asarray(levels, jnp.float32),
        scale=jnp.asarray(rng.uniform(0.1, 2.0, scale_shape), jnp.float32),
    )


CHEAPER = [  # shape of x, of w, strides, padding, groups
    ((19, 6, 7, 4), (3, 3, 1, 4), (1, 1), "SAME", 4),
    ((5, 7, 6, 4), (3, 2, 1, 8), (2, 1), "SAME", 4),
    ((9, 7, 7, 3), (5, 5, 1, 3), (2, 2), ((2, 3), (1, 2)), 3),
    ((4, 6, 6, 4), (1, 1, 1, 4), (2, 2), "VALID", 4),
    ((4, 5, 6, 3), (1, 1, 3, 5), (1, 1), "SAME", 1),
    ((4, 5, 6, 3), (1, 1, 3, 5), (2, 2), "VALID", 1),
    ((67, 5, 6, 2), (3, 3, 2, 3), (2, 1), "SAME", 1),
]


def loss_of(conv):
    """Gradients of a product with the output, by x and w."""
    return lambda x, w, y: jax.grad(
        lambda x, w: jnp.vdot(conv(x, w), y), argnums=(0, 1)
    )(x, w)


@pytest.mark.parametrize("case", CHEAPER, ids=str)
def test_cheaper_derivatives_are_those_of_the_convolution(case):
    shape, kernel, strides, padding, groups = case
    x, w = normal(0, shape), normal(1, kernel)
    ours = lambda x, w: ops.conv2d(
        x, w, strides=strides, padding=padding, groups=groups
    )
    xla = lambda x, w: jax.lax.conv_general_dilated(
        x, w, strides, padding, None, None, ("NHWC", "HWIO", "NHWC"), groups
    )
    np.testing.assert_array_equal(ours(x, w), xla(x, w))
    y, pull = jax.vjp(ours, x, w)
    np.testing.assert_allclose(y, xla(x, w), atol=2e-5)
    ct = normal(2, y.shape)
    for mine, theirs in zip(pull(ct), loss_of(xla)(x, w, ct), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("case", "on_cpus"), [(1, 0), (-1, 1 + 4)])
def test_programs_of_accelerators_are_unchanged(case, on_cpus):
    shape, kernel, strides, padding, groups = CHEAPER[case]
    given = [jnp.asarray(normal(i, s)) for i, s in enumerate((shape, kernel))]
    ours = lambda x, w: ops.conv2d(
        x, w, strides=strides, padding=padding, groups=groups
    )
    y = ours(*given)
    program = lambda platform: jax.export.export(
        jax.jit(loss_of(ours)), platforms=[platform]
    )(*given, y).mlir_module()  # fmt: skip
    assert program("cpu").count("stablehlo.convolution") == on_cpus
    assert program("tpu").count("stablehlo.convolution") == 2


@pytest.mark.parametrize(
    ("strides", "padding", "groups", "kernel"),
    [
        ((1, 1), "SAME", 1, (3, 3)),
        ((2, 2), "SAME", 1, (3, 3)),
        ((2, 1), "VALID", 1, (3, 2)),
        ((2, 2), ((1, 1), (1, 1)), 1, (3, 3)),
        ((1, 3), ((2, 0), (0, 1)), 2, (2, 3)),
        ((1, 1), "SAME", 4, (3, 3)),
        ((2, 2), "VALID", 2, (1, 1)),
    ],
)
def test_conv2d_is_the_definition(strides, padding, groups, kernel):
    x, w = normal(0, (2, 6, 5, 4)), normal(1, (*kernel, 4 // groups, 8))
    y = ops.conv2d(
        jnp.asarray(x), jnp.asarray(w), strides=strides, padding=padding, groups=groups
    )
    expected = numpy_conv(x, w, strides, padding, groups)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_integer_stride_and_list_padding():
    x, w = jnp.asarray(normal(0, (1, 7, 7, 2))), jnp.asarray(normal(1, (3, 3, 2, 2)))
    y = ops.conv2d(x, w, strides=2, padding=[[1, 1], [1, 1]])
    expected = numpy_conv(x, w, (2, 2), ((1, 1), (1, 1)), 1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("levels", "groups"), [((-1.0, 1.0), 1), ((-1.0, -0.25, 0.5, 1.0), 2)]
)
@pytest.mark.parametrize(
    "scale", [(), (1, 1, 1, 1), (1, 1, 1, 6), (1, 1, 2, 1), (3, 3, 1, 6)]
)
def test_conv2d_of_qtensor_equals_dequantized(scale, levels, groups):
    qt = random_qtensor((3, 3, 2, 6), scale, levels)
    x = normal(2, (2, 5, 4, 2 * groups))
    y = ops.conv2d(jnp.asarray(x), qt, strides=2, groups=groups)
    expected = numpy_conv(x, dequantize(qt), (2, 2), "SAME", groups)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [(), (1, 6), (5, 1)])
def test_dense_of_qtensor_equals_dequantized(scale):
    qt = random_qtensor((5, 6), scale)
    x = normal(3, (2, 3, 5))
    y = ops.dense(jnp.asarray(x), qt)
    expected = x.astype(np.float64) @ np.asarray(dequantize(qt), np.float64)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    floats = ops.dense(jnp.asarray(x), dequantize(qt))
    np.testing.assert_allclose(floats, expected, rtol=1e-5, atol=1e-5)


def test_scale_per_output_channel_stays_float32_in_a_bfloat16_net():
    # Sums of small integers are exact in bfloat16; only the scaled sum is rounded.
    qt = random_qtensor((3, 3, 2, 6), (1, 1, 1, 6))
    x = np.random.default_rng(0).integers(-2, 3, (2, 4, 4, 2))
    y = ops.conv2d(jnp.asarray(x, jnp.bfloat16), qt)
    sums = numpy_conv(x, qt.levels[qt.codes], (1, 1), "SAME", 1)
    scaled = jnp.asarray(sums.astype(np.float32) * np.asarray(qt.scale))
    assert y.dtype == jnp.bfloat16
    assert jnp.array_equal(y, scaled.astype(jnp.bfloat16))


def test_bfloat16_products_are_not_summed_in_bfloat16():
    x, w = jnp.ones((1, 1, 1, 2048), jnp.bfloat16), jnp.ones((1, 1, 2048, 1))
    # A running sum in bfloat16 (8 bits) would stop at 256.
    assert float(ops.conv2d(x, w)[0, 0, 0, 0]) == 2048.0
    assert float(ops.dense(x, w[0, 0])[0, 0, 0, 0]) == 2048.0


def test_gradient_with_respect_to_x_through_a_qtensor():
    qt = random_qtensor((3, 3, 2, 4), (1, 1, 1, 4))
    x = jnp.asarray(normal(4, (1, 5, 5, 2)))
    one = jax.grad(lambda x: (ops.conv2d(x, qt) ** 2).sum())(x)
    two = jax.grad(lambda x: (ops.conv2d(x, dequantize(qt)) ** 2).sum())(x)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_jit_takes_a_qtensor():
    qt = random_qtensor((3, 3, 2, 4), (1, 1, 1, 4))
    x = jnp.asarray(normal(5, (1, 5, 5, 2)))
    np.testing.assert_allclose(
        jax.jit(ops.conv2d)(x, qt), ops.conv2d(x, qt), rtol=1e-6, atol=1e-6
    )


X, W = jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 4))


@pytest.mark.parametrize(
    ("x", "w", "options", "words"),
    [
        (X[0], W, {}, ["(4, 4, 2)", "rank 4"]),
        (X, W[0], {}, ["(3, 2, 4)", "rank 4"]),
        (X, W[:, :, :1], {}, ["`groups` is 1", "(1, 4, 4, 2)", "(3, 3, 1, 4)"]),
        (X, W, {"groups": 2}, ["`groups` is 2"]),
        (X, W[:, :, :1, :3], {"groups": 2}, ["`groups` is 2", "(3, 3, 1, 3)"]),
        (X, W, {"groups": 0}, ["`groups` is 0"]),
        (X.astype(jnp.int32), W, {}, ["int32", "floating"]),
        (X, W, {"strides": 0}, ["`strides` is 0"]),
        (X, W, {"strides": (1, 1, 1)}, ["`strides` is (1, 1, 1)"]),
        (X, W, {"padding": "FULL"}, ["'FULL'", "'SAME'", "'VALID'"]),
        (X, W, {"padding": (1, 1)}, ["`padding` is (1, 1)"]),
        (X, W, {"padding": ((1, 1), (-1, 1))}, ["`padding` is ((1, 1), (-1, 1))"]),
    ],
)
def test_conv2d_errors_say_what_is_wrong(x, w, options, words):
    with pytest.raises(ValueError) as error:
        ops.conv2d(x, w, **options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("shapes", [((2, 3), (4, 5)), ((2, 3), (3,)), ((), (3, 4))])
def test_dense_errors_name_the_shapes(shapes):
    with pytest.raises(ValueError) as error:
        ops.dense(jnp.zeros(shapes[0]), jnp.zeros(shapes[1]))
    assert str(shapes[0]) in str(error.value) and str(shapes[1]) in str(error.value)
