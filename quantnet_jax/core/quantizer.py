"""The vocabulary of the library: Quantizer, Reparam and the identity (float) quantizer.

A quantizer is a NamedTuple of pure functions, made by a factory and joined by the
combinators of `quantnet_jax.core.combine`. What a method *is* lives in its functions,
what it *learns* lives in `qparams`, a plain pytree beside the weights.

The laws that every member obeys (`quantnet_jax.testing.check_quantizer` checks them):

 1. `soft` (and `gradient`, `project` if defined) keeps shape and dtype.
 2. `dequantize(hard)` takes values in `levels * scale` only, same shape and dtype.
 3. Gradients with respect to `w` and every leaf of `qparams` are finite for random,
    all-zero, constant, huge and tiny weights.
 4. Straight-through members: `soft == dequantize(hard)` bit for bit.
 5. Annealed members: the distance of soft to hard falls along their schedule (with
    `project`: of the projected weights).
 6. jit equals eager; another step or key does not retrace.
 7. `init` works under `jax.eval_shape`.
 8. `hard` is deterministic, and unpacking inverts packing of its codes.
 9. Members without parameters: hard(dequantize(hard(w))) == hard(w).
10. The penalty is a finite, non-negative float32 scalar.
11. `per_channel(q)` equals a Python loop over the channels.
12. Replicas under pmap are equal bit for bit, and equal to the result of one device
    (codes bit for bit, floats to rounding: the compiled programs differ).
13. A zero weight becomes the positive level of a binary member.
14. The factory's docstring states forward, backward and reference.
15. In a tree, weights of bfloat16, float16 or float64 are computed in float32; what is
    like `w` has their dtype, the rest is float32.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import checked
from quantnet_jax.core.precision import in_float32
from quantnet_jax.core.qtensor import QTensor
from quantnet_jax.core.serial import Serializable

PyTree = Any
Schedule = Callable[[jax.Array], jax.Array]
ScalarOrSchedule = float | Schedule
"""A number, or a function of the optimizer's step (any `optax.Schedule` fits)."""


class Quantizer(NamedTuple):
    """A weight (or activation) quantizer as four pure functions.

    Attributes:
      init: `(key, w) -> qparams`, a pytree of float32 arrays, `()` if nothing is
        learned. It may look at the values of `w`, and must work under `eval_shape`.
      soft: `(qparams, w, *, step, key=None) -> w_soft`, the function that training
        differentiates; same shape and dtype as `w`. `step` is the
        optimizer's step, a scalar int array; `key` is for stochastic members.
      hard: `(qparams, w) -> QTensor`, what is deployed. No step and no key. The
        identity alone returns a float array, which `dequantize` passes through.
      penalty: `(qparams, w, *, step) -> float32 scalar`, added to the loss.
      gradient: None, or `(qparams, w, g, *, step) -> like w`: what the optimizer of the
        weights gets for g = d loss / d soft, in place of the VJP of `soft`. Its
        parameters are trained through the weights' update (MetaQuant).
      project: None, or `(qparams, w, *, step) -> (qparams, w)`, applied after each
        update of the optimizer: a projection of the weights (ProxQuant), or a change of
        parameters without a gradient (LQ-Nets). `hard` of the result is that of `w`,
        or nearer to `w`.
    """

    init: Callable[..., PyTree]
    soft: Callable[..., jax.Array]
    hard: Callable[..., QTensor]
    penalty: Callable[..., jax.Array]
    gradient: Callable[..., jax.Array] | None = None
    project: Callable[..., tuple[PyTree, jax.Array]] | None = None

    def __repr__(self) -> str:
        made = f"Quantizer({_name(self.soft)})"
        return getattr(self.soft, "made_by", made)


