"""Superposed levels: which there are, rounding, and the search, against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from util import normal

from quantnet_jax.core import superposed

pytestmark = pytest.mark.optimized


def value_by_hand(layout, code, bits):
    """Bit by bit, as a shift-and-add unit reads a code."""
    total, rest = 0.0, code & (2 ** (bits - 1) - 1)
    for field in layout.fields:
        width = {1: 1, 3: 2, 7: 3, 15: 4}[len(field)]
        number, rest = rest & (2**width - 1), rest >> width
        if number:
            total += 2.0 ** -field[number - 1]
    return -total if code >> (bits - 1) else total


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_mean_what_their_fields_say(bits):
    found = superposed.layouts(bits)
    assert len(set(found)) == len(found)
    for layout in found:
        assert layout.bits == bits
        levels = superposed.levels(layout)
        by_hand = [value_by_hand(layout, c, bits) for c in range(2**bits)]
        np.testing.assert_array_equal(levels, np.asarray(by_hand, np.float32))
        assert len(set(by_hand)) == 2**bits - 1  # none is wasted but minus zero
    # Fields of one bit: a uniform grid; one field: powers of two.
    step = 2.0 ** -(bits - 2)
    grids = [np.sort(superposed.magnitudes(x)) / step for x in found]
    assert any((g == np.arange(2 ** (bits - 1))).all() for g in grids)
    single = [x for x in found if len(x.fields) == 1]
    assert bool(single) == (bits <= 5)


def test_widths_without_a_layout_are_refused():
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"bits={bits}"):
            superposed.layouts(bits)


def nearest_by_hand(w, layout, scale):
    levels = superposed.levels(layout).astype(np.float64) * scale
    return levels[np.abs(w.reshape(-1, 1) - levels).argmin(1)].reshape(w.shape)


def test_rounding_is_to_the_nearest_level_and_saturates():
    w = np.concatenate([normal(0, (200,)), [0.0, -0.0, 1e-30, -1e-30, 50.0, -50.0]])
    for layout in superposed.layouts(4):
        table = jnp.asarray(superposed.magnitudes(layout))
        codes = np.asarray(superposed.encode(jnp.asarray(w, jnp.float32), table))
        assert codes.dtype == np.uint8 and 8 not in codes  # no minus zero
        got = superposed.levels(layout)[codes]
        np.testing.assert_allclose(
            np.abs(w - got), np.abs(w - nearest_by_hand(w, layout, 1.0)), atol=1e-6
        )
        assert got[-2] == table.max() and got[-1] == -table.max()


@pytest.mark.parametrize("bits", [3, 5])
def test_search_finds_the_least_error(bits):
    """No layout, at any of many ranges, is much better; the errors add up."""
    shapes = {
        "normal": normal(0, (20, 25)).astype(np.float64),
        "tails": np.random.default_rng(1).standard_t(2, 500),
        "even": np.linspace(-1, 1, 500),
    }
    run, chosen = jax.jit(lambda w: superposed.search(w, bits)), {}
    for name, w in shapes.items():
        found = run(jnp.asarray(w.reshape(20, 25), jnp.float32))
        layout = superposed.layouts(bits)[int(found.index)]
        error = lambda x, s, w=w: np.mean((w - nearest_by_hand(w, x, s)) ** 2)
        own = error(layout, float(found.scale))
        both = float(found.clip_error + found.round_error)
        assert both == pytest.approx(own, rel=1e-3)
        edge = float(found.scale) * superposed.magnitudes(layout).max()
        clipped = np.where(np.abs(w) > edge, (np.abs(w) - edge) ** 2, 0).mean()
        assert float(found.clip_error) == pytest.approx(clipped, rel=1e-3, abs=1e-9)
        tried = [
            error(x, part * np.abs(w).max() / superposed.magnitudes(x).max())
            for x in superposed.layouts(bits)
            for part in np.geomspace(0.1, 1, 20)
        ]
        assert own <= min(tried) * 1.01, name
        chosen[name] = layout
    uniform = [x for x in superposed.layouts(bits) if {len(f) for f in x.fields} == {1}]
    assert chosen["even"] in uniform and chosen["tails"] not in uniform
    assert len(set(itertools.chain(*chosen["even"].fields))) == bits - 1


def test_search_of_large_or_empty_of_meaning():
    """A sketch stands for many weights; zeros are no error."""
    w = normal(0, (100, 100))
    run = jax.jit(lambda w: superposed.search(w, 4))
    found = run(jnp.asarray(w))
    layout = superposed.layouts(4)[int(found.index)]
    error = np.mean((w - nearest_by_hand(w, layout, float(found.scale))) ** 2)
    assert float(found.clip_error + found.round_error) == pytest.approx(error, rel=0.05)
    for x in run(jnp.zeros((3, 3))):
        assert np.isfinite(x)
