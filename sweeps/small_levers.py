"""What else moves QuantNet: one change at a time, on the classes of small_schedule.

The quantizers below are of this study alone, made of parts of the package: a warm-up of
ideas that are worth a member only if they win here.
"""

import jax
import jax.numpy as jnp

from quantnet_jax.core.combine import chain
from quantnet_jax.core.quantizer import PerTensor, Quantizer, as_schedule, factory
from quantnet_jax.experiments.study import FLOAT, Row
from quantnet_jax.quantizers.options import Sharpness, Weight
from quantnet_jax.quantizers.quantnet import quantnet
from quantnet_jax.quantizers.sign import staircase
from quantnet_jax.quantizers.subnet import normalize, subnet
from sweeps import bitat, rows, small_schedule

START, END = 0.03, 20.0
"""The sharpness of the recipe, at the first and at the last step."""
FLOOR = 0.3
"""Least part of the schedule's sharpness that a layer may learn."""
SPREAD = 0.5
"""Deviation of the logarithm of a stochastic sharpness."""
LATE, DECIDED = 0.7, 0.9
"""From this part of the sharpness' growth on, weights whose soft value is beyond this
are frozen."""


def _ending(steps: Quantizer) -> Quantizer:
    """QuantNet with another end than tanh steps of a scheduled sharpness."""
    return chain(normalize("rms"), subnet(), normalize("rms"), steps)


@factory
def learned_sharpness(*, sharpness: Sharpness = 1.0) -> Quantizer:
    """QuantNet whose layers learn a factor of the sharpness.

    Forward: tanh(v f c), f = FLOOR + (1 - FLOOR) exp(s), v = sharpness(step).
    Backward: exact autodiff, for s as well.
    Learned: s, one per tensor, from 0.
    """
    v, plain = as_schedule(sharpness), staircase()
    init = lambda key, w: PerTensor(jnp.zeros((), jnp.float32))
    part = lambda s: FLOOR + (1.0 - FLOOR) * jnp.exp(s.value)

    def soft(qparams, w, *, step, key=None):
        return jnp.tanh(v(step) * part(qparams) * w)

    return _ending(plain._replace(init=init, soft=soft))


@factory
def stochastic_sharpness(*, sharpness: Sharpness = 1.0) -> Quantizer:
    """QuantNet whose sharpness is drawn at each step, around the schedule.

    Forward: tanh(v exp(SPREAD e) c), e normal, one per tensor; e = 0 without a key.
    Backward: exact autodiff.
    """
    v, plain = as_schedule(sharpness), staircase()

    def soft(qparams, w, *, step, key=None):
        e = 0.0 if key is None else jax.random.normal(key, (), jnp.float32)
        return jnp.tanh(v(step) * jnp.exp(SPREAD * e) * w)

    return _ending(plain._replace(soft=soft))


@factory
def frozen(*, sharpness: Sharpness = 1.0) -> Quantizer:
    """QuantNet whose decided weights get no gradient once the sharpness is high.

    Forward: as `quantnet` without a scale. Backward: of it, but 0 where |soft| is above
    DECIDED and the sharpness above its LATE-th part, in logarithms from START to END.
    """
    v, q = as_schedule(sharpness), quantnet(sharpness=sharpness, scale="none")
    late = START * (END / START) ** LATE

    def soft(qparams, w, *, step, key=None):
        b = q.soft(qparams, w, step=step, key=key)
        stop = (jnp.abs(b) > DECIDED) & (v(step) > late)
        return jnp.where(stop, jax.lax.stop_gradient(b), b)

    return q._replace(soft=soft)


@jax.custom_vjp
def _weighed(importance: jax.Array, c: jax.Array) -> jax.Array:
    """`c`; the "gradient" of the importance moves it towards |dL/dc c|."""
    return c


def _weighed_back(held, g):
    importance, c = held
    return importance - jnp.abs(g * c), g


