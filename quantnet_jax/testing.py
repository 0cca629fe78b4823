"""The law suite: checks that a quantizer keeps the laws of `quantnet_jax.core.base`."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.core.base import PyTree, Quantizer
from quantnet_jax.core.combine import per_channel
from quantnet_jax.core.qtensor import dequantize, is_qtensor, pack, unpack, validate

FORWARDS = ("soft", "hard", "float")
ORDER = (7, 1, 2, 8, 13, 10, 6, 4, 3, 5, 9, 11, 12)
"""The laws that `check_quantizer` knows, in the order of checking: what runs eagerly
comes first, so that a fault is reported under its own number."""
FLOAT = {"rtol": 2e-5, "atol": 2e-6}
"""How far two orders of the same float32 arithmetic may part; atol is per unit of the
largest value."""


def check_quantizer(
    q: Quantizer,
    *,
    forward: str,
    binary: bool | None = None,
    parameter_free: bool | None = None,
    anneal: Sequence[int] | None = None,
    shape: tuple[int, ...] = (3, 3, 4, 6),
    seed: int = 0,
    perturb: float = 0.1,
    tolerance: float = 0.05,
    laws: Iterable[int] = ORDER,
) -> None:
    """Raises AssertionError with the law's number if `q` breaks laws 1 to 13.

    The 14th is about the factory: `check_docstring`.

    Args:
      q: the quantizer.
      forward: what training uses: 'soft' (annealed towards hard), 'hard'
        (straight-through) or 'float' (no codes at all, as `identity`).
      binary: whether law 13 holds for it; default: its table has two levels.
      parameter_free: whether law 9 holds for it; default: `init` gives no arrays.
      anneal: for forward='soft', steps along its schedule, at least two: the mean
        distance of soft to hard must fall from each to the next (law 5).
      shape: of the weights, last axis = output channels, at least 64 numbers.
      seed: of weights and keys.
      perturb: noise on the parameters that `init` gives, relative to the root mean
        square of each array (absolute for arrays of zeros), so that the laws are not
        checked at a special point alone.
      tolerance: what the mean distance at the last of `anneal` may be, relative to the
        mean absolute hard value.
      laws: numbers of the laws to check; law 12 needs more than one local device and
        is skipped without.

    Raises:
      AssertionError: a law is broken; the message starts with 'law <number>: '.
      ValueError: for arguments that make no sense.

    Example:
      >>> from quantnet_jax.quantizers.sign import binary_ste
      >>> check_quantizer(binary_ste(), forward="hard", shape=(3, 3, 2, 4))
    """
    laws = set(laws)
    if forward not in FORWARDS:
        raise ValueError(f"`forward` is {forward!r}, expected one of {FORWARDS}")
    if not laws <= set(ORDER):
        raise ValueError(f"`laws` has {sorted(laws - set(ORDER))}, expected 1 to 13")
    if forward == "soft" and 5 in laws and (anneal is None or len(anneal) < 2):
        raise ValueError(
            f"`anneal` is {anneal!r}; forward='soft' needs two or more steps along the "
            "schedule (or leave 5 out of `laws`)"
        )
    case: list[Case] = []  # made by the first law, so that its failure has a number
    for number in sorted(laws | {7}, key=ORDER.index):
        try:
            if not case:
                case.append(
                    _make_case(
                        q, forward, binary, parameter_free, anneal, shape, seed, perturb
                    )
                )
            CHECKS[number](case[0]._replace(tolerance=tolerance))
        except Exception as e:
            kind = "" if isinstance(e, AssertionError) else f"{type(e).__name__}: "
            message = f"law {number}: {kind}{str(e).strip()}"
            raise AssertionError(message) from e


def check_docstring(factory: Callable[..., Quantizer]) -> None:
    """Raises AssertionError unless the docstring of `factory` keeps law 14.

    It must have text after each of 'Forward:', 'Backward:' and 'Reference:'.
    """
    text = factory.__doc__ or ""
    name = getattr(factory, "__name__", repr(factory))
    for label in ("Forward", "Backward", "Reference"):
        if not re.search(rf"\b{label}:\s*(?!\w+:)\w", text):
            raise AssertionError(
                f"law 14: the docstring of {name} does not state '{label}: ...'"
            )


class Case(NamedTuple):
    """What the laws are checked on."""

    q: Quantizer
    forward: str
    binary: bool | None
    parameter_free: bool
    anneal: Sequence[int] | None
    key: jax.Array
    start: PyTree  # what init gave for the random weights
    qparams: PyTree  # the same with noise
    weights: dict[str, jax.Array]  # family: weights
    traces: list[None]  # one entry for every trace of `run`
    run: Callable[..., dict]  # jitted `_everything`
    tolerance: float = 0.0


def _make_case(
    q, forward, binary, parameter_free, anneal, shape, seed, perturb
) -> Case:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=shape).astype(np.float32)
    zeros = np.where(rng.random(shape) < 0.2, np.float32(0), normal)
    key, init_key = jax.random.split(jax.random.key(seed))
    start = q.init(init_key, jnp.asarray(zeros))
    qparams = jax.tree.map(
        lambda x: x + perturb * _spread(x) * rng.normal(size=x.shape).astype(x.dtype),
        start,
    )
    qt = q.hard(qparams, jnp.asarray(zeros))
    special = np.asarray([-1.0, 1.0, 0.0])
    if is_qtensor(qt):
        levels = np.ravel(qt.levels)
        midpoints = (levels[1:] + levels[:-1]) / 2
        special = np.concatenate([midpoints, levels, special])
        binary = qt.levels.shape[-1] == 2 if binary is None else binary
    families = {
        "random with zeros": zeros,
        "random": normal,
        "zero": np.zeros(shape),
        "constant": np.full(shape, 0.37),
        "huge": 1e12 * normal,
        "tiny": 1e-20 * normal,
        "on thresholds": np.resize(special, shape),
    }
    traces: list[None] = []
    cotangent = jnp.asarray(rng.normal(size=shape), jnp.float32)

    def everything(qparams, w, step, key):
        traces.append(None)
        return _everything(q, cotangent, qparams, w, step, key)

    return Case(
        q=q,
        forward=forward,
        binary=binary,
        parameter_free=not jax.tree.leaves(start)
        if parameter_free is None
        else parameter_free,
        anneal=anneal,
        key=key,
        start=start,
        qparams=qparams,
        weights={k: jnp.asarray(w, jnp.float32) for k, w in families.items()},
        traces=traces,
        run=jax.jit(everything),
    )


def _spread(x: jax.Array) -> jax.Array:
    rms = jnp.sqrt(jnp.mean(x * x))
    return jnp.where(rms > 0, rms, jnp.ones_like(rms))


def _everything(q, cotangent, qparams, w, step, key) -> dict:
    """All that a training step and a deployment take from a quantizer."""

    def loss(qparams, w):
        soft = q.soft(qparams, w, step=step, key=key)
        penalty = q.penalty(qparams, w, step=step)
        return jnp.sum(soft * cotangent) + penalty, (soft, penalty)

    grads, (soft, penalty) = jax.grad(loss, argnums=(0, 1), has_aux=True)(qparams, w)
    hard = q.hard(qparams, w)
    return {"soft": soft, "penalty": penalty, "grads": grads, "hard": hard}


def _law1(case: Case) -> None:
    w = case.weights["random with zeros"]
    soft = case.q.soft(case.qparams, w, step=_step(0), key=case.key)
    _like(soft, w, "soft")


def _law2(case: Case) -> None:
    for family, w in case.weights.items():
        qt = case.q.hard(case.qparams, w)
        _like(dequantize(qt), w, "dequantize(hard)")
        assert is_qtensor(qt) == (case.forward != "float"), (
            f"hard gives a {type(qt).__name__}, forward is {case.forward!r}"
        )
        if case.forward == "float":
            continue
        validate(qt, f"hard of {family} weights")
        _like(qt.codes, w, "codes", jnp.uint8)
        table = np.asarray(qt.levels)
        table = np.broadcast_to(table, (w.shape[-1], table.shape[-1]))
        values = np.take_along_axis(
            table, np.asarray(qt.codes, np.int64).reshape(-1, w.shape[-1]).T, axis=1
        ).T.reshape(w.shape) * np.asarray(qt.scale)
        _same_bits(dequantize(qt), values, f"dequantize(hard) of {family} weights")


def _law3(case: Case) -> None:
    for family, w in case.weights.items():
        grads = case.run(case.qparams, w, _step(1), case.key)["grads"]
        for path, g in jax.tree_util.tree_leaves_with_path(grads):
            name = ("qparams", "w")[path[0].idx] + jax.tree_util.keystr(path[1:])
            bad = int(np.sum(~np.isfinite(g)))
            assert not bad, (
                f"{bad} of {g.size} numbers of the gradient for {name} are not finite "
                f"for {family} weights"
            )


def _law4(case: Case) -> None:
    if case.forward == "soft":
        return
    for family, w in case.weights.items():
        for step in (0, 3):
            out = case.run(case.qparams, w, _step(step), case.key)
            what = f"soft against dequantize(hard) of {family} weights at step {step}"
            _same_bits(out["soft"], dequantize(out["hard"]), what)


def _law5(case: Case) -> None:
    if case.forward != "soft":
        return
    distances, size = [], 1.0
    for step in case.anneal or ():
        out = case.run(case.qparams, case.weights["random"], _step(step), case.key)
        hard = dequantize(out["hard"])
        size = float(jnp.mean(jnp.abs(hard)))
        distances.append(float(jnp.mean(jnp.abs(out["soft"] - hard))) / size)
    seen = f"distances {[round(d, 4) for d in distances]} at steps {case.anneal}"
    falls = all(b < a for a, b in zip(distances, distances[1:], strict=False))
    assert falls, f"soft does not approach hard along the schedule: {seen}"
    assert distances[-1] <= case.tolerance, (
        f"soft does not reach hard to {case.tolerance}: {seen}"
    )


def _law6(case: Case) -> None:
    w = case.weights["random with zeros"]
    jitted = case.run(case.qparams, w, _step(0), case.key)
    case.run(case.qparams, w, _step(1), case.key)
    case.run(case.qparams, w, _step(0), jax.random.fold_in(case.key, 1))
    assert len(case.traces) == 1, (
        f"{len(case.traces)} traces of one function for two steps and two keys"
    )
    q = case.q
    eager = {
        "soft": q.soft(case.qparams, w, step=_step(0), key=case.key),
        "penalty": q.penalty(case.qparams, w, step=_step(0)),
        "hard": q.hard(case.qparams, w),
    }
    if is_qtensor(eager["hard"]):
        _same_bits(jitted["hard"].codes, eager["hard"].codes, "codes, jit and eager")
    for name, value in eager.items():
        _close(dequantize(jitted[name]), dequantize(value), f"{name}, jit and eager")


def _law7(case: Case) -> None:
    w = case.weights["random"]
    abstract = jax.eval_shape(case.q.init, jax.random.key(0), w)
    describe = lambda tree: jax.tree.map(lambda x: f"{x.dtype}{x.shape}", tree)
    assert describe(abstract) == describe(case.start), (
        f"init gives {describe(case.start)}, under eval_shape {describe(abstract)}"
    )
    for x in jax.tree.leaves(case.start):
        assert x.dtype == jnp.float32, f"init gives {x.dtype}, expected float32"


def _law8(case: Case) -> None:
    for family in ("random with zeros", "on thresholds"):
        first, second = (
            case.q.hard(case.qparams, case.weights[family]) for _ in range(2)
        )
        for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True):
            _same_bits(a, b, f"two calls of hard for {family} weights")
        if is_qtensor(first):
            codes = unpack(pack(first.codes, first.bits), first.bits, first.shape)
            _same_bits(codes, first.codes, "unpack(pack(codes))")


def _law9(case: Case) -> None:
    if not case.parameter_free:
        return
    hard = lambda w: case.q.hard(case.qparams, w)
    first = hard(case.weights["random"])
    second = hard(dequantize(first))
    if is_qtensor(first):
        _same_bits(second.codes, first.codes, "codes of hard(dequantize(hard(w)))")
    _close(dequantize(second), dequantize(first), "hard(dequantize(hard(w)))")


def _law10(case: Case) -> None:
    for family, w in case.weights.items():
        for step in sorted({0, *(case.anneal or ())}):
            penalty = case.q.penalty(case.qparams, w, step=_step(step))
            seen = f"{penalty} for {family} weights at step {step}"
            assert jnp.shape(penalty) == (), f"penalty of shape {jnp.shape(penalty)}"
            assert jnp.result_type(penalty) == jnp.float32, (
                f"penalty of dtype {jnp.result_type(penalty)}, expected float32"
            )
            assert np.isfinite(penalty), f"penalty is {seen}"
            assert penalty >= 0, f"penalty is {seen}, expected at least 0"


def _law11(case: Case) -> None:
    q, w = case.q, case.weights["random with zeros"]
    whole, step = per_channel(q), _step(1)

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
    _close(got["qparams"], stacked["qparams"], f"{what} qparams")
    _close(got["soft"], soft, f"{what} soft")
    _close(got["penalty"], stacked["penalty"].mean(), f"{what} penalty")
    if case.forward == "float":
        return
    qt, parts = got["hard"], stacked["hard"]
    _same_bits(qt.codes, np.moveaxis(parts.codes, 0, -1), f"{what} codes")
    _close(qt.levels, parts.levels, f"{what} levels")
    values = np.stack([dequantize(x["hard"]) for x in loop], axis=-1)
    if qt.levels.ndim == 2:
        _close(dequantize(qt), values, f"{what} dequantize(hard)")


def _law12(case: Case) -> None:
    devices = jax.local_device_count()
    if devices == 1:
        return
    args = (case.qparams, case.weights["random with zeros"], _step(1), case.key)
    single = case.run(*args)
    replicate = jax.pmap(
        lambda _, *args: case.run.__wrapped__(*args), in_axes=(0,) + (None,) * 4
    )
    replicas = replicate(jnp.arange(devices), *args)
    for path, x in jax.tree_util.tree_leaves_with_path(replicas):
        for device, replica in enumerate(np.asarray(x)):
            what = f"{jax.tree_util.keystr(path)} of replicas 0 and {device}"
            _same_bits(x[0], replica, what)
    replica = jax.tree.map(lambda x: x[0], replicas)
    if is_qtensor(single["hard"]):
        _same_bits(replica["hard"].codes, single["hard"].codes, "codes, pmap and jit")
    for name in single:
        _close(replica[name], single[name], f"{name}, pmap and jit")


def _law13(case: Case) -> None:
    if not case.binary:
        return
    w = case.weights["zero"]
    qt = case.q.hard(case.start, w)
    upper = np.asarray(qt.levels.argmax(-1), np.uint8)
    wrong = int(np.sum(np.asarray(qt.codes) != upper))
    assert not wrong, f"{wrong} of {w.size} zero weights do not become the upper level"


CHECKS = {
    1: _law1,
    2: _law2,
    3: _law3,
    4: _law4,
    5: _law5,
    6: _law6,
    7: _law7,
    8: _law8,
    9: _law9,
    10: _law10,
    11: _law11,
    12: _law12,
    13: _law13,
}


def _step(step: int) -> jax.Array:
    return jnp.asarray(step, jnp.int32)


def _like(x, w, what: str, dtype=None) -> None:
    dtype = w.dtype if dtype is None else dtype
    assert (x.shape, x.dtype) == (w.shape, dtype), (
        f"{what} is {x.dtype}{x.shape}, expected {jnp.dtype(dtype)}{w.shape}"
    )


def _same_bits(x, y, what: str) -> None:
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


def _close(x: PyTree, y: PyTree, what: str) -> None:
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, f"{what}: shapes {a.shape} and {b.shape}"
        size = np.max(np.abs(b), initial=0.0)
        far = ~np.isclose(a, b, rtol=FLOAT["rtol"], atol=FLOAT["atol"] * size)
        assert not far.any(), (
            f"{what}: {int(far.sum())} of {a.size} numbers differ, the first is "
            f"{a[far][0]!r} and {b[far][0]!r}"
        )
