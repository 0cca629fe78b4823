"""Saved arrays against built ones, by path: does all fit, or take what fits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from quantnet_jax.core.paths import flatten


class WarmStart(NamedTuple):
    """Which leaves a warm start took over; names are '/'-joined paths."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # built here, not in the saved arrays: keep their init
    unexpected: tuple[str, ...]  # saved, but not built here: ignored
    mismatched: tuple[str, ...]  # 'name: saved -> built': keep their init

    def __str__(self) -> str:
        parts = []
        for field, names in zip(self._fields, self, strict=True):
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            shown = f" ({listed})" if names and field != "matched" else ""
            parts.append(f"{len(names)} {field}{shown}")
        return "warm start: " + ", ".join(parts)


def describe(leaf: Any) -> str:
    """Returns 'float32[3,3,16,16]' for an array or its description."""
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def check_fits(saved: Mapping[str, Any], built: Mapping[str, Any], folder: str) -> None:
    """Raises ValueError naming the first path whose shape or dtype differs."""
    for name in [*built, *(k for k in saved if k not in built)]:
        was = describe(saved[name]) if name in saved else "nothing"
        now = describe(built[name]) if name in built else "nothing"
        if was != now:
            raise ValueError(
                f"checkpoint {folder!r} is of another architecture: {name!r} was saved"
                f" as {was}, the config builds {now}; restore with the config of that"
                " run, or use another workdir"
            )


def warm_start(like: Any, saved: Any) -> tuple[Any, WarmStart]:
    """Copies the saved arrays whose path, shape and dtype match into `like`.

    Args:
      like: pytree of arrays as initialized; its structure and placement are kept.
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
