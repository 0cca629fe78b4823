"""Calibrates the ranges of activations at the sites of a network, without training."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax.activations.sites import replace_quantizers
from quantnet_jax.common.limits import check
from quantnet_jax.quantizers.options import SHARE, Share
from quantnet_jax.trees import paths

PyTree = Any


def calibrate_sites(
    apply: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    quantile: Share = 1.0,
) -> PyTree:
    """Sets the clip of each site to what its input reaches while all sites are float.

    For `activations.learned_clip` (`warmup=0`): its parameter c, one per site. The
    quantile 1 takes the maximum over all batches; a smaller one, which clips outliers,
    the mean over the batches of the quantile of |x| in each.

    Args:
      apply: `(params, batch) -> outputs` of a linen network with sites.
      params: of the network, with 'qparams' of each site.
      batches: what `apply` takes.
      quantile: of |x|, above 0, at most 1.

    Returns:
      `params` with new 'qparams'.

    Raises:
      ValueError: there are no batches, or no sites.
    """
    check("quantile", quantile, SHARE)

    reached = _reached(apply, quantile)
    every = [reached(params, batch) for batch in batches]
    if not every or not every[0]:
        missing = "sites" if every else "batches"
        raise ValueError(f"no {missing} to calibrate activations with, expected some")
    over = jnp.max if quantile == 1.0 else jnp.mean
    clips = jax.tree.map(lambda *x: over(jnp.stack(x)), *every)
    found = {}
    for path in paths.flatten(params):
        for site, c in clips.items():
            if f"/{path}".endswith(f"/{site}"):
                found[path] = jnp.where(c > 0.0, c, 1.0)
    return paths.replace(params, found)


@functools.lru_cache(maxsize=8)
def _reached(apply: Callable, quantile: float) -> Callable:
    """`(params, batch) -> {path of a parameter: what |x| reaches at its site}`."""

    @jax.jit
    def reached(params, batch):
        found = {}

        def look(path, x, quantize):
            quantize(x)  # so that the site reads its parameters
            size = jnp.abs(x.astype(jnp.float32))
            largest = jnp.max(size) if quantile == 1.0 else jnp.quantile(size, quantile)
            found[f"{path}/qparams"] = largest
            return x

        with replace_quantizers(look):
            apply(params, batch)
        return found

    return reached
