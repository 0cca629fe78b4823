"""Charts of a report: SVG line charts, histograms over time."""

import json
import math
from collections.abc import Sequence
from typing import Any

from quantnet_jax.logging.scores import SCORES, Unit
from quantnet_jax.report.load import Run, common_unit, finite, gap
from quantnet_jax.report.terms import escape, term

CAPTIONS = {key: caption[0].upper() + caption[1:] for key, caption in SCORES.items()}
_COLOURS = 8  # --c0 .. --c7 in the style sheet
_DASHES = ("", "6 4", "2 3", "9 3 2 3")


def as_json(value: Any) -> str:
    return escape(json.dumps(value, separators=(",", ":"), allow_nan=False))


def short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−") if value else "0"


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Returns round numbers inside [low, high], about `count` of them."""
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _chart(
    title: str,
    series: list[dict],
    *,
    unit: str,
    xlabel: str,
    span: tuple[float, float],
    zero=False,
    height=230,
) -> str:
    """Returns a card with one SVG line chart, '' where no series has a value.

    All charts of a page have one horizontal axis, `span`. Each series is
    {"key", "name", "colour", "dash", "points": [[x, y or None], ...]}.
    """
    points = [p for s in series for p in s["points"] if p[1] is not None]
    if not points:
        return ""
    wide, left, right, top, bottom = 520, 46, 12, 10, 30
    width, tall = wide - left - right, height - top - bottom
    ys = [p[1] for p in points] + ([0.0] if zero else [])
    (x0, x1), y0, y1 = span, min(ys), max(ys)
    pad = 0.06 * (y1 - y0) or abs(y0) * 0.05 or 0.5
    # A quantity that is never negative gets no axis below zero.
    y0, y1 = (max(y0 - pad, 0.0) if y0 >= 0 else y0 - pad), y1 + pad

    def sx(x):
        return left + (x - x0) / (x1 - x0) * width

    def sy(y):
        return top + (y1 - y) / (y1 - y0) * tall

    parts = []
    for y in _ticks(y0, y1, max(2, height // 50)):
        kind = "z" if zero and abs(y) < 1e-12 else "g"
        parts.append(
            f'<line class="{kind}" x1="{left}" x2="{left + width}" y1="{sy(y):.1f}"'
            f' y2="{sy(y):.1f}"/><text x="{left - 7}" y="{sy(y) + 4:.1f}"'
            f' text-anchor="end">{short(round(y, 10))}</text>'
        )
    for x in _ticks(x0, x1, 6):
        parts.append(
            f'<text x="{sx(x):.1f}" y="{height - 12}" text-anchor="middle">'
            f"{short(x) if x < 1000 else f'{x:g}'}</text>"
        )
    for s in series:
        path, pen = [], "M"
        for x, y in s["points"]:
            path.append("" if y is None else f"{pen}{sx(x):.1f} {sy(y):.1f}")
            pen = "M" if y is None else "L"
        # A move without a line draws nothing: the round cap makes it a dot.
        lone = "h0" if sum(map(bool, path)) == 1 else ""
        parts.append(
            f'<path class="s" data-key="{escape(s["key"])}" stroke="var({s["colour"]})"'
            f' stroke-dasharray="{s["dash"]}" d="{"".join(path)}{lone}"/>'
        )
    plot = {
        "x0": x0, "x1": x1, "left": left, "width": width, "unit": unit,
        "xlabel": xlabel, "series": [
            {k: s[k] for k in ("key", "name", "points")} for s in series
        ],
    }  # fmt: skip
    return (
        f"<div><h3>{term(title)}</h3>"
        f'<svg class="chart" viewBox="0 0 {wide} {height}" role="img" aria-label='
        f'"{escape(title)}" data-plot="{as_json(plot)}"><rect width="{wide}" '
        f'height="{height}" fill="transparent"/>{"".join(parts)}<line class="cur" '
        f'y1="{top}" y2="{top + tall}"/></svg></div>'
    )


def _curve(records: list[dict], key: str, x: str, factor: float = 1.0) -> list[list]:
    """Returns [[x, y or None], ...]; long curves are averaged down to 300 points."""
    pairs = [
        (r[x], factor * r[key] if finite(r.get(key)) else None)
        for r in records
        if finite(r.get(x)) and key in r
    ]
    size = max(1, -(-len(pairs) // 300))
    out = []
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        known = [y for _, y in part if y is not None]
        value = float(f"{sum(known) / len(known):.6g}") if known else None
        out.append([round(part[-1][0], 4), value])
    return out


def _with_gap(records: list[dict], unit: Unit) -> list[dict]:
    return [
        r if (value := gap(r.get, unit)) is None else r | {"gap": value}
        for r in records
    ]


def spaced(suffix: str) -> str:
    """A suffix of a number, with one space before it; '' for none."""
    return f" {suffix.strip()}" if suffix else ""


def _title(text: str, suffix: str) -> str:
    return f"{text}, {suffix.strip()}" if suffix else text


def gap_caption(unit: Unit) -> str:
    return "soft − hard" if unit.higher_is_better else "hard − soft"


def _legend(entries: list[tuple[str, str, str, str]]) -> str:
    return "".join(
        f'<button data-key="{escape(key)}" aria-pressed="true"><svg><line x2="24" '
        f'y1="4" y2="4" stroke="var({colour})" stroke-width="3" '
        f'stroke-dasharray="{dash}"/>'
        f"</svg>{escape(name)}</button>"
        for key, name, colour, dash in entries
    )


def curves(runs: Sequence[Run]) -> str:
    everything = [
        r for run in runs for kind in ("train", "eval") for r in run.records[kind]
    ]
    x = "epoch" if any(finite(r.get("epoch")) for r in everything) else "step"
    styles, unit = _run_styles(runs), common_unit(runs)
    places = [r[x] for r in everything if finite(r.get(x))] or [0.0]
    low_x, high_x = min(places), max(places)
    span = (low_x, high_x) if high_x > low_x else (low_x - 0.5, low_x + 0.5)
    score, suffix = unit.name or "score", spaced(unit.suffix)

    def chart(title, kind, key, factor=1.0, suffix="", **options):
        series = [
            {"key": f"run{i}", "name": run.name, "colour": colour, "dash": dash,
             "points": _curve(_with_gap(run.records[kind], unit), key, x, factor)}
            for i, (run, (colour, dash)) in enumerate(zip(runs, styles, strict=True))
        ]  # fmt: skip
        title = _title(title, suffix)
        return _chart(
            title, series, unit=spaced(suffix), xlabel=x, span=span, **options
        )

    low = 230 if len(runs) > 1 else 150
    gaps = chart(
        f"Gap: {gap_caption(unit)}", "eval", "gap", unit.factor, unit.points, zero=True,
        height=low,
    )  # fmt: skip
    train = [
        ("Train loss", "loss", 1.0, ""),
        (f"Train {score}", unit.name, unit.factor, unit.suffix),
        ("Learning rate", "lr", 1.0, ""),
        ("Gradient norm", "grad_norm", 1.0, ""),
        ("Penalty", "penalty", 1.0, ""),
        ("Step time", "step_time", 1000.0, " ms"),
    ]
    used = {k for r in everything for k, v in r.items() if v} | {"loss"}
    others = [
        chart("Sharpness", "eval", "sharpness", height=low),
        chart("Codes flipped", "eval", "flips", 100, "%", height=low),
        *(
            chart(title, "train", key, factor, suffix, height=low)
            for title, key, factor, suffix in train
            if key in used  # no penalty that is always zero
        ),
    ]
    others = [c for c in others if c]
    if len(runs) > 1:
        legend = [
            (f"run{i}", run.name, *style)
            for i, (run, style) in enumerate(zip(runs, styles, strict=True))
        ]
        scores = [
            chart(f"{caption} {score}", "eval", key, unit.factor, unit.suffix)
            for key, caption in CAPTIONS.items()
        ]
        cards = [c for c in (*scores, gaps, *others) if c]
        top = f'<div class="legend">{_legend(legend)}</div>'
    else:
        keys = [("soft", "--c0"), ("hard", "--c1"), ("hard_bn", "--c2")]
        series = [
            {"key": k, "name": CAPTIONS[k], "colour": c, "dash": "",
             "points": _curve(runs[0].records["eval"], k, x, unit.factor)}
            for k, c in keys
        ]  # fmt: skip
        legend = [(s["key"], s["name"], s["colour"], "") for s in series if s["points"]]
        title = _title(f"Test {score}", unit.suffix)
        main = _chart(title, series, unit=suffix, xlabel=x, span=span, height=285)
        legend_row = f'<div class="legend">{_legend(legend)}</div>'
        main = main and main.replace("</h3>", "</h3>" + legend_row) + gaps
        # Beside the tall card three, then two of the others a card.
        cuts = [0, *range(3, len(others), 2), len(others)]
        rest = ["".join(others[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
        cards = [c for c in (main, *rest) if c]
        top = ""
    if not cards:
        return '<p class="dim">No evaluation has been recorded yet.</p>'
    body = "".join(f'<div class="card">{c}</div>' for c in cards)
    return f'{top}<div class="grid">{body}</div><small>Horizontal axis: {x}.</small>'


def _run_styles(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """One colour per method and one dash per seed; one colour per run if all agree."""
    methods = list(dict.fromkeys(r.info("method") for r in runs))
    if len(methods) in (1, len(runs)):
        return [
            (f"--c{i % _COLOURS}", _DASHES[i // _COLOURS % len(_DASHES)])
            for i in range(len(runs))
        ]
    seen: dict[str, int] = {}
    styles = []
    for run in runs:
        method = run.info("method")
        count = seen[method] = seen.get(method, -1) + 1
        colour = f"--c{methods.index(method) % _COLOURS}"
        styles.append((colour, _DASHES[count % len(_DASHES)]))
    return styles
