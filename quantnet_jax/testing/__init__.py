"""The law suite: checks that a quantizer obeys `quantnet_jax.core.quantizer`."""

import functools
import re
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.core.qtensor import is_qtensor
from quantnet_jax.core.quantizer import Quantizer
from quantnet_jax.testing import laws as law_checks
from quantnet_jax.testing.laws import Case, at, close, same_bits
from quantnet_jax.trees.guard import unguarded
from quantnet_jax.trees.tree import Rule, tree_quantizer

FORWARDS = ("soft", "hard", "float")
ORDER = (7, 1, 2, 8, 13, 10, 6, 4, 3, 5, 9, 11, 12, 15)
"""The laws that `check_quantizer` knows, in the order of checking: what runs eagerly
comes first, so that a fault is reported under its own number."""


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
    """Raises AssertionError with the law's number if `q` breaks a law but the 14th.

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
      >>> from quantnet_jax.quantizers.binary.ste import binary_ste
      >>> check_quantizer(binary_ste(), forward="hard", shape=(3, 3, 2, 4))
    """
    laws = set(laws)
    if forward not in FORWARDS:
        raise ValueError(f"`forward` is {forward!r}, expected one of {FORWARDS}")
    if not laws <= set(ORDER):
        raise ValueError(
            f"`laws` has {sorted(laws - set(ORDER))}, expected {sorted(ORDER)}"
        )
    if forward == "soft" and 5 in laws and (anneal is None or len(anneal) < 2):
        raise ValueError(
            f"`anneal` is {anneal!r}; forward='soft' needs two or more steps along the "
            "schedule (or leave 5 out of `laws`)"
        )
    case = None
    for number in sorted(laws | {7}, key=ORDER.index):
        try:
            if case is None:  # by law 7, whose subject is what may go wrong here
                case = _make_case(q, forward, shape, seed, perturb)._replace(
                    anneal=anneal, tolerance=tolerance
                )
                if binary is not None:
                    case = case._replace(binary=binary)
                if parameter_free is not None:
                    case = case._replace(parameter_free=parameter_free)
            CHECKS[number](case)
        except Exception as e:
            kind = "" if isinstance(e, AssertionError) else f"{type(e).__name__}: "
            raise AssertionError(f"law {number}: {kind}{str(e).strip()}") from e


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


