"""What each law of `quantnet_jax.core.quantizer` demands, as assertions about a `Case`.

`quantnet_jax.testing` makes the case and runs them; law 12, about devices, is there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.core.combine import per_channel
from quantnet_jax.core.packing import pack, unpack
from quantnet_jax.core.qtensor import dequantize, is_qtensor, validate
from quantnet_jax.core.quantizer import PyTree, Quantizer

FLOAT = {"rtol": 2e-5, "atol": 2e-6}
"""How far two orders of the same float32 arithmetic may part; atol is per unit of the
largest value."""


class Case(NamedTuple):
    """A quantizer, what is said of it, and what the laws are checked on."""

    q: Quantizer
    forward: str
    binary: bool
    parameter_free: bool
    anneal: Sequence[int] | None
    key: jax.Array
    start: PyTree  # what init gave for the random weights with zeros
    qparams: PyTree  # the same with noise
    weights: dict[str, jax.Array]  # family: weights
    traces: list[None]  # one entry for every trace of `run`
    run: Callable[..., dict]  # jitted (qparams, w, step, key) -> soft, hard, grads, ...
    tolerance: float


def law1(case: Case) -> None:
    """`soft`, `gradient` and `project` keep shape and dtype."""
    w, q = case.weights["random with zeros"], case.q
    like(q.soft(case.qparams, w, step=at(0), key=case.key), w, "soft")
    if q.gradient:
        like(q.gradient(case.qparams, w, w, step=at(0)), w, "gradient")
    if q.project:
        qparams, moved = q.project(case.qparams, w, step=at(0))
        like(moved, w, "project")
        old, new = (jax.tree.map(jnp.shape, x) for x in (case.qparams, qparams))
        assert old == new, f"project gives parameters of shapes {new}, expected {old}"


def law2(case: Case) -> None:
    """`dequantize(hard)` is `levels[codes] * scale`, of the shape and dtype of `w`."""
    for family, w in case.weights.items():
        qt = case.q.hard(case.qparams, w)
        like(dequantize(qt), w, "dequantize(hard)")
        assert is_qtensor(qt) == (case.forward != "float"), (
            f"hard gives a {type(qt).__name__}, forward is {case.forward!r}"
        )
        if case.forward == "float":
            continue
        validate(qt, f"hard of {family} weights")
        like(qt.codes, w, "codes", jnp.uint8)
        table = np.asarray(qt.levels)
        table = np.broadcast_to(table, (w.shape[-1], table.shape[-1]))
        values = np.take_along_axis(
            table, np.asarray(qt.codes, np.int64).reshape(-1, w.shape[-1]).T, axis=1
        ).T.reshape(w.shape) * np.asarray(qt.scale)
        same_bits(dequantize(qt), values, f"dequantize(hard) of {family} weights")


def law3(case: Case) -> None:
    """Gradients (and what `project` gives) are finite for every family of weights."""
    names = (
        "the gradient for qparams",
        "the gradient for w",
        "`gradient`",
        "`project`",
    )
    for family, w in case.weights.items():
        out = case.run(case.qparams, w, at(1), case.key)
        found = dict(zip(names, out["grads"], strict=False))
        found |= {names[3]: out.get("project", ())}
        for path, x in jax.tree_util.tree_leaves_with_path(found):
            name = path[0].key + jax.tree_util.keystr(path[1:])
            bad = int(np.sum(~np.isfinite(x)))
            assert not bad, (
                f"{bad} of {x.size} numbers of {name} are not finite for {family} "
                "weights"
            )


def law4(case: Case) -> None:
    """Straight-through members: soft is dequantize(hard), bit for bit."""
    if case.forward == "soft":
        return
    for family, w in case.weights.items():
        for step in (0, 3):
            out = case.run(case.qparams, w, at(step), case.key)
            what = f"soft against dequantize(hard) of {family} weights at step {step}"
            same_bits(out["soft"], dequantize(out["hard"]), what)


def law5(case: Case) -> None:
    """Annealed members: soft approaches hard along the schedule, and reaches it."""
    if case.forward != "soft":
        return
    distances, size = [], 1.0
    for step in case.anneal or ():
        w, qparams = case.weights["random"], case.qparams
        if case.q.project:
            qparams, w = case.q.project(qparams, w, step=at(step))
        out = case.run(qparams, w, at(step), case.key)
        hard = dequantize(out["hard"])
        size = float(jnp.mean(jnp.abs(hard)))
        distances.append(float(jnp.mean(jnp.abs(out["soft"] - hard))) / size)
    seen = f"distances {[round(d, 4) for d in distances]} at steps {case.anneal}"
    pairs = zip(distances, distances[1:], strict=False)
    falls = all(b < a or a == b == 0.0 for a, b in pairs)
    assert falls, f"soft does not approach hard along the schedule: {seen}"
    assert distances[-1] <= case.tolerance, (
        f"soft does not reach hard to {case.tolerance}: {seen}"
    )


def law6(case: Case) -> None:
    """jit equals eager; another step or key does not retrace."""
    w = case.weights["random with zeros"]
    jitted = case.run(case.qparams, w, at(0), case.key)
    case.run(case.qparams, w, at(1), case.key)
    case.run(case.qparams, w, at(0), jax.random.fold_in(case.key, 1))
    assert len(case.traces) == 1, (
        f"{len(case.traces)} traces of one function for two steps and two keys"
    )
    q = case.q
    eager = {
        "soft": q.soft(case.qparams, w, step=at(0), key=case.key),
        "penalty": q.penalty(case.qparams, w, step=at(0)),
        "hard": q.hard(case.qparams, w),
    }
    if is_qtensor(eager["hard"]):
        same_bits(jitted["hard"].codes, eager["hard"].codes, "codes, jit and eager")
    for name, value in eager.items():
        close(dequantize(jitted[name]), dequantize(value), f"{name}, jit and eager")


def law7(case: Case) -> None:
    """`init` works under `eval_shape`, and gives float32."""
    w = case.weights["random"]
    abstract = jax.eval_shape(case.q.init, jax.random.key(0), w)
    describe = lambda tree: jax.tree.map(lambda x: f"{x.dtype}{x.shape}", tree)
    assert describe(abstract) == describe(case.start), (
        f"init gives {describe(case.start)}, under eval_shape {describe(abstract)}"
    )
    for x in jax.tree.leaves(case.start):
        assert x.dtype == jnp.float32, f"init gives {x.dtype}, expected float32"


def law8(case: Case) -> None:
    """`hard` is deterministic; packing its codes loses nothing."""
    for family in ("random with zeros", "on thresholds"):
        first, second = (
            case.q.hard(case.qparams, case.weights[family]) for _ in range(2)
        )
        for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True):
            same_bits(a, b, f"two calls of hard for {family} weights")
        if is_qtensor(first):
            codes = unpack(pack(first.codes, first.bits), first.bits, first.shape)
            same_bits(codes, first.codes, "unpack(pack(codes))")


def law9(case: Case) -> None:
    """Members without parameters: hard is idempotent."""
    if not case.parameter_free:
        return
    hard = lambda w: case.q.hard(case.qparams, w)
    first = hard(case.weights["random"])
    second = hard(dequantize(first))
    if is_qtensor(first):
        same_bits(second.codes, first.codes, "codes of hard(dequantize(hard(w)))")
    close(dequantize(second), dequantize(first), "hard(dequantize(hard(w)))")


def law10(case: Case) -> None:
    """The penalty is a finite, non-negative float32 scalar."""
    for family, w in case.weights.items():
        for step in sorted({0, *(case.anneal or ())}):
            penalty = case.q.penalty(case.qparams, w, step=at(step))
            seen = f"{penalty} for {family} weights at step {step}"
            assert jnp.shape(penalty) == (), f"penalty of shape {jnp.shape(penalty)}"
            assert jnp.result_type(penalty) == jnp.float32, (
                f"penalty of dtype {jnp.result_type(penalty)}, expected float32"
            )
            assert np.isfinite(penalty), f"penalty is {seen}"
            assert penalty >= 0, f"penalty is {seen}, expected at least 0"


def law11(case: Case) -> None:
    """`per_channel(q)` equals a loop over the channels."""
    q, w = case.q, case.weights["random with zeros"]
    whole, step = per_channel(q), at(1)

    def all_of(q):
        def run(qparams, w, key):
            soft = q.soft(qparams, w, step=step, key=key)
            penalty = q.penalty(qparams, w, step=step)
            hard = () if case.forward == "float" else q.hard(qparams, w)
            return {"qparams": qparams, "soft": soft, "penalty": penalty, "hard": hard}

        run = jax.jit(run)
        return lambda key, w: run(q.init(key, w), w, key)

    got, one = all_of(whole)(case.key, w), all_of(q)
    keys = jax.random.split(case.key, w.shape[-1])
    loop = [one(keys[c], w[..., c]) for c in range(w.shape[-1])]
    stacked = jax.tree.map(lambda *x: np.stack(x), *loop)
    soft = np.moveaxis(stacked["soft"], 0, -1)
    what = "per_channel against a loop over channels:"
    close(got["qparams"], stacked["qparams"], f"{what} qparams")
    close(got["soft"], soft, f"{what} soft")
    close(got["penalty"], stacked["penalty"].mean(), f"{what} penalty")
    if case.forward == "float":
        return
    qt, parts = got["hard"], stacked["hard"]
    same_bits(qt.codes, np.moveaxis(parts.codes, 0, -1), f"{what} codes")
    close(qt.levels, parts.levels, f"{what} levels")
    values = np.stack([dequantize(x["hard"]) for x in loop], axis=-1)
    if qt.levels.ndim == 2:
        close(dequantize(qt), values, f"{what} dequantize(hard)")


def law13(case: Case) -> None:
    """Binary members: zeros become the upper level."""
    if not case.binary:
        return
    w = case.weights["zero"]
    qt = case.q.hard(case.start, w)
    upper = np.asarray(qt.levels.argmax(-1), np.uint8)
    wrong = int(np.sum(np.asarray(qt.codes) != upper))
    assert not wrong, f"{wrong} of {w.size} zero weights do not become the upper level"


def at(step: int) -> jax.Array:
    """A step as the optimizer counts it."""
    return jnp.asarray(step, jnp.int32)


def like(x, w, what: str, dtype=None) -> None:
    """Asserts the shape of `w`, and its dtype or the given one."""
    dtype = w.dtype if dtype is None else dtype
    assert (x.shape, x.dtype) == (w.shape, dtype), (
        f"{what} is {x.dtype}{x.shape}, expected {jnp.dtype(dtype)}{w.shape}"
    )


def same_bits(x, y, what: str) -> None:
    """Asserts that two arrays are equal bit for bit."""
    x, y = np.asarray(x), np.asarray(y)
    assert (x.shape, x.dtype) == (y.shape, y.dtype), (
        f"{what}: {x.dtype}{x.shape} and {y.dtype}{y.shape}"
    )
    view = lambda a: a.reshape(-1).view(f"u{a.dtype.itemsize}")
    differ = np.flatnonzero(view(x) != view(y))
    assert not differ.size, (
        f"{what}: {differ.size} of {x.size} numbers differ, the first is "
        f"{x.flat[differ[0]]!r} and {y.flat[differ[0]]!r}"
    )


def close(x: PyTree, y: PyTree, what: str) -> None:
    """Asserts that all leaves of two trees are equal up to `FLOAT`."""
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, f"{what}: shapes {a.shape} and {b.shape}"
        size = np.max(np.abs(b), initial=0.0)
        far = ~np.isclose(a, b, rtol=FLOAT["rtol"], atol=FLOAT["atol"] * size)
        assert not far.any(), (
            f"{what}: {int(far.sum())} of {a.size} numbers differ, the first is "
            f"{a[far][0]!r} and {b[far][0]!r}"
        )
