"""Warm starts: partial restore by path."""

from typing import Any, NamedTuple

import jax

from quantnet_jax.checkpoint.layout import describe
from quantnet_jax.trees.paths import flatten


class WarmStart(NamedTuple):
    """Which leaves a warm start restored, as '/'-joined paths.

    Attributes:
      matched: restored.
      missing: built here, but not saved; they retain their initial values.
      unexpected: saved, but not built here; ignored.
      mismatched: 'path: saved -> built'; they retain their initial values.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __str__(self) -> str:
        parts = []
        for field, names in zip(self._fields, self, strict=True):
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            shown = f" ({listed})" if names and field != "matched" else ""
            parts.append(f"{len(names)} {field}{shown}")
        return "warm start: " + ", ".join(parts)


def warm_start(like: Any, saved: Any) -> tuple[Any, WarmStart]:
    """Copies the saved arrays whose path, shape and dtype match into `like`.

    Args:
      like: pytree of arrays as initialized; gives structure and placement.
      saved: pytree of arrays, or the flat dict of `Checkpoints.load_arrays`.

    Returns:
      The filled tree, and the report of what matched.

    Raises:
      ValueError: nothing matches.
    """
    built, given = flatten(like), flatten(saved)
    fits = {k: k in given and describe(given[k]) == describe(built[k]) for k in built}
    report = WarmStart(
        matched=tuple(k for k in built if fits[k]),
        missing=tuple(k for k in built if k not in given),
        unexpected=tuple(k for k in given if k not in built),
        mismatched=tuple(
            f"{k}: {describe(given[k])} -> {describe(built[k])}"
            for k in built
            if k in given and not fits[k]
        ),
    )
    if not report.matched and report.mismatched:
        raise ValueError(
            f"init_from has no array of a shape that is built here, such as "
            f"{report.mismatched[0]}; give a run of the same model options"
        )
    if not report.matched:
        raise ValueError(
            f"init_from matches none of the {len(built)} arrays built here (first:"
            f" {next(iter(built), '-')!r}; first saved: {next(iter(given), '-')!r});"
            " give a run of the same model family"
        )
    leaves = [
        jax.device_put(given[k], getattr(leaf, "sharding", None)) if fits[k] else leaf
        for k, leaf in built.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), report
