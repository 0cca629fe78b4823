"""A Pallas kernel for GPUs: counts the bits in which pixels and weights differ.

Written for the Triton backend. Tested step by step in interpret mode, and lowered for
CUDA down to Triton's code; it has been run on no GPU, so nothing is known of its speed
there. Nothing chooses it unless it is asked for. JAX 0.11 announces that Pallas will
lose this backend, with a warning where the kernel is lowered.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

ROWS, COLUMNS = 64, 64
"""Pixels and output channels of one program; powers of two, as Triton wants them."""


def count(
    pixels: jax.Array, words: jax.Array, masks: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """For each pixel and channel, the sum over k of the bits that count and differ.

    Args:
      pixels: uint32[P, T].
      words: uint32[T, C].
      masks: uint32[P, T]; a bit counts where it is 1.
      interpret: run step by step, on any device.

    Returns:
      int32[P, C], sum over k of popcount((pixels[:, k] ^ words[k]) & masks[:, k]).
    """
    (size, total), channels = pixels.shape, words.shape[1]
    pixels, masks = (_fill(x, 0, ROWS) for x in (pixels, masks))
    words = _fill(words, 1, COLUMNS)
    rows, columns = pixels.shape[0], words.shape[1]
    counts = pl.pallas_call(
        _kernel,
        grid=(rows // ROWS, columns // COLUMNS),
        in_specs=[
            pl.BlockSpec((ROWS, total), lambda i, j: (i, 0)),
            pl.BlockSpec((total, COLUMNS), lambda i, j: (0, j)),
            pl.BlockSpec((ROWS, total), lambda i, j: (i, 0)),
        ],
        out_specs=pl.BlockSpec((ROWS, COLUMNS), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((rows, columns), jnp.int32),
        # These parameters also choose Triton over the other backend for GPUs.
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=interpret,
    )(pixels, words, masks)
    return counts[:size, :channels]


def _kernel(pixels, words, masks, out):
    """One tile of the counts: a loop over the words, one outer XOR in each turn."""

    def add(k, total):
        at = pl.ds(k, 1)
        different = (pixels[:, at] ^ words[at, :]) & masks[:, at]
        return total + lax.population_count(different)

    start = jnp.zeros((ROWS, COLUMNS), jnp.int32)
    out[...] = lax.fori_loop(0, pixels.shape[1], add, start)


def _fill(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """`x` as int32 (Triton counts the bits of signed words), zeros up to a multiple."""
    pads = [(0, 0), (0, 0)]
    pads[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(lax.bitcast_convert_type(x, jnp.int32), pads)
