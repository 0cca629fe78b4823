"""The HTML page of a report: header, cards, tables."""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from quantnet_jax.report.assets import SCRIPT, STYLE
from quantnet_jax.report.charts import SCORES, curves, escape, finite, heat_map, short


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _points(value: float | None) -> str:
    if not value:
        return "–" if value is None else "0.00 pt"  # exactly zero has no sign
    return f"{100 * value:+.2f} pt".replace("-", "−")


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; cells are HTML already."""
    head = "".join(f"<th>{escape(h)}</th>" for h in headers)
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return (
        f'<div class="card wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _bar(value: Any, largest: float, text: str) -> str:
    if not finite(value):
        return "–"
    share = 100 * value / largest if largest > 0 else 0
    bar = f'<span class="bar"><span style="width:{share:.1f}%"></span></span>'
    return escape(text) + bar


def _layers(run: Any) -> str:
    """Returns the per-layer table and the histograms over time of one run."""
    records = run.records["layers"]
    layers = records[-1]["layers"] if records else run.result.get("layers") or {}
    if not layers:
        return '<p class="dim">No layer has been recorded yet.</p>'
    distances = [v["distance"] for v in layers.values() if finite(v.get("distance"))]
    largest = max(distances, default=0.0)
    rows = []
    for path, v in layers.items():
        shape = "×".join(map(str, v.get("shape", []))) or "–"
        rows.append(
            [
                escape(path), escape(shape), escape(v.get("bits", "–")),
                _bar(v.get("distance"), largest, short(v.get("distance") or 0.0)),
                *(
                    _bar(v.get(k), 1.0, _percent(v[k], 1) if finite(v.get(k)) else "")
                    for k in ("undecided", "flips")
                ),
            ]
        )  # fmt: skip
    headers = ("layer", "shape", "bits", "(soft − hard)²", "undecided", "flips")
    maps = [heat_map(path, run) for path in layers]
    shown = "".join(m for m in maps if m)
    note = (
        "<h3>Weights over time</h3><p><small>Soft weights divided by their scale; time"
        " runs to the right, stronger = more weights. Hover for the histogram.</small>"
        "</p>"
    )
    return _table(headers, rows) + (
        f'<div style="height:16px"></div>{note}<div class="maps">{shown}</div>'
        if shown
        else ""
    )


def _status(run: Any) -> str:
    steps = [r["step"] for kind in run.records.values() for r in kind]
    if run.result:
        return f"finished, {run.info('steps') or max(steps, default=0)} steps"
    return f"in progress, step {max(steps, default=0)}"


def _chips(run: Any) -> str:
    pairs = [(k, run.info(k)) for k in ("method", "data", "model", "seed", "device")]
    pairs += [("commit", run.info("commit")[:10]), ("status", _status(run))]
    if finite(run.result.get("seconds")):
        pairs.append(("time", f"{run.result['seconds'] / 60:.1f} min"))
    versions = run.result.get("versions")
    pairs += sorted(versions.items()) if isinstance(versions, dict) else []
    return "".join(
        f"<span><i>{escape(k)}</i>{escape(v)}</span>" for k, v in pairs if v != ""
    )


def _cards(run: Any) -> str:
    cards = []
    for key, label in SCORES.items():
        value = run.score(key)
        if value is not None:
            number = f"{100 * value:.2f}"
            cards.append(
                (label, f"{number}<em> %</em>", "key" if key == "hard" else "")
            )
    for label, value in (("Gap soft − hard", run.gap()), ("Float − hard", _loss(run))):
        if value is not None:
            number = _points(value).removesuffix(" pt")
            cards.append((label, f"{number}<em> pt</em>", ""))
    return "".join(
        f'<div class="card {kind}"><span class="dim">{escape(label)}</span>'
        f"<b>{text}</b></div>"
        for label, text, kind in cards
    )


def _loss(run: Any) -> float | None:
    full, hard = run.score("float"), run.score("hard")
    return None if full is None or hard is None else full - hard


def _comparison(runs: Sequence[Any], groups: Sequence[Any]) -> str:
    shown = [k for k in SCORES if any(r.score(k) is not None for r in runs)]
    labels = [SCORES[k] for k in shown] + ["Gap"]

    def cell(score):
        if score is None:
            return "–"
        mean, spread = score
        text = f"{100 * mean:.2f}".replace("-", "−")
        return text + (f" ± {100 * spread:.2f}" if spread is not None else "")

    means = [
        [
            escape(g.label),
            str(g.runs),
            *(cell(g.scores.get(k)) for k in (*shown, "gap")),
        ]
        for g in groups
    ]
    rows = [
        [
            *map(escape, (r.name, r.info("method") or "–", r.info("seed") or "–")),
            *(_percent(r.score(k)) for k in shown),
            _points(r.gap()),
            escape(_status(r)),
        ]
        for r in runs
    ]
    out = ""
    if means:
        out += "<h2>Methods: mean ± standard deviation over runs, %</h2>"
        out += _table(["method", "runs", *labels], means)
    headers = ["run", "method", "seed", *labels, "status"]
    return out + "<h2>Runs</h2>" + _table(headers, rows)


def render(runs: Sequence[Any], groups: Sequence[Any]) -> str:
    """Returns the page.

    Args:
      runs: `report.Run`s, at least one.
      groups: `report.Group`s of the finished ones; shown with two runs or more.
    """
    single = len(runs) == 1
    title = runs[0].name if single else f"{len(runs)} runs"
    body = [f"<h1>{escape(title)}</h1>"]
    if single:
        body.append(f'<div class="chips">{_chips(runs[0])}</div>')
        body.append(f'<div class="cards">{_cards(runs[0])}</div>')
    else:
        body.append(_comparison(runs, groups))
    examples = next(filter(None, (r.info("examples") for r in runs)), "")
    count = f" of {escape(examples)} test examples" if examples else ""
    body.append(
        f"<p><small>Accuracies{count} are those of the last evaluation, never the best"
        " one. Gap = soft − hard in percentage points.</small></p>"
    )
    body.append("<h2>Curves</h2>" + curves(runs))
    body.append("<h2>Layers</h2>")
    for i, run in enumerate(runs):
        config = json.dumps(run.config, indent=2, sort_keys=True)
        inside = _layers(run)
        if run.config:
            inside += (
                "<details><summary>Configuration</summary>"
                f'<div class="card"><pre>{escape(config)}</pre></div></details>'
            )
        if single:
            body.append(inside)
        else:
            chips = f'<div class="chips">{_chips(run)}</div><br>'
            body.append(
                f"<details{' open' if i == 0 else ''}>"
                f"<summary>{escape(run.name)}</summary>"
                f"{chips}{inside}</details>"
            )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    # Only this very script may run, and nothing may be loaded from anywhere.
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
        f" script-src 'sha256-{digest}'"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · QuantNet report</title><style>{STYLE}</style></head>"
        f'<body>{"".join(body)}<div id="tip"></div>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )
