"""What post-training methods share: Gram matrices, alphabets, the sequential rounding.

A layer is a product X w of its inputs X, one row for each place that it reads, with
weights w (N, M): N inputs, M output units. The part of the network before it may be
quantized already; then it reads Xq in place of X, and the codes are to make Xq q close
to X w. Everything that the methods need to know of X and Xq is in three N x N matrices.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number, Sequence, checked
from quantnet_jax.core.qtensor import QTensor, encode

Scalars = Annotated[tuple[float, ...], Sequence(Number(1e-3, 1e3))]
GRID: Scalars = tuple(0.3 + 0.1 * i for i in range(10))
"""Of the radius that is searched for, in units of the quantile of |w|."""


class Grams(NamedTuple):
    """Products of layer inputs, summed over rows; float32 (N, N) each.

    Attributes:
      quantized: Xq^T Xq.
      mixed: Xq^T X.
      float: X^T X.
    """

    quantized: jax.Array
    mixed: jax.Array
    float: jax.Array


class Solver(NamedTuple):
    """A post-training method.

    Attributes:
      solve: `(w, grams, key) -> QTensor`, pure: float32 weights (N, M), the Gram
        matrices of their inputs, a PRNG key for the stochastic ones. The scale has
        shape (1, M) or (1, 1).
      inputs: whether it looks at `grams`; if not, it takes None.
      name: the call that made it.
    """

    solve: Callable[..., QTensor]
    inputs: bool = True
    name: str = "Solver"

    def __repr__(self) -> str:
        return self.name


def method(make: Callable[..., Solver]) -> Callable[..., Solver]:
    """Decorates a factory: options are checked, its solver is jitted and prints short.

    What an option may be stands in its `Annotated` type, see `common.limits.checked`.
    """
    build = checked(make)

    @functools.wraps(build)
    def made(**options: Any) -> Solver:
        found = build(**options)
        name = f"{make.__name__}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
        return found._replace(solve=jax.jit(found.solve), name=name)

    return made


def grams(x: jax.Array, xq: jax.Array) -> Grams:
    """Gram matrices of inputs (rows, N) of the float and of the quantized network.

    Example:
      >>> grams(jnp.ones((5, 3)), jnp.ones((5, 3))).mixed[0].tolist()
      [5.0, 5.0, 5.0]
    """
    return Grams(dot(xq.T, xq), dot(xq.T, x), dot(x.T, x))


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product in full float32 on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def uncorrelated(size: int) -> Grams:
    """Gram matrices of which the output error is that of the weights."""
    return Grams(*[jnp.eye(size, dtype=jnp.float32)] * 3)


def output_error(w: jax.Array, values: jax.Array, of: Grams) -> jax.Array:
    """||X w - Xq q||^2 of each output unit: w and q (..., N, M) -> float32 (..., M)."""
    form = lambda a, gram, b: jnp.sum(a * dot(gram, b), axis=-2)
    cross = form(values, of.mixed, w)
    error = form(w, of.float, w) - 2.0 * cross + form(values, of.quantized, values)
    return jnp.maximum(error, 0.0)


def relative_error(w: jax.Array, values: jax.Array, of: Grams) -> jax.Array:
    """||X w - Xq q||^2 / ||X w||^2 over all units, a float32 scalar.

    Args:
      w, values: float32 (..., N, M): w and q, perhaps with groups in front.
      of: with the same groups.

    Returns:
      The error; not divided where X w is zero.
    """
    size = jnp.sum(w * dot(of.float, w))
    error = jnp.sum(output_error(w, values, of))
    return error / jnp.where(size > 0.0, size, 1.0)


def radius(w: jax.Array, quantile: float, per: str) -> jax.Array:
    """The quantile of |w| of each unit, (1, M); per='tensor': their mean, (1, 1)."""
    found = jnp.quantile(jnp.abs(w), quantile, axis=0, keepdims=True)
    found = found if per == "channel" else jnp.mean(found, keepdims=True)
    return jnp.where(found > 0.0, found, 1.0)


def in_order(
    target: jax.Array,
    factor: jax.Array,
    code_of: Callable,
    value_of: Callable,
    start: jax.Array | None = None,
) -> jax.Array:
    """Codes q_t = Q(target_t - sum over s < t of factor[t, s] q_s), t = 0 ... N - 1.

    All output units at once. GPFQ, error feedback and BiTAT differ in target and factor
    alone.

    Args:
      target: float32 (N, M).
      factor: float32 (N, N); what is not below the diagonal is not looked at.
      code_of: `(z (M,), t) -> uint8 codes (M,)`.
      value_of: `codes -> float32 (M,)`.
      start: None; or values of codes to improve on: the sum is then over all s but t,
        of the values so far.
    """

    def step(values, at):
        t, goal, row = at
        codes = code_of(goal - dot(row, values), t)
        return values.at[t].set(value_of(codes)), codes

    if start is None:
        factor, start = jnp.tril(factor, -1), jnp.zeros_like(target)
    else:
        factor = factor - jnp.diag(jnp.diagonal(factor))
    order = jnp.arange(target.shape[0])
    return jax.lax.scan(step, start, (order, target, factor))[1]


def best_scale(
    run: Callable[[jax.Array], QTensor],
    base: jax.Array,
    scalars: Scalars,
    w: jax.Array,
    of: Grams,
) -> QTensor:
    """The QTensor of least output error among those of several scales.

    Args:
      run: `scale -> QTensor` of that scale, (1, M) or (1, 1); its units are solved one
        apart from the other.
      base: scale, which the scalars multiply.
      scalars: tried, at least one.
      w, of: the weights and the Gram matrices of their inputs.
    """
    if len(scalars) == 1:
        return run(base * scalars[0])

    def attempt(scalar):
        qt = run(base * scalar)
        values = qt.levels[qt.codes] * qt.scale
        return qt, output_error(w, values, of)

    # One after the other: the memory is that of one.
    tried, errors = jax.lax.map(attempt, jnp.asarray(scalars, jnp.float32))
    if base.shape[-1] == 1:
        errors = jnp.broadcast_to(errors.sum(1, keepdims=True), errors.shape)
    best = jnp.argmin(errors, axis=0)
    pick = lambda x: jnp.take_along_axis(x, best[None, None, : x.shape[-1]], 0)[0]
    return QTensor(pick(tried.codes), tried.levels[0], pick(tried.scale))


def nearest(w: jax.Array, levels: jax.Array, scale: jax.Array) -> QTensor:
    """Each weight to the nearest of `levels * scale`; levels ascending."""
    return QTensor(encode(w / scale, levels), levels, scale)


def symmetric_levels(bits: int) -> jax.Array:
    """float32: 2^bits - 1 evenly spaced levels from -1 to 1, with zero; 1 bit: -1, 1.

    Example:
      >>> symmetric_levels(2).tolist()
      [-1.0, 0.0, 1.0]
    """
    if bits == 1:
        return jnp.asarray([-1.0, 1.0], jnp.float32)
    count = 2 ** (bits - 1) - 1
    return jnp.arange(-count, count + 1, dtype=jnp.float32) / count
