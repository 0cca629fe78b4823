"""The rows of the studies: which methods, in which order, with which changes."""

from collections.abc import Iterable

from quantnet_jax import quantizers
from quantnet_jax.experiments.columns import PLAIN_STE
from quantnet_jax.experiments.study import FLOAT, Row

ADAM_RATES = (3e-4, 1e-3, 3e-3)
KEY = ("quantnet", "tanh_sign", *PLAIN_STE)
UNFIT = ("identity", "direct", "bitat")
"""No bits, or levels or inputs that are not those of a binary convolution."""
REST = tuple(
    name
    for name, member in quantizers.MEMBERS.items()
    if 1 in member.bits and name not in (*KEY, *UNFIT)
)
"""The other 1-bit members."""


SMALL_TUNED = {
    "float": "float: weight decay 2e-3",
    "quantnet": "weight decay 2e-3",
    "tanh_sign": "tanh_sign: weight decay 0",
    "clipped_ste": "clipped_ste: weight decay 2e-3",
    "binary_ste": "binary_ste: weight decay 0",
    "dorefa": "dorefa: weight decay 2e-3",
}
"""Row -> that row of `ablation` which had the best validation score on a CPU."""


def family(names: Iterable[str] = (*KEY, *REST)) -> dict[str, Row]:
    """The float network and these members, by their recipes."""
    return {FLOAT: Row("identity")} | {name: Row(name) for name in names}


def few(rates: tuple[float, ...]) -> dict[str, Row]:
    """The members of `SMALL_TUNED` by their recipes.

    Args:
      rates: of the straight-through members, which want higher ones than the others.
    """
    rows = family(name for name in SMALL_TUNED if name != FLOAT)
    higher = {
        n: r._replace(learning_rates=rates) for n, r in rows.items() if n in PLAIN_STE
    }
    return rows | higher


def tuned() -> dict[str, Row]:
    """The rows of `SMALL_TUNED`, whose learning rates are searched again."""
    found = {}
    for name, best in SMALL_TUNED.items():
        row = ablation()[best]
        rates = (0.1, 0.2, 0.4, 0.8) if name in PLAIN_STE else (0.05, 0.1, 0.2, 0.4)
        found[name] = Row(row.method, row.changes, rates)
    return found


def schedule(
    method: str, start: float, end: float, until: float = 1.0, **changes: float
) -> Row:
    """A member whose sharpness grows exponentially from `start` to `end`."""
    key = f"quantizer.{method}.sharpness."
    given = {key + "start": start, key + "end": end, key + "until": until}
    return Row(method, given | changes)


def schedules() -> dict[str, Row]:
    """QuantNet with its sharpness from, to and until other values, and its rivals."""
    decay = {"weights.weight_decay": 2e-3}
    q, t = "quantnet", "tanh_sign"
    return {
        "quantnet": schedule(q, 0.03, 20.0),
        "0.1 to 10 until 0.9": schedule(q, 0.1, 10.0, 0.9),
        "tanh_sign": schedule(t, 0.03, 20.0),
        "rate 0.2": schedule(q, 0.03, 20.0)._replace(learning_rates=(0.2,)),
        "from 0.1": schedule(q, 0.1, 20.0),
        "from 0.01": schedule(q, 0.01, 20.0),
        "to 10": schedule(q, 0.03, 10.0),
        "to 50": schedule(q, 0.03, 50.0),
        "weight decay 2e-3": schedule(q, 0.03, 20.0, **decay),
        "until 0.9": schedule(q, 0.03, 20.0, 0.9),
        "tanh_sign: rate 0.2": schedule(t, 0.03, 20.0)._replace(learning_rates=(0.2,)),
        "dorefa": Row("dorefa", {}, (0.4,)),
        "dorefa: weight decay 2e-3": Row("dorefa", decay, (0.4,)),
        "dorefa: rate 0.2": Row("dorefa", {}, (0.2,)),
        "clipped_ste: weight decay 2e-3": Row("clipped_ste", decay, (0.4,)),
    }


def claim() -> dict[str, Row]:
    """Members whose settings were chosen on other classes."""
    fixed = lambda row, rate: row._replace(learning_rates=(rate,))
    plain = {x: fixed(Row(x), 0.4) for x in ("dorefa", "clipped_ste", "binary_ste")}
    return {
        "quantnet": schedule("quantnet", 0.03, 20.0),
        FLOAT: fixed(Row("identity"), 0.2),
        **plain,
        "tanh_sign": schedule("tanh_sign", 0.03, 20.0),
        "quantnet, 0.1 to 10 until 0.9": schedule("quantnet", 0.1, 10.0, 0.9),
    }


