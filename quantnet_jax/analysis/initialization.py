"""Initializers, what is measured of a layer's weights, and rank correlation.

For the question of Yun and Wong, Where Should We Begin?, arXiv 2011.14578: does the
random start of a network decide how well it can be quantized after training?
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.trees import paths

PyTree = Any

INITIALIZERS: dict[str, Callable] = {
    "he": jax.nn.initializers.he_normal(),
    "glorot": jax.nn.initializers.glorot_uniform(),
    "lecun": jax.nn.initializers.lecun_normal(),
    "orthogonal": jax.nn.initializers.orthogonal(),
    "truncated": jax.nn.initializers.truncated_normal(0.05),
    "scaled": jax.nn.initializers.variance_scaling(18.0, "fan_in", "normal"),
}
"""Name -> `(key, shape, dtype) -> weights`. 'truncated': deviation 0.05 whatever the
layer, cut at two deviations; 'scaled': He times 3."""

STATISTICS = ("range", "kurtosis", "channel_precision")
"""See `layer_statistics`."""


def initialize(params: PyTree, initializer: Callable, key: jax.Array) -> PyTree:
    """`params` with every kernel initialized again; the rest stays."""
    new = {}
    for number, (path, leaf) in enumerate(paths.flatten(params).items()):
        if path.split("/")[-1] == "kernel":
            own = jax.random.fold_in(key, number)
            new[path] = initializer(own, leaf.shape, jnp.float32)
    return paths.replace(params, new)


def layer_statistics(w: np.ndarray) -> dict[str, float]:
    """What is measured of a kernel, whose last axis counts output channels.

    Returns:
      'range': largest less smallest weight; 'kurtosis': fourth moment over the squared
      variance (3 for a normal distribution); 'channel_precision': mean range of an
      output channel over the range of the tensor, 1 if all channels fill it.
    """
    w = np.asarray(w, np.float64).reshape(-1, np.shape(w)[-1])
    spread, deviation = np.ptp(w), w - w.mean()
    variance = np.mean(deviation**2)
    if spread == 0.0:
        return {"range": 0.0, "kurtosis": math.nan, "channel_precision": math.nan}
    return {
        "range": float(spread),
        "kurtosis": float(np.mean(deviation**4) / variance**2),
        "channel_precision": float(np.ptp(w, axis=0).mean() / spread),
    }


def mean_of(network: Mapping[str, Any], what: str) -> float:
    """Mean of one of the `STATISTICS` over {'layers': {path: `layer_statistics`}}."""
    return float(np.mean([layer[what] for layer in network["layers"].values()]))


def correlations(
    networks: Sequence[Mapping[str, Any]], widths: Sequence[str]
) -> dict[tuple[str, str], dict[str, float]]:
    """Rank correlations of weight statistics with the accuracy that is lost.

    Args:
      networks: 'model', its group; 'layers' as in `mean_of`; accuracies 'float' and
        under each of the `widths`.
      widths: such as 'w4a8'.

    Returns:
      {(statistic, width): `rank_correlation`}.
    """
    groups = [x["model"] for x in networks]
    return {
        (what, width): rank_correlation(
            [mean_of(x, what) for x in networks],
            [x["float"] - x[width] for x in networks],
            groups,
        )
        for what in STATISTICS
        for width in widths
    }


def rank_correlation(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Any],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Spearman's rank correlation within groups, with a bootstrap interval.

    Ranks are taken within each group (an architecture, say), and centred, so that what
    differs between groups has no part in it.

    Args:
      x, y: a number for each network.
      groups: to which each belongs; networks are drawn again within their group.
      resamples: of the bootstrap.
      seed: of the draws.

    Returns:
      {'value', 'low', 'high' (95 % interval), 'networks'}.

    Example:
      >>> found = rank_correlation([1, 2, 3, 4], [2, 4, 6, 9], ["a"] * 4)
      >>> round(found["value"], 6), found["networks"]
      (1.0, 4)
    """
    a, b = np.asarray(x, float), np.asarray(y, float)
    members = [
        np.array([i for i, other in enumerate(groups) if other == group])
        for group in dict.fromkeys(groups)
    ]
    rng = np.random.default_rng(seed)
    draws = [
        _correlation(a, b, [rng.choice(m, len(m)) for m in members])
        for _ in range(resamples)
    ]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    value = _correlation(a, b, members)
    return {"value": value, "low": low, "high": high, "networks": len(x)}


def _correlation(x: np.ndarray, y: np.ndarray, members: list[np.ndarray]) -> float:
    a, b = (np.concatenate([_ranks(v[m]) for m in members]) for v in (x, y))
    size = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else math.nan


def _ranks(x: np.ndarray) -> np.ndarray:
    """Centred ranks; equal numbers share the mean of theirs."""
    below = (x[:, None] > x[None]).sum(1)
    equal = (x[:, None] == x[None]).sum(1)
    ranks = below + (equal + 1) / 2
    return ranks - ranks.mean()
