"""Products counted in traces: against XLA's count, and followed to their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from quantnet_jax.trees import macs


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def at_w(fn):
    """`fn(w, x)` as a function of a tree and `x`."""
    return lambda params, x: fn(params["w"], x)


def flops(fn, *args):
    """Products that XLA counts in a function that is one product."""
    return jax.jit(fn).lower(*args).cost_analysis()["flops"] / 2


def conv(**options):
    fields = {"window_strides": (1, 1), "padding": "VALID"} | options
    layout = ("NHWC", "HWIO", "NHWC")
    return lambda w, x: lax.conv_general_dilated(
        x, w, dimension_numbers=layout, **fields
    )


@pytest.mark.parametrize(
    "fn, w, x",
    [
        (lambda w, x: x @ w, (5, 7), (2, 3, 5)),
        (lambda w, x: jnp.einsum("hij,bhj->bhi", w, x), (3, 4, 5), (2, 3, 5)),
        (lambda w, x: jnp.einsum("kij,bij->bk", w, x), (3, 4, 5), (2, 4, 5)),
        (conv(), (3, 2, 4, 6), (2, 8, 9, 4)),
        (conv(window_strides=(2, 3)), (3, 2, 4, 6), (2, 8, 9, 4)),
        (conv(rhs_dilation=(2, 1)), (3, 2, 4, 6), (2, 8, 9, 4)),
        (conv(feature_group_count=4), (3, 3, 1, 8), (2, 8, 9, 4)),
        (conv(feature_group_count=2), (3, 3, 2, 8), (2, 8, 9, 4)),
        (conv(batch_group_count=2), (3, 3, 4, 6), (4, 8, 9, 4)),
        (
            conv(lhs_dilation=(2, 3), padding=((0, 0), (0, 0))),
            (3, 4, 4, 6),
            (1, 4, 5, 4),
        ),
    ],
)
def test_products_are_those_that_xla_counts(fn, w, x):
    w, x = shape(*w), shape(*x)
    (use,) = [use for use in macs.count(at_w(fn), {"w": w}, x) if use.macs]
    assert use.macs == flops(fn, w, x) > 0
    assert use.params == {"w"}
    # A transposition may follow.
    assert sorted(use.shape) == sorted(jax.eval_shape(fn, w, x).shape)


def test_padding_counts_and_inserted_zeros_do_not():
    padded = macs.count(conv(padding="SAME"), shape(3, 3, 4, 6), shape(1, 8, 8, 4))
    assert sum(use.macs for use in padded) == 8 * 8 * 9 * 4 * 6
    # Every pixel of the input meets every weight once.
    up = lambda w, x: lax.conv_transpose(x, w, (2, 2), "SAME")
    transposed = macs.count(up, shape(2, 2, 4, 6), shape(1, 8, 8, 4))
    assert sum(use.macs for use in transposed) == 8 * 8 * 4 * 4 * 6


@jax.custom_vjp
def with_vjp(w, x):
    return x @ w


with_vjp.defvjp(lambda w, x: (x @ w, None), lambda r, g: (g, g))


@jax.custom_jvp
def with_jvp(w, x):
    return x @ w


with_jvp.defjvps(None, None)


def scanned(w, x):
    """The weights are carried: what they come from is known after a second look."""
    step = lambda carry, _: ((carry[1], carry[1], carry[2] @ carry[0]), None)
    return lax.scan(step, (TABLE, w, x), None, length=3)[0][2]


TABLE = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    "fn, products",
    [
        (jax.jit(lambda w, x: x @ w), {"w": 16}),
        (jax.checkpoint(lambda w, x: x @ w), {"w": 16}),
        (with_vjp, {"w": 16}),
        (with_jvp, {"w": 16}),
        (lambda w, x: jax.vmap(lambda x: x @ w)(x), {"w": 16}),
        (lambda w, x: lax.fori_loop(0, 3, lambda i, x: x @ w, x), {"w": 48}),
        (
            lambda w, x: lax.scan(lambda x, w: (x @ w, w), x, jnp.stack([w, w]))[0],
            {"w": 32},
        ),
        (scanned, {"w": 48}),
        (lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x), {"w": 16}),
        (lambda w, x: x @ jnp.where(w > 0, w.T.astype(x.dtype), 0.0), {"w": 16}),
        (lambda w, x: x @ (w / jnp.linalg.norm(w)), {"w": 16}),
        # A product of parameters does not depend on the example.
        (lambda w, x: x @ (w @ w), {"w": 16}),
        (lambda w, x: (x @ w) @ (x @ w).T, {"w": 32, None: 4}),
        (lambda w, x: jax.nn.relu(x @ w) @ TABLE, {"w": 16, None: 16}),
        (lambda w, x: w[jnp.argmax(x)], {}),
    ],
)
def test_values_are_followed_to_their_products(fn, products):
    found = {}
    for use in macs.count(at_w(fn), {"w": shape(4, 4)}, shape(1, 4)):
        (owner,) = use.params or [None]
        if use.macs:
            found[owner] = found.get(owner, 0) + use.macs
    assert found == products


def test_what_cannot_be_counted_is_refused():
    loop = lambda w, x: lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)
    with pytest.raises(ValueError, match="'while' holds products") as error:
        macs.count(loop, shape(4, 4), shape(1, 4))
    assert "\n" not in str(error.value)
    harmless = lambda w, x: lax.while_loop(
        lambda x: x.sum() < 1, lambda x: x + 1, x @ w
    )
    assert macs.count(harmless, shape(4, 4), shape(1, 4))[0].macs == 16
