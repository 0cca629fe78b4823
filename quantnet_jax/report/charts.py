"""Charts of a report: SVG line charts, histograms over time."""

import base64
import html
import json
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from quantnet_jax.logging.scores import SCORES, Unit
from quantnet_jax.report.load import Run, common_unit, finite, gap

CAPTIONS = {key: caption[0].upper() + caption[1:] for key, caption in SCORES.items()}
_COLOURS = 8  # --c0 .. --c7 in the style sheet
_DASHES = ("", "6 4", "2 3", "9 3 2 3")


def escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _json(value: Any) -> str:
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
    title: str, series: list[dict], *, unit: str, xlabel: str, zero=False, height=230
) -> str:
    """Returns a card with one SVG line chart, '' where no series has a value.

    Each series is {"key", "name", "colour", "dash", "points": [[x, y or None], ...]}.
    """
    points = [p for s in series for p in s["points"] if p[1] is not None]
    if not points:
        return ""
    wide, left, right, top, bottom = 520, 46, 12, 10, 30
    width, tall = wide - left - right, height - top - bottom
    xs, ys = [p[0] for p in points], [p[1] for p in points] + ([0.0] if zero else [])
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    x0, x1 = (x0, x1) if x1 > x0 else (x0 - 0.5, x0 + 0.5)
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
        f"<div><h3>{escape(title)}</h3>"
        f'<svg class="chart" viewBox="0 0 {wide} {height}" role="img" aria-label='
        f'"{escape(title)}" data-plot="{_json(plot)}"><rect width="{wide}" '
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
    score, suffix = unit.name or "score", spaced(unit.suffix)

    def chart(title, kind, key, factor=1.0, suffix="", **options):
        series = [
            {"key": f"run{i}", "name": run.name, "colour": colour, "dash": dash,
             "points": _curve(_with_gap(run.records[kind], unit), key, x, factor)}
            for i, (run, (colour, dash)) in enumerate(zip(runs, styles, strict=True))
        ]  # fmt: skip
        title = _title(title, suffix)
        return _chart(title, series, unit=spaced(suffix), xlabel=x, **options)

    low = 230 if len(runs) > 1 else 150
    gaps = chart(
        f"Gap: {gap_caption(unit)}", "eval", "gap", unit.factor, unit.points, zero=True,
        height=low,
    )  # fmt: skip
    others = [
        chart("Train loss", "train", "loss", height=low),
        chart("Sharpness", "eval", "sharpness", height=low),
        chart("Codes flipped", "eval", "flips", 100, "%", height=low),
    ]
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
        main = _chart(title, series, unit=suffix, xlabel=x, height=285)
        legend_row = f'<div class="legend">{_legend(legend)}</div>'
        main = main and main.replace("</h3>", "</h3>" + legend_row) + gaps
        cards = [c for c in (main, "".join(others)) if c]
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


def heat_map(path: str, run: Run) -> str:
    """Returns the histograms of one layer as an image: columns are evaluations."""
    records = run.records["layers"]
    epochs = {r["step"]: r["epoch"] for r in run.records["eval"] if "epoch" in r}
    known = all(finite(epochs.get(r["step"])) for r in records)
    x, times = ("epoch", epochs) if known else ("step", {})
    found = [
        (
            times.get(r["step"], r["step"]),
            np.asarray(h["edges"], float),
            np.asarray(h["counts"], float),
        )
        for r in records
        if (h := r["layers"].get(path, {}).get("histogram")) and sum(h["counts"]) > 0
    ]
    if not found:
        return ""
    low = min(edges[0] for _, edges, _ in found)
    high = max(edges[-1] for _, edges, _ in found)
    bins = max(len(counts) for _, _, counts in found)
    common = np.linspace(low, high, bins + 1)
    # Histograms with other edges are rebinned through their cumulative counts.
    shares = [
        np.diff(np.interp(common, edges, np.cumsum([0.0, *counts]))) / counts.sum()
        for _, edges, counts in found
    ]
    # The square root keeps the few undecided weights visible beside the peaks.
    dark = np.stack([np.sqrt(s / s.max()) for s in shares], axis=1)[::-1]
    data = {
        "times": [t for t, _, _ in found],
        "xlabel": x,
        "low": float(low),
        "high": float(high),
        "shares": [np.round(s * 1e4).astype(int).tolist() for s in shares],
    }
    first, last = found[0][0], found[-1][0]
    return (
        f'<div class="card"><h3 style="overflow-wrap:anywhere">{escape(path)}</h3>'
        f'<div class="map" data-map="{_json(data)}"><img alt="" src="{_png(dark)}">'
        f'</div><small class="axis"><span>{x} {first:g}</span><span>weights '
        f"{short(low)} … {short(high)}</span><span>{last:g}</span></small></div>"
    )


def _png(dark: np.ndarray) -> str:
    """Encodes [rows, columns] in [0, 1] as an image whose opacity is the value."""
    level = np.round(dark * 255).astype(np.uint8)
    # Each row starts with its filter type, 0 = none.
    rows = np.pad(level, ((0, 0), (1, 0))).tobytes()

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    size = struct.pack(">IIBBBBB", level.shape[1], level.shape[0], 8, 3, 0, 0, 0)
    # One palette for both colour schemes: a mid tone over the page's own background.
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", size),
            chunk(b"PLTE", bytes((99, 102, 241)) * 256),
            chunk(b"tRNS", bytes(range(256))),
            chunk(b"IDAT", zlib.compress(rows, 9)),
            chunk(b"IEND", b""),
        ]
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()
