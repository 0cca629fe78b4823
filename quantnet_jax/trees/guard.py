"""A warning where `soft` alone is differentiated, though its members need more."""

import functools
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.trees import paths
from quantnet_jax.trees.bucketed import Bucket

RULES = {
    "gradient": "its `gradient` in place of the VJP",
    "project": "its `project` after each update",
}


def guarded(q: Quantizer, buckets: Sequence[Bucket]) -> Quantizer:
    """`q` that warns when its `soft` is differentiated, if a member needs more.

    The values are the same. `unguarded` gives the quantizer without the warning, to
    those who call `gradient` and `project`.

    Args:
      q: over a tree.
      buckets: that it is made of.
    """
    needs = {path: _needs(b.quantizer) for b in buckets for path in b.paths}
    watched = {path: _watch(text) for path, text in needs.items() if text}
    if not watched:
        return q

    @functools.wraps(q.soft)
    def soft(qparams, params, *, step, key=None):
        tree = q.soft(qparams, params, step=step, key=key)
        leaves = paths.flatten(tree)
        new = {path: watch(leaves[path]) for path, watch in watched.items()}
        return paths.replace(tree, new)

    setattr(soft, "unguarded", q.soft)  # noqa: B010
    return q._replace(soft=soft)


def unguarded(q: Quantizer) -> Quantizer:
    """`q` without the warning of `guarded`."""
    return q._replace(soft=getattr(q.soft, "unguarded", q.soft))


def _needs(q: Quantizer) -> str:
    missing = [text for field, text in RULES.items() if getattr(q, field)]
    if not missing:
        return ""
    return (
        f"the gradient of `soft` alone does not train {q!r}, which needs "
        f"{' and '.join(missing)}; expected a loop with quantnet_jax.make_update"
    )


def _watch(text: str):
    """The identity, which warns when it is differentiated."""

    @jax.custom_jvp
    def watch(x: jax.Array) -> jax.Array:
        return jnp.asarray(x)

    @watch.defjvp
    def _(primals, tangents):
        warnings.warn(text, stacklevel=1)
        return primals[0], tangents[0]

    return watch
