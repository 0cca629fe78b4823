"""Tests of quantnet_jax.core.qtensor: codes, tables, packing and its invariants."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import normal

from quantnet_jax.core.packing import pack, unpack
from quantnet_jax.core.qtensor import (
    QTensor,
    code_bits,
    dequantize,
    encode,
    is_qtensor,
    lookup,
    trim,
    validate,
)

SIZES = [(7,), (3, 3, 2, 5)]


def random_codes(bits, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8)


def pack_by_hand(codes, bits):
    """One Python integer of all bits, cut into bytes."""
    stream = sum(int(code) << (i * bits) for i, code in enumerate(codes.ravel()))
    return list(stream.to_bytes(-(-codes.size * bits // 8), "little"))


@pytest.mark.parametrize(
    ("bits", "shape"),
    [*itertools.product(range(1, 9), SIZES), (3, ()), (3, (0,)), (5, (2, 0, 3))],
)
def test_packing_against_one_long_integer(bits, shape):
    codes = random_codes(bits, shape)
    packed = pack(jnp.asarray(codes), bits)
    assert packed.dtype == jnp.uint8
    assert packed.tolist() == pack_by_hand(codes, bits)
    back = unpack(packed, bits, shape)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, codes)


def test_one_bit_packing_is_that_of_numpy():
    codes = random_codes(1, (13, 3))
    expected = np.packbits(codes.ravel(), bitorder="little")
    np.testing.assert_array_equal(pack(jnp.asarray(codes), 1), expected)


def test_packing_under_jit_and_vmap():
    codes = jnp.asarray(random_codes(3, (4, 5)))
    one = lambda c: pack(c, 3)
    expected = [pack_by_hand(np.asarray(c), 3) for c in codes]
    packed = jax.jit(jax.vmap(one))(codes)
    assert packed.tolist() == expected
    back = jax.jit(jax.vmap(lambda p: unpack(p, 3, (5,))))(packed)
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_packing_refuses_other_widths(bits):
    with pytest.raises(ValueError, match=f"`bits` is {bits}, expected"):
        pack(jnp.zeros(3, jnp.uint8), bits)
    with pytest.raises(ValueError, match=f"`bits` is {bits}, expected"):
        unpack(jnp.zeros(3, jnp.uint8), bits, (3,))


def test_unpacking_refuses_a_wrong_byte_count():
    with pytest.raises(ValueError, match=r"\(2,\); 7 codes of 3 bits take \(3,\)"):
        unpack(jnp.zeros(2, jnp.uint8), 3, (7,))


@pytest.mark.parametrize("count", [2, 3, 4, 7, 256])
def test_encode_against_brute_force(count):
    rng = np.random.default_rng(count)
    levels = np.sort(rng.normal(size=count)).astype(np.float32)
    x = normal(0, (20, 5)) * 2
    distance = np.abs(x[..., None].astype(np.float64) - levels)
    codes = encode(jnp.asarray(x), jnp.asarray(levels))
    assert codes.dtype == jnp.uint8
    np.testing.assert_array_equal(codes, distance.argmin(-1))


def test_encode_takes_the_upper_level_on_a_midpoint():
    levels = np.asarray([-2.0, -0.5, 0.0, 0.5, 4.0], np.float32)
    midpoints = (levels[1:] + levels[:-1]) / 2
    below = np.nextafter(midpoints, np.float32(-9))
    codes = encode(jnp.asarray([midpoints, below]), jnp.asarray(levels))
    assert codes.tolist() == [[1, 2, 3, 4], [0, 1, 2, 3]]
    zeros = jnp.asarray([0.0, -0.0, -1e-30])
    assert encode(zeros, jnp.asarray([-1.0, 1.0])).tolist() == [1, 1, 0]


def test_encode_under_jit_and_vmap():
    levels = jnp.asarray([-1.0, 0.0, 1.0])
    x = jnp.asarray(normal(0, (3, 4)))
    expected = encode(x, levels)
    np.testing.assert_array_equal(jax.jit(encode)(x, levels), expected)
    batched = jax.vmap(encode, in_axes=(0, None))(x, levels)
    np.testing.assert_array_equal(batched, expected)


def test_dequantize_against_a_loop():
    codes = random_codes(2, (3, 2, 4))
    shared = np.asarray([-1.0, -0.25, 0.5, 3.0], np.float32)
    tables = normal(1, (4, 4))
    scale = np.abs(normal(2, (1, 1, 4)))
    expected, by_channel = np.zeros((2, *codes.shape), np.float32)
    for index in np.ndindex(codes.shape):
        c = index[-1]
        expected[index] = shared[codes[index]] * scale[0, 0, c]
        by_channel[index] = tables[c, codes[index]] * scale[0, 0, c]
    for table, values in ((shared, expected), (tables, by_channel)):
        qt = QTensor(*map(jnp.asarray, (codes, table, scale)))
        validate(qt)
        np.testing.assert_array_equal(dequantize(qt), values)
        np.testing.assert_array_equal(jax.jit(dequantize)(qt), values)
        np.testing.assert_allclose(lookup(qt) * scale, values)
        stack = jax.tree.map(lambda x: jnp.stack([x, x]), qt)
        np.testing.assert_array_equal(jax.vmap(dequantize)(stack)[1], values)


def test_floats_pass_through_dequantize():
    w = jnp.asarray(normal(0, (3,)))
    assert dequantize(w) is w
    assert not is_qtensor(w)


@pytest.mark.parametrize(
    ("levels", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (17, 5), (256, 8)]
)
def test_code_bits(levels, bits):
    qt = QTensor(jnp.zeros((2, 3), jnp.uint8), jnp.zeros(levels), jnp.ones(()))
    assert (qt.bits, code_bits(levels), qt.shape) == (bits, bits, (2, 3))


@pytest.mark.parametrize("abstract", [False, True])
def test_a_tensor_is_like_an_array(abstract):
    codes, levels, scale = (3, 3, 5, 7), (7, 3), (1, 1, 1, 7)
    make = lambda: QTensor(
        jnp.zeros(codes, jnp.uint8), jnp.zeros(levels), jnp.zeros(scale)
    )
    qt = jax.eval_shape(make) if abstract else make()
    assert (qt.shape, qt.ndim, qt.size) == (codes, 4, 315)
    assert qt.dtype == jax.eval_shape(dequantize, qt).dtype == jnp.float32
    assert qt.nbytes == 79 + 4 * 21 + 4 * 7  # 315 codes of 2 bits in 79 bytes
    if not abstract:
        packed = pack(qt.codes, qt.bits)
        assert qt.nbytes == packed.nbytes + qt.levels.nbytes + qt.scale.nbytes


def good():
    codes = jnp.asarray(random_codes(1, (3, 4)))
    return QTensor(codes, jnp.asarray([-1.0, 1.0]), jnp.ones((1, 4)))


@pytest.mark.parametrize(
    ("levels", "scale"),
    [((2,), ()), ((2,), (1, 1)), ((4, 3), (3, 1)), ((256,), (3, 4))],
)
def test_validate_returns_what_is_right(levels, scale):
    qt = QTensor(good().codes, jnp.ones(levels), jnp.ones(scale))
    assert validate(qt) is qt


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("codes", jnp.zeros((3, 4), jnp.int32), "codes are int32, expected uint8"),
        ("codes", jnp.full((3, 4), 2, jnp.uint8), "code 2 is outside the table of 2"),
        ("levels", jnp.zeros(1), r"levels have shape \(1,\)"),
        ("levels", jnp.zeros(257), r"levels have shape \(257,\)"),
        ("levels", jnp.zeros((3, 2)), r"levels have shape \(3, 2\)"),
        ("levels", jnp.zeros((2, 4, 2)), r"levels have shape \(2, 4, 2\)"),
        ("levels", jnp.asarray([0.0, jnp.inf]), "levels must be finite"),
        ("levels", jnp.zeros(2, jnp.bfloat16), "levels must be .* got bfloat16"),
        ("scale", jnp.asarray(jnp.nan), "scale must be finite"),
        ("scale", jnp.ones((), jnp.int32), "scale must be .* got int32"),
        ("scale", jnp.ones(4), r"scale of shape \(4,\) does not broadcast"),
        ("scale", jnp.ones((4, 1)), r"scale of shape \(4, 1\) does not broadcast"),
    ],
)
def test_validate_names_what_is_wrong(field, value, message):
    fields = {"codes": good().codes, "levels": good().levels, "scale": good().scale}
    with pytest.raises(ValueError, match=f"^conv/kernel: {message}") as error:
        validate(QTensor(**fields | {field: value}), "conv/kernel")
    assert "\n" not in str(error.value)


def test_trimming_drops_repeated_levels_where_that_saves_a_bit():
    codes = jnp.asarray([[0, 1, 2], [5, 6, 7]], jnp.uint8)
    scale = jnp.full((1, 3), 0.5)
    repeated = jnp.repeat(jnp.asarray([-2.0, -1.0, 0.0, 1.0]), 2)
    qt = QTensor(codes, repeated, scale)
    made = trim(qt)
    assert (qt.bits, made.bits, made.levels.tolist()) == (3, 2, [-2, -1, 0, 1])
    assert made.nbytes < qt.nbytes and validate(made) is made
    np.testing.assert_array_equal(dequantize(made), dequantize(qt))
    once = QTensor(codes, repeated.at[1].set(-1.9), scale)  # five levels are 3 bits
    constant = QTensor(codes, jnp.zeros(8), scale)  # one level is no table
    table = QTensor(codes, jnp.stack([repeated] * 3), scale)
    for same in (once, constant, table):
        assert trim(same) is same
