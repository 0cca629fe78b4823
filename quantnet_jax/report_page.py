"""The HTML page of a report: header, cards, tables, style."""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from quantnet_jax.report_charts import (
    SCORES,
    SCRIPT,
    curves,
    escape,
    finite,
    heat_map,
    short,
)

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#16181d;--dim:#667085;
--line:#e3e6eb;--accent:#4f5bd5;--c0:#4f5bd5;--c1:#d9480f;--c2:#0b8f6a;--c3:#b0309a;
--c4:#a67c00;--c5:#0a84b5;--c6:#c92a4b;--c7:#5f6b7a}
@media(prefers-color-scheme:dark){:root{--bg:#101216;--card:#191c22;--ink:#e8eaee;
--dim:#98a1b0;--line:#2b303a;--accent:#8f99ff;--c0:#8f99ff;--c1:#ff8a4c;--c2:#38c79b;
--c3:#e27bd0;--c4:#d9b13b;--c5:#4cc0ee;--c6:#ff7088;--c7:#a7b0be}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:28px 18px 60px;background:var(--bg);
color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:25px;margin:0 0 8px;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:17px;margin:34px 0 12px}
h3{font-size:14px;margin:0 0 6px;font-weight:600}
.dim,small{color:var(--dim)}small{font-size:12.5px}
.chips{display:flex;flex-wrap:wrap;gap:6px}
.chips span{background:var(--card);border:1px solid var(--line);border-radius:99px;
padding:2px 11px;font-size:13px;overflow-wrap:anywhere}.chips i{font-style:normal;
color:var(--dim);margin-right:5px}
.grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr))}
.cards{display:grid;gap:12px;margin-top:20px;
grid-template-columns:repeat(auto-fit,minmax(140px,1fr))}
.maps{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;
padding:14px 16px;min-width:0}
.card b{display:block;font-size:27px;line-height:1.25;font-variant-numeric:tabular-nums;
letter-spacing:-.02em}.card b em{font:500 15px system-ui;color:var(--dim)}
.key{border-color:var(--accent)}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;margin:0 0 10px;font-size:13px}
.legend button{all:unset;cursor:pointer;display:flex;gap:6px;align-items:center;
overflow-wrap:anywhere}.legend button:focus-visible{outline:2px solid var(--accent)}
.legend button[aria-pressed=false]{opacity:.35}.legend svg{flex:none;width:24px;height:8px}
.chart{display:block;width:100%;height:auto;touch-action:pan-y;overflow:visible}
.chart text{fill:var(--dim);font:12px system-ui,sans-serif}
.chart .g{stroke:var(--line)}.chart .z{stroke:var(--dim);stroke-dasharray:2 3}
.chart .s{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .cur{stroke:var(--dim);visibility:hidden}
.wide{overflow-x:auto;padding:4px 0}
table{border-collapse:collapse;width:100%;font-size:13.5px;
font-variant-numeric:tabular-nums}
th,td{padding:6px 12px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
thead th{border:0;color:var(--dim);font-weight:500;font-size:12.5px}
th:first-child,td:first-child{text-align:left}tbody tr:hover{background:var(--bg)}
.bar{display:inline-block;width:90px;height:8px;margin-left:9px;border-radius:4px;
background:var(--line);overflow:hidden}
.bar span{display:block;height:100%;border-radius:4px;background:var(--accent)}
.map{position:relative;height:132px;background:var(--bg);border-radius:6px;
overflow:hidden;touch-action:pan-y}
.map img{position:absolute;inset:0;width:100%;height:100%;image-rendering:pixelated}
.axis{display:flex;justify-content:space-between}
details{margin-top:12px}summary{cursor:pointer;font-weight:600;overflow-wrap:anywhere}
details[open]>summary{margin-bottom:10px}
pre{overflow:auto;font-size:12.5px;margin:0}
#tip{position:fixed;pointer-events:none;z-index:9;background:var(--ink);color:var(--bg);
border-radius:8px;padding:7px 11px;font-size:12.5px;line-height:1.45;max-width:280px;
font-variant-numeric:tabular-nums;visibility:hidden;white-space:pre}
#tip svg{display:block;width:192px;height:44px;margin-top:5px;fill:currentColor}
"""


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.2f} pt".replace("-", "−")


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
    return f'{escape(text)}<span class="bar"><span style="width:{share:.1f}%"></span></span>'


def _layers(run: Any) -> str:
    """Returns the per-layer table and the histograms over time of one run."""
    records = run.records["layers"]
    layers = run.result.get("layers") or (records[-1]["layers"] if records else {})
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
        " runs to the right, darker = more weights. Hover for the histogram.</small></p>"
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
        f'<div class="card {kind}"><span class="dim">{escape(label)}</span><b>{text}</b></div>'
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
            escape(r.name), escape(r.info("method") or "–"), escape(r.info("seed") or "–"),
            *(_percent(r.score(k)) for k in shown), _points(r.gap()), escape(_status(r)),
        ]
        for r in runs
    ]  # fmt: skip
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
                f"<details{' open' if i == 0 else ''}><summary>{escape(run.name)}</summary>"
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
        f"<title>{escape(title)} · QuantNet report</title><style>{_STYLE}</style></head>"
        f'<body>{"".join(body)}<div id="tip"></div><script>{SCRIPT}</script></body></html>\n'
    )