_weighed.defvjp(lambda importance, c: (c, (importance, c)), _weighed_back)


@factory
def important(*, sharpness: Sharpness = 1.0, penalty: Weight = 0.0) -> Quantizer:
    """QuantNet whose penalty is weighted by the importance of each weight.

    Forward: of `quantnet` without a scale. Backward: exact autodiff.
    Penalty: penalty(step) times the mean of (1 - b^2) i / (mean of i over a filter),
    with i a moving average of |dL/dc c|, c what the sub-network returns.
    Learned: i by plain gradient descent, see IMPORTANCE.
    """
    v, weight, plain = as_schedule(sharpness), as_schedule(penalty), staircase()
    init = lambda key, w: PerTensor({"importance": jnp.zeros(w.shape, jnp.float32)})

    def soft(qparams, w, *, step, key=None):
        return jnp.tanh(v(step) * _weighed(qparams.value["importance"], w))

    def distance(qparams, w, *, step):
        i = jax.lax.stop_gradient(qparams.value["importance"])
        i = i / (jnp.mean(i, axis=tuple(range(w.ndim - 1)), keepdims=True) + 1e-30)
        return weight(step) * jnp.mean(i * (1.0 - jnp.tanh(v(step) * w) ** 2))

    return _ending(plain._replace(init=init, soft=soft, penalty=distance))


SCHEDULE = {"schedule": "exponential", "start": START, "end": END, "until": 1.0}


def own(name: str, more: str = "", **changes) -> Row:
    """A quantizer of this file by the recipe's schedule."""
    return Row(f"sweeps.small_levers:{name}(sharpness={SCHEDULE!r}{more})", changes)


def with_options(**options) -> Row:
    """QuantNet by the recipe's schedule, with other options."""
    row = rows.schedule("quantnet", START, END)
    return row._replace(changes={**row.changes, **options})


Q = "quantizer.quantnet."
CLIPPED = {"meta.clip": 1.0}
PENALTY = ", penalty={'schedule': 'linear', 'start': 0.0, 'end': 0.5, 'until': 1.0}"
IMPORTANCE = {"optimizers": bitat.moving_average("quant/.*importance")}


STUDY = small_schedule.STUDY._replace(
    title=small_schedule.STUDY.title.replace(
        "Where the sharpness begins and ends", "One change of QuantNet at a time"
    ),
    rows={
        "quantnet": with_options(),
        "learned sharpness": own("learned_sharpness"),
        "stochastic sharpness": own("stochastic_sharpness"),
        "decided weights frozen": own("frozen"),
        "scale: mean |w|": with_options(**{Q + "scale": "mean_abs"}),
        "unit: filter": with_options(**{Q + "unit": "filter", "share": "shape"}),
        "penalty to 0.5": with_options(**{Q + "penalty.end": 0.5}),
        "gradients clipped to 1": with_options(**{"meta.clip": 1.0}),
        "meta rate 1e-2": with_options(**{"meta.learning_rate": 1e-2}),
        "growth: linear": with_options(**{Q + "sharpness.schedule": "linear"}),
        "average of weights": with_options(ema_decay=0.99),
        FLOAT: Row("identity", {}, (0.2,)),
        "distilled": rows.distilled(with_options()),
        "dorefa": Row("dorefa", {}, (0.4,)),
        "dorefa: distilled": rows.distilled(Row("dorefa", {}, (0.4,))),
        "label smoothing": with_options(**{"task.classification.label_smoothing": 0.1}),
        "penalty by importance": own("important", PENALTY, **IMPORTANCE),
        "learned sharpness, clipped": own("learned_sharpness", **CLIPPED),
        "these, distilled": rows.distilled(own("learned_sharpness", **CLIPPED)),
        "distilled: weight 0.9": rows.distilled(with_options(), 0.9),
        "dorefa: distilled, weight 0.9": rows.distilled(Row("dorefa", {}, (0.4,)), 0.9),
    },
)
