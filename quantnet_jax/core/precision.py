"""Parameters of any float dtype: computed in float32, returned in theirs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from quantnet_jax.core.qtensor import is_qtensor


def in_float32(q: Any, *, double: bool = True) -> Any:
    """`q` for weights of any float dtype, such as bfloat16, float16 or float64.

    Its functions see float32 weights and gradients. `soft`, `gradient`, `project` and a
    `hard` without codes return the dtype of the weights; levels, scales, learned
    parameters and the penalty stay float32. Of float32 weights nothing changes.

    Args:
      q: a `quantnet_jax.Quantizer`, or one of activations.
      double: whether float64 is cast, too.
    """

    def wrapped(fn: Callable, restore: Callable) -> Callable:
        if getattr(fn, "casts", -1) >= double:  # of a quantizer within a combinator
            return fn

        @functools.wraps(fn)
        def cast(first: Any, w: jax.Array, *others: jax.Array, **kw: Any) -> Any:
            wide = w.dtype == jnp.float32 or (w.dtype == jnp.float64 and not double)
            if wide or not jnp.issubdtype(w.dtype, jnp.floating):
                return fn(first, w, *others, **kw)
            singles = [x.astype(jnp.float32) for x in (w, *others)]
            return restore(fn(first, *singles, **kw), w.dtype)

        vars(cast)["casts"] = int(double)
        return cast

    same = lambda out, dtype: out
    like = lambda out, dtype: out if is_qtensor(out) else out.astype(dtype)
    moved = lambda out, dtype: (out[0], like(out[1], dtype))
    results = {"init": same, "soft": like, "hard": like, "penalty": same}
    results |= {"gradient": like, "project": moved}
    return q._replace(
        **{
            field: wrapped(fn, results[field])
            for field, fn in q._asdict().items()
            if field in results and fn is not None
        }
    )
