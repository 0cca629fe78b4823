"""Products of signs by bit counts against float convolutions, exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import binary_qtensor, with_zeros

from quantnet_jax import ops
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.ops import popcount

pytestmark = pytest.mark.optimized

PAD1 = ((1, 1), (1, 1))


def signs(x):
    return jnp.where(x >= 0, 1.0, -1.0).astype(jnp.float32)


@pytest.mark.parametrize("channels", [1, 3, 31, 32, 33, 64])
def test_words_hold_the_signs(channels):
    x = with_zeros(0, (2, 3, channels))
    words = np.asarray(popcount.pack_signs(jnp.asarray(x)))
    assert words.dtype == np.uint32 and words.shape == (2, 3, -(-channels // 32))
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    assert (bits[..., :channels] == (x >= 0)).all() and not bits[..., channels:].any()


def test_sign_of_both_zeros_is_plus_one():
    x = jnp.asarray([0.0, -0.0, -1e-30, jnp.nan], jnp.float32)
    assert popcount.pack_signs(x).tolist() == [0b0011]


@pytest.mark.parametrize("shape", [(3, 3, 33, 5), (64, 2), (1, 1, 1, 1)])
def test_words_of_a_kernel_lie_along_the_input_channels(shape):
    codes = np.asarray(binary_qtensor(shape).codes)
    words = np.asarray(popcount.pack_kernel(jnp.asarray(codes)))
    assert words.shape == (*shape[:-2], -(-shape[-2] // 32), shape[-1])
    for k in range(shape[-2]):
        assert (words[..., k // 32, :] >> (k % 32) & 1 == codes[..., k, :]).all()


@pytest.mark.parametrize(
    ("image", "channels", "kernel", "strides", "padding", "outputs"),
    [
        # As models.layers.Conv pads.
        ((2, 6, 5), 1, (3, 3), 1, PAD1, 4),
        ((2, 6, 5), 3, (3, 3), 2, PAD1, 4),
        ((1, 7, 7), 16, (3, 3), 2, PAD1, 9),
        ((1, 5, 6), 31, (3, 3), 1, PAD1, 8),
        ((2, 6, 6), 32, (3, 3), 2, PAD1, 8),
        ((1, 4, 4), 33, (3, 3), 1, PAD1, 3),
        ((1, 4, 5), 64, (3, 3), 1, PAD1, 16),
        ((2, 5, 5), 64, (1, 1), 2, ((0, 0), (0, 0)), 8),
        ((2, 3, 3), 33, (1, 1), 1, ((0, 0), (0, 0)), 1),
        # As a user may.
        ((1, 6, 7), 5, (2, 3), (2, 1), "SAME", 4),
        ((1, 7, 6), 40, (3, 3), (1, 2), "VALID", 4),
        ((1, 4, 4), 8, (2, 3), (1, 3), ((2, 0), (0, 3)), 4),  # windows in the padding
        ((1, 1, 1), 32, (3, 3), 1, PAD1, 4),
        # In blocks: 45 words for each pixel, then 18 of many output channels.
        ((2, 3, 4), 150, (3, 3), 2, PAD1, 3),
        ((1, 4, 3), 150, (3, 3), 1, "VALID", 2),
        ((1, 2, 2), 64, (3, 3), 1, PAD1, 600),
    ],
)
def test_convolution_equals_the_float_one(
    image, channels, kernel, strides, padding, outputs
):
    x = with_zeros(1, (*image, channels))
    qt = binary_qtensor(
        (*kernel, channels, outputs), scale=with_zeros(2, (1, 1, 1, outputs))
    )
    check(popcount.binary_conv2d, ops.conv2d, x, qt, strides=strides, padding=padding)


def check(product, reference, x, qt, **options):
    """Sums and scaled sums of a product equal those of the float one bit for bit."""

    @jax.jit  # one compilation for all
    def run(x, qt, words):
        scale = qt.scale.reshape(-1)
        sums = product(x, words, **options)
        scaled = product(x, words, scale=scale, **options)
        ones = QTensor(qt.codes, qt.levels, jnp.ones((), jnp.float32))
        expected = (reference(signs(x), w, **options) for w in (ones, qt))
        return (sums, scaled), tuple(expected)

    (sums, scaled), expected = run(x, qt, popcount.pack_kernel(qt.codes))
    assert sums.dtype == jnp.int32 and scaled.dtype == jnp.float32
    np.testing.assert_array_equal(sums, expected[0])
    np.testing.assert_array_equal(scaled, expected[1])


@pytest.mark.parametrize(
    ("batch", "channels"),
    [((4,), 1), ((), 3), ((2, 3), 16), ((4,), 31), ((4,), 32), ((1,), 33), ((2,), 600)],
)
def test_dense_equals_the_float_one(batch, channels):
    qt = binary_qtensor((channels, 5), scale=with_zeros(4, (1, 5)))
    x = with_zeros(3, (*batch, channels))
    check(popcount.binary_dense, ops.dense, x, qt)


def test_no_image_at_all():
    words = popcount.pack_kernel(np.ones((3, 3, 40, 5), np.uint8))
    assert popcount.binary_conv2d(jnp.zeros((0, 7, 7, 40)), words).shape == (0, 7, 7, 5)
    assert popcount.binary_dense(jnp.zeros((0, 40)), words[0, 0]).shape == (0, 5)


def test_words_and_scales_of_a_qtensor():
    qt = binary_qtensor((3, 3, 40, 5), scale=with_zeros(2, (1, 1, 1, 5)))
    words, scale = popcount.pack_qtensor(qt)
    assert words.dtype == jnp.uint32 and words.shape == (3, 3, 2, 5)
    assert (scale == qt.scale.reshape(-1)).all()
    single = popcount.pack_qtensor(binary_qtensor((40, 5)))[1]
    assert single.tolist() == [1.0] * 5


def test_bfloat16_activations_give_exact_sums_and_round_once():
    x = jnp.ones((1, 3, 3, 70), jnp.bfloat16)
    qt = binary_qtensor((3, 3, 70, 4))
    qt = dataclasses.replace(qt, codes=qt.codes.at[..., 1:].set(1))
    expected = ops.conv2d(signs(x.astype(jnp.float32)), qt)
    third = jnp.full((4,), 1 / 3, jnp.float32)
    product = jax.jit(popcount.binary_conv2d)
    y = product(x, popcount.pack_kernel(qt.codes), scale=third)
    assert y.dtype == jnp.bfloat16 and abs(expected).max() > 256  # no bfloat16 sum
    wanted = (expected * third[None, None, None]).astype(jnp.bfloat16)
    assert jnp.array_equal(y, wanted)


X, W = jnp.zeros((1, 4, 4, 33)), jnp.zeros((3, 3, 2, 5), jnp.uint32)


@pytest.mark.parametrize(
    ("x", "words", "options", "text"),
    [
        (X[0], W, {}, ["(4, 4, 33)", "(N, H, W, Cin)"]),
        (X, W[:, :, :1], {}, ["(1, 4, 4, 33)", "(3, 3, 1, 5)"]),
        (X[..., :32], W, {}, ["(3, 3, 2, 5)"]),
        (X[..., :0], W[:, :, :0], {}, ["(1, 4, 4, 0)"]),
        (X.astype(jnp.int32), W, {}, ["int32", "floating"]),
        (X, W.astype(jnp.int32), {}, ["int32", "uint32"]),
        (X, W, {"scale": jnp.ones((4,))}, ["`scale`", "(4,)", "(5,)"]),
        (X, W, {"strides": 0}, ["`strides` is 0"]),
        (X, W, {"strides": (1, 1, 1)}, ["(1, 1, 1)"]),
        (X, W, {"padding": "FULL"}, ["`padding` is 'FULL'", "'SAME'"]),
        (X, W, {"padding": ((1, 1),)}, ["`padding` is ((1, 1),)"]),
        (X, W, {"padding": ((-1, 1), (1, 1))}, ["`padding`"]),
        (X, W, {"padding": 1}, ["`padding` is 1"]),
        (X[:, :2], W, {"padding": "VALID"}, ["(3, 3)", "(2, 4)", "'VALID'"]),
    ],
)
def test_refuses_what_does_not_fit(x, words, options, text):
    with pytest.raises(ValueError) as error:
        popcount.binary_conv2d(x, words, **options)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in text)


def test_dense_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\(3, 33\).*\(1, 5\).*ceil\(Cin / 32\)"):
        popcount.binary_dense(jnp.ones((3, 33)), jnp.zeros((1, 5), jnp.uint32))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"levels": [0.0, 1.0]}, r"`levels`.*expected \[-1, 1\]"),
        ({"levels": [-1.0, 0.0, 1.0]}, "`levels`"),
        ({"scale": np.ones((1, 1, 4, 1), np.float32)}, r"`scale`.*\(1, 1, 4, 1\)"),
    ],
)
def test_packs_only_binary_weights_with_a_scale_per_output(change, text):
    qt = binary_qtensor((3, 3, 4, 2))
    fields = {"codes": qt.codes, "levels": qt.levels, "scale": qt.scale}
    for name, value in change.items():
        fields[name] = jnp.asarray(value, jnp.float32)
    with pytest.raises(ValueError, match=text):
        popcount.pack_qtensor(QTensor(**fields))