def distilled(row: Row, weight: float = 0.5) -> Row:
    """A row whose teacher is the float twin, from which it has the stem as well."""
    terms = ({"name": "distillation", "weight": weight},)
    changes = {"terms": terms, "init_pattern": "params/model/stem/kernel"}
    return row._replace(changes={**row.changes, **changes}, start=FLOAT)


def widths() -> dict[str, Row]:
    """QuantNet of 2 to 4 bits at two rates, LSQ beside it, and float."""
    found = {FLOAT: Row("identity", {}, (0.2,))}
    for rate in (0.1, 0.2):
        for bits in (2, 4):
            row = schedule("quantnet", 0.03, 20.0, **{"quantizer.quantnet.bits": bits})
            found[f"quantnet, {bits} bits, {rate:g}"] = row._replace(
                learning_rates=(rate,)
            )
            row = Row("lsq", {"quantizer.lsq.bits": bits}, (rate,))
            found[f"lsq, {bits} bits, {rate:g}"] = row
    three = schedule("quantnet", 0.03, 20.0, **{"quantizer.quantnet.bits": 3})
    return found | {"quantnet, 3 bits, 0.1": three._replace(learning_rates=(0.1,))}


def fixed() -> dict[str, Row]:
    """The members that matter most, by settings that are not searched."""
    quantnet = schedule("quantnet", 0.03, 20.0)
    tanh = schedule("tanh_sign", 0.03, 20.0)
    rows = {FLOAT: Row("identity"), "quantnet": quantnet, "irnet": Row("irnet")}
    plain = Row("dorefa", {}, (0.3,))
    return rows | {
        "tanh_sign": tanh,
        "dorefa": plain,
        "binary_ste": plain._replace(method="binary_ste"),
    }


def all_layers() -> dict[str, Row]:
    """Of MetaQuant's protocol: with Adam too, which it found to be best for STE."""
    adam = {
        f"{name}, Adam": Row(
            name,
            {"weights.optimizer": "adam", "weights.weight_decay": 0.0},
            ADAM_RATES,
        )
        for name in ("binary_ste", "dorefa", "metaquant", "quantnet", "tanh_sign")
    }
    scaled = {
        f"quantnet, {scale}": Row("quantnet", {"quantizer.quantnet.scale": scale})
        for scale in ("mean_abs", "learned")
    }
    first = family(("quantnet",)) | scaled
    return first | adam | family((*KEY, "metaquant", "irnet", "adabin", "approx_sign"))


def more_bits() -> dict[str, Row]:
    """Every member that offers 2 to 4 bits, and the ternary ones."""
    rows = family(())
    for bits in (2, 3, 4):
        for name in ("quantnet", "tanh_sign", "lsq", "dorefa", "lq_nets", "pact"):
            changes = {f"quantizer.{name}.bits": bits}
            rows[f"{name}, {bits} bits"] = Row(name, changes)
        planes = {"quantizer.quantnet.bits": bits}
        planes["quantizer.quantnet.multibit"] = "planes"
        rows[f"quantnet, {bits} planes"] = Row("quantnet", planes)
    return rows | {"twn": Row("twn"), "bitnet": Row("bitnet")}


def trained_bits() -> dict[str, Row]:
    """QuantNet and LSQ of 4, 3 and 2 bits, by settings that are not searched."""
    found = {}
    for bits in (4, 3, 2):
        changes = {"quantizer.quantnet.bits": bits}
        found[f"quantnet, {bits} bits"] = schedule("quantnet", 0.03, 20.0, **changes)
    for bits in (4, 3, 2):
        found[f"lsq, {bits} bits"] = Row("lsq", {"quantizer.lsq.bits": bits})
    return found


