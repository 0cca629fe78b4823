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
    case: list[laws.Case] = []  # made by the first law, so that its failure has a number
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


def _make_case(
    q, forward, binary, parameter_free, anneal, shape, seed, perturb
) -> laws.Case:
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

    return laws.Case(
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


def _law12(case: laws.Case) -> None:
    devices = jax.local_device_count()
    if devices == 1:
        return
    args = (case.qparams, case.weights["random with zeros"], laws.step(1), case.key)
    single = case.run(*args)
    replicate = jax.pmap(
        lambda _, *args: case.run.__wrapped__(*args), in_axes=(0,) + (None,) * 4
    )
    replicas = replicate(jnp.arange(devices), *args)
    for path, x in jax.tree_util.tree_leaves_with_path(replicas):
        for device, replica in enumerate(np.asarray(x)):
            what = f"{jax.tree_util.keystr(path)} of replicas 0 and {device}"
            laws.same_bits(x[0], replica, what)
    replica = jax.tree.map(lambda x: x[0], replicas)
    if is_qtensor(single["hard"]):
        laws.same_bits(replica["hard"].codes, single["hard"].codes, "codes, pmap and jit")
    for name in single:
        laws.close(replica[name], single[name], f"{name}, pmap and jit")


CHECKS = {
    1: laws.law1,
    2: laws.law2,
    3: laws.law3,
    4: laws.law4,
    5: laws.law5,
    6: laws.law6,
    7: laws.law7,
    8: laws.law8,
    9: laws.law9,
    10: laws.law10,
    11: laws.law11,
    12: _law12,
    13: laws.law13,
}