def _make_case(q, forward, shape, seed, perturb) -> Case:
    """Parameters, weights and the jitted function of a check."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=shape).astype(np.float32)
    zeros = np.where(rng.random(shape) < 0.2, np.float32(0), normal)
    key, init_key = jax.random.split(jax.random.key(seed))
    start = jax.jit(q.init)(init_key, jnp.asarray(zeros))

    def noisy(x):
        x = np.asarray(x)
        spread = np.sqrt(np.mean(x * x)) or 1.0
        noise = perturb * spread * rng.normal(size=x.shape)
        return jnp.asarray(x + noise.astype(x.dtype))

    qparams = jax.tree.map(noisy, start)
    levels = _levels(q, qparams, jnp.asarray(zeros))
    midpoints = (levels[1:] + levels[:-1]) / 2
    special = np.concatenate([midpoints, levels, np.asarray([-1.0, 1.0, 0.0])])
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
        binary=levels.size == 2,
        parameter_free=not jax.tree.leaves(start),
        anneal=None,
        key=key,
        start=start,
        qparams=qparams,
        weights={k: jnp.asarray(w, jnp.float32) for k, w in families.items()},
        traces=traces,
        run=jax.jit(everything),
        tolerance=0.0,
    )


def _levels(q, qparams, w) -> np.ndarray:
    """Levels of the (first) table of `q`; none if there is none or `hard` fails."""
    try:
        qt = q.hard(qparams, w)
    except Exception:  # law 2 will say so
        return np.zeros(0)
    if not is_qtensor(qt):
        return np.zeros(0)
    return np.asarray(qt.levels).reshape(-1, qt.levels.shape[-1])[0]


def _everything(q, cotangent, qparams, w, step, key) -> dict:
    """All that a training step and a deployment take from a quantizer."""

    def loss(qparams, w):
        soft = q.soft(qparams, w, step=step, key=key)
        penalty = q.penalty(qparams, w, step=step)
        return jnp.sum(soft * cotangent) + penalty, (soft, penalty)

    grads, (soft, penalty) = jax.grad(loss, argnums=(0, 1), has_aux=True)(qparams, w)
    hard = q.hard(qparams, w)
    if q.gradient:
        grads = (*grads, q.gradient(qparams, w, cotangent, step=step))
    out = {"soft": soft, "penalty": penalty, "grads": grads, "hard": hard}
    if q.project:
        out["project"] = q.project(qparams, w, step=step)
    return out


def _law12(case: Case) -> None:
    """Replicas under pmap are equal, and equal to the result of one device."""
    devices = jax.local_device_count()
    if devices == 1:
        return
    args = (case.qparams, case.weights["random with zeros"], at(1), case.key)
    single = case.run(*args)
    replicate = jax.pmap(
        lambda _, *args: case.run.__wrapped__(*args), in_axes=(0,) + (None,) * 4
    )
    replicas = replicate(jnp.arange(devices), *args)
    # On the host first: indexing a sharded array would turn -0.0 into 0.0.
    replicas = jax.device_get(replicas)
    for path, x in jax.tree_util.tree_leaves_with_path(replicas):
        for device, replica in enumerate(x):
            what = f"{jax.tree_util.keystr(path)} of replicas 0 and {device}"
            same_bits(x[0], replica, what)
    replica = jax.tree.map(lambda x: x[0], replicas)
    if is_qtensor(single["hard"]):
        same_bits(replica["hard"].codes, single["hard"].codes, "codes, pmap and jit")
    for name in single:
        close(replica[name], single[name], f"{name}, pmap and jit")


def _law15(case: Case) -> None:
    """Weights of any float dtype are computed in float32; shapes suffice to see it."""
    if not isinstance(case.q, Quantizer):  # one of activations, which its site casts
        return
    for dtype in ("bfloat16", "float16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            w = jax.ShapeDtypeStruct(case.weights["random"].shape, dtype)
            q = unguarded(tree_quantizer([Rule("w", case.q)], {"w": w}))
            key = jax.eval_shape(lambda: jax.random.key(0))
            run = functools.partial(_everything_of_tree, q)
            out = jax.eval_shape(run, key, {"w": w})
        for path, x in jax.tree_util.tree_leaves_with_path(out):
            wanted = dtype if path[0].key == "like w" else "float32"
            if x.dtype not in (wanted, jnp.uint8):
                name = jax.tree_util.keystr(path[1:])
                raise AssertionError(f"{name} of {dtype} weights is {x.dtype}")


def _everything_of_tree(q: Quantizer, key: jax.Array, params: dict) -> dict:
    """{'like w': what has the dtype of the weights, 'float32': what has not}."""
    step, qparams = at(1), q.init(key, params)
    soft = functools.partial(q.soft, step=step, key=key)
    value, vjp = jax.vjp(soft, qparams, params)
    grads = vjp(value)
    like = {"soft": value, "the gradient for w": grads[1]}
    single = {"init": qparams, "the gradient for qparams": grads[0]}
    if q.gradient:
        like["gradient"] = q.gradient(qparams, params, params, step=step)
    if q.project:
        single["project"], like["project"] = q.project(qparams, params, step=step)
    hard: dict = q.hard(qparams, params)  # pyright: ignore
    (single if is_qtensor(hard["w"]) else like)["hard"] = hard
    single["penalty"] = q.penalty(qparams, params, step=step)
    return {"like w": like, "float32": single}


CHECKS: dict[int, Callable[[Case], None]] = {
    number: {12: _law12, 15: _law15}.get(number) or getattr(law_checks, f"law{number}")
    for number in sorted(ORDER)
}