def ablation() -> dict[str, Row]:
    """QuantNet with one factor changed at a time, and its baselines with theirs.

    Last come the factors that were worth most, together.

    BatchNorm recalibration is not a row: every run is scored with and without it.
    """
    q = "quantizer.quantnet."
    narrow = {q + "unit": "weight", q + "width": 16}
    by_filter = {q + "unit": "filter", "share": "shape"}
    by_conv = {q + "unit": "conv", q + "width": 2, "share": "shape"}
    linear = {q + "sharpness.schedule": "linear"}
    bilevel = {"meta.mode": "bilevel"}
    factors = {
        "start: scratch": {},
        "start: warm": {},
        "unit: weight, width 16": narrow,
        "unit: filter": by_filter,
        "unit: conv": by_conv,
        "width: 16": {q + "width": 16},
        "width: 128": {q + "width": 128},
        "depth: 2": {q + "depth": 2},
        "skip: no": {q + "skip": False},
        "norm: standard": {q + "norm": "standard"},
        "norm: none": {q + "norm": "none"},
        "share: layer": {"share": "layer"},
        "share: shape": {"share": "shape"},
        "share: model": {"share": "model"},
        "sharpness from 0.03": {q + "sharpness.start": 0.03},
        "sharpness from 0.1": {q + "sharpness.start": 0.1},
        "sharpness from 0.3": {q + "sharpness.start": 0.3},
        "sharpness from 1": {q + "sharpness.start": 1.0},
        "sharpness to 5": {q + "sharpness.end": 5.0},
        "sharpness to 20": {q + "sharpness.end": 20.0},
        "sharpness to 50": {q + "sharpness.end": 50.0},
        "sharpness until 0.6": {q + "sharpness.until": 0.6},
        "sharpness until 1": {q + "sharpness.until": 1.0},
        "sharpness: linear": linear,
        "penalty to 0.1": {q + "penalty.end": 0.1},
        "penalty to 0.5": {q + "penalty.end": 0.5},
        "penalty to 1": {q + "penalty.end": 1.0},
        "scale: mean |w|": {q + "scale": "mean_abs"},
        "scale: learned": {q + "scale": "learned"},
        "nonlinearity: silu": {q + "nonlinearity": "silu"},
        "orthogonality 0.01": {q + "orthogonality": 0.01},
        "meta rate 1e-3": {"meta.learning_rate": 1e-3},
        "meta rate 1e-2": {"meta.learning_rate": 1e-2},
        "bilevel, first order": bilevel,
        "bilevel, exact": bilevel | {"meta.exact": True},
    }
    decay = {
        f"weight decay {x}": {"weights.weight_decay": float(x)}
        for x in ("0", "1e-4", "2e-3", "5e-3")
    }
    linear_start = {q + "sharpness.start": 0.03}
    scaled = {q + "scale": "mean_abs"}
    more_decay = decay["weight decay 2e-3"]
    factors |= decay | {
        "scale, start": scaled | linear_start,
        "scale, decay": scaled | more_decay,
        "scale, filter": scaled | by_filter,
        "scale, filter, start": scaled | by_filter | linear_start,
        "scale, filter, start, decay": scaled | by_filter | linear_start | more_decay,
    }
    rows = family(("quantnet", "tanh_sign", "clipped_ste", "binary_ste", "dorefa"))
    for name, changes in factors.items():
        start = name.removeprefix("start: ") if name.startswith("start") else ""
        rows[name] = Row("quantnet", changes, initialization=start, like="quantnet")
    t = "quantizer.tanh_sign."
    tanh = {
        "penalty to 0.5": {t + "penalty.end": 0.5},
        "sharpness to 5": {t + "sharpness.end": 5.0},
        "sharpness to 50": {t + "sharpness.end": 50.0},
        "sharpness from 0.03": {t + "sharpness.start": 0.03},
        "sharpness from 1": {t + "sharpness.start": 1.0},
    }
    per_layer = {"per layer": {"quantizer.binary_ste.per": "tensor"}}
    baselines = {"tanh_sign": tanh | decay, "binary_ste": per_layer | decay}
    baselines |= dict.fromkeys((FLOAT, "clipped_ste", "dorefa"), decay)
    for name, found in baselines.items():
        for change, changes in found.items():
            rows[f"{name}: {change}"] = Row(rows[name].method, changes, like=name)
    for method in ("clipped_ste", "binary_ste", "dorefa"):
        adam = {"weights.optimizer": "adam", "weights.weight_decay": 0.0}
        rows[f"{method}: Adam"] = Row(method, adam, ADAM_RATES)
    return rows


def with_activations() -> dict[str, Row]:
    """Both weights and activations quantized."""
    sign = lambda name, **more: {"activation.name": name, **more}
    bits = lambda name, n: sign(name, **{f"activation.{name}.bits": n})
    bi_real = sign("approx_sign", **{"model.bi_real": True})
    return {
        "W1A1 binary_ste, sign_ste": Row("binary_ste", sign("sign_ste")),
        "W1A1 binary_ste, approx_sign, Bi-Real": Row("binary_ste", bi_real),
        "W1A1 quantnet, approx_sign, Bi-Real": Row("quantnet", bi_real),
        "W1A2 binary_ste, pact": Row("binary_ste", bits("pact", 2)),
        "W2A2 lsq, lsq": Row("lsq", {"quantizer.lsq.bits": 2} | bits("lsq", 2)),
        "W4A4 dorefa, dorefa": Row(
            "dorefa", {"quantizer.dorefa.bits": 4} | bits("dorefa", 4)
        ),
    }


def everything() -> dict[str, Row]:
    """Every member by its recipe, with quantized activations, and its variants."""
    variants = {
        f"{name}: {label}": Row(
            name, {f"quantizer.{name}.{key}": x for key, x in options.items()}
        )
        for name, member in quantizers.MEMBERS.items()
        for label, options in member.variants.items()
    }
    members = {name: Row(name) for name in quantizers.MEMBERS}
    return members | with_activations() | variants