class Reparam(NamedTuple):
    """A continuous map that soft and hard apply alike (QuantNet's sub-network is one).

    Attributes:
      init: `(key, w) -> rparams`, a pytree of float32 arrays.
      apply: `(rparams, w) -> w'`, same shape and dtype as `w`.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., jax.Array]

    def __repr__(self) -> str:
        return f"Reparam({_name(self.apply)})"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerTensor(Serializable):
    """Marks the part of `qparams` that stays each tensor's own under sharing.

    A rule with `share='model'` or `'kernel'` gives all its tensors one set of
    `qparams`; parts wrapped in `PerTensor` (such as a scale per output channel)
    exist once per tensor.

    Attributes:
      value: any pytree of float32 arrays.
    """

    value: PyTree


def factory(
    make: Callable | None = None, *, together: Callable[..., str] | None = None
) -> Callable:
    """Decorates a factory: arguments are checked, quantizers print short, dtypes stay.

    Weights of half precision are cast, see `precision.in_float32`. A quantizer prints
    as the call that made it; without this, as the name of its factory alone. Arguments
    are refused as their `Annotated` types say, see `common.limits.checked`.

    Args:
      make: the factory; without it a decorator is returned.
      together: what arguments must fulfil together, see `limits.checked`.

    Example:
      >>> @factory
      ... def mine(*, bits=2):
      ...     return identity()
      >>> mine(bits=1)
      mine(bits=1)
    """
    if make is None:
        return functools.partial(factory, together=together)
    signature, build = inspect.signature(make), checked(make, together=together)

    @functools.wraps(build)
    def made(*args: Any, **options: Any) -> Quantizer:
        q = build(*args, **options)
        if isinstance(q, Quantizer):
            q = in_float32(q, double=False)
        given = signature.bind(*args, **options)
        given.apply_defaults()
        words = [show(x) for x in given.args]
        words += [f"{k}={show(x)}" for k, x in given.kwargs.items()]
        soft = functools.partial(q.soft)  # `q.soft` may be that of another quantizer
        setattr(soft, "made_by", f"{make.__name__}({', '.join(words)})")  # noqa: B010
        return q._replace(soft=soft)

    show = lambda x: _name(x) if inspect.isfunction(x) else repr(x)
    return made


def _name(fn: Callable) -> str:
    """Name of a function; of an inner function that of the outermost."""
    return getattr(fn, "__qualname__", type(fn).__name__).split(".<locals>")[0]


def no_penalty(qparams: PyTree, w: jax.Array, *, step: jax.Array) -> jax.Array:
    """The penalty of a quantizer that has none: a float32 zero."""
    del qparams, w, step
    return jnp.zeros((), jnp.float32)


def no_params(key: jax.Array, w: jax.Array) -> tuple[()]:
    """The `init` of a quantizer that learns nothing."""
    del key, w
    return ()


def as_schedule(value: ScalarOrSchedule) -> Schedule:
    """A number becomes a constant function of the step; a schedule stays itself."""
    if callable(value):
        return value
    return lambda step: jnp.asarray(value, jnp.float32)


@factory
def identity() -> Quantizer:
    """The float reference: every weight passes through unchanged.

    Forward: w_hat = w, soft and hard alike (`hard` returns the float array: there
      are no codes to ship).
    Backward: exact autodiff, dw_hat/dw = 1. `w == 0` stays 0.
    Learned: none. Reference: none, this is the full-precision baseline.

    Example:
      >>> q = identity()
      >>> float(q.soft((), jnp.asarray([0.5]), step=0)[0])
      0.5
    """
    return Quantizer(
        init=no_params,
        soft=lambda qparams, w, *, step, key=None: w,
        hard=lambda qparams, w: w,
        penalty=no_penalty,
    )


def prepared(q: Quantizer, prepare: Callable) -> Quantizer:
    """`q` with `prepare(qparams)` in place of its parameters, wherever it is used.

    `init` is unchanged; `project` starts from the prepared values.
    """

    def wrapped(fn: Callable) -> Callable:
        return lambda qparams, *args, **kw: fn(prepare(qparams), *args, **kw)

    return q._replace(
        **{
            field: wrapped(fn)
            for field, fn in q._asdict().items()
            if field != "init" and fn is not None
        }
    )
