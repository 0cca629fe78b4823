"""The HTML page of a report: header, cards, tables."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from quantnet_jax.logging.scores import Unit, further, show
from quantnet_jax.report.assets import SCRIPT, STYLE
from quantnet_jax.report.charts import (
    CAPTIONS,
    curves,
    gap_caption,
    short,
    spaced,
)
from quantnet_jax.report.images import heat_map, kernels, matrix, samples
from quantnet_jax.report.load import Group, Run, common_unit, differences, finite
from quantnet_jax.report.terms import escape, term, terms


def _number(unit: Unit, value: float) -> str:
    return unit.number(value).replace("-", "−")


def _value(unit: Unit, value: float | None) -> str:
    return "–" if value is None else _number(unit, value) + spaced(unit.suffix)


def _signed(unit: Unit, value: float) -> str:
    """A difference; exactly zero has no sign."""
    return (unit.signed(value) if value else unit.number(0.0)).replace("-", "−")


def _difference(unit: Unit, value: float | None) -> str:
    return "–" if value is None else _signed(unit, value) + spaced(unit.points)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; cells are HTML already."""
    head = "".join(f"<th>{term(h)}</th>" for h in headers)
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return (
        f'<div class="card wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _bar(value: Any, largest: float, show: Callable[[float], str]) -> str:
    if not finite(value):
        return "–"
    share = 100 * value / largest if largest > 0 else 0
    bar = f'<span class="bar"><span style="width:{share:.1f}%"></span></span>'
    return escape(show(value)) + bar


def _layers(run: Run) -> str:
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
                _bar(v.get("distance"), largest, short),
                *(
                    _bar(v.get(k), 1.0, lambda share: f"{100 * share:.1f} %")
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
    pairs = "".join(kernels(path, run) for path in layers)
    first = (
        "<h3>Kernels</h3><p><small>The first channels of each, inputs down, outputs "
        "across; orange is negative, blue positive.</small></p>"
    )
    out = _table(headers, rows)
    if shown:
        out += f'<div class="space"></div>{note}<div class="maps">{shown}</div>'
    if pairs:
        out += f'<div class="space"></div>{first}<div class="maps">{pairs}</div>'
    return out


def _predictions(run: Run) -> str:
    """What the hard network predicts, of tasks that have something to show."""
    parts = [matrix(run), samples(run)]
    if not any(parts):
        return ""
    return f'<h2>Predictions</h2><div class="grid">{"".join(parts)}</div>'


def _sizes(run: Run) -> list[tuple[str, str, str, str]]:
    """Cards of size, compression and products."""
    size = run.exhibits.get("size")
    size, cards = size if isinstance(size, dict) else {}, []
    payload, ratio = size.get("payload", 0), size.get("compression", 0)
    if finite(payload) and payload:
        cards.append(("Size", f"{payload / 1000:,.1f}", "kB", ""))
    if finite(ratio) and ratio:
        cards.append(("Compression", f"{ratio:.1f}", "×", ""))
    macs = size.get("macs")
    known = macs.items() if isinstance(macs, dict) else ()
    macs = {k: v for k, v in known if finite(v)}
    if total := sum(macs.values()):
        most = max(macs, key=macs.__getitem__)
        share = f"MACs, {macs[most] / total:.0%} {most} bit"
        cards.append((share, f"{total / 1e6:,.2f}", "M", ""))
    return cards


def _status(run: Run) -> str:
    steps = [r["step"] for kind in run.records.values() for r in kind]
    if run.result:
        return f"finished, {run.info('steps') or max(steps, default=0)} steps"
    return f"in progress, step {max(steps, default=0)}"


def _chips(run: Run) -> str:
    pairs = [(k, run.info(k)) for k in ("method", "data", "model", "seed", "device")]
    pairs += [("commit", run.info("commit")[:10]), ("status", _status(run))]
    if finite(run.result.get("seconds")):
        pairs.append(("time", f"{run.result['seconds'] / 60:.1f} min"))
    versions = run.result.get("versions")
    pairs += sorted(versions.items()) if isinstance(versions, dict) else []
    return "".join(
        f"<span><i>{escape(k)}</i>{escape(v)}</span>" for k, v in pairs if v != ""
    )


def _cards(run: Run) -> str:
    unit, cards = run.unit, []
    for key, caption in CAPTIONS.items():
        if (value := run.score(key)) is not None:
            kind = "key" if key == "hard" else ""
            cards.append((caption, _number(unit, value), unit.suffix, kind))
    full, hard = run.score("float"), run.score("hard")
    lost = None if full is None or hard is None else unit.gap(full, hard)
    of_float = gap_caption(unit).replace("soft", "float")
    for caption, value in (
        (f"Gap {gap_caption(unit)}", run.gap()),
        (of_float[0].upper() + of_float[1:], lost),
    ):
        if value is not None:
            cards.append((caption, _signed(unit, value), unit.points, ""))
    for key, caption in further(run.result).items():
        if finite(value := run.result[key]):
            cards.append(
                (caption[0].upper() + caption[1:], show(key, value, unit), "", "")
            )
    cards += _sizes(run)
    return "".join(
        f'<div class="card {kind}"><span class="dim">{term(caption)}</span>'
        f"<b>{number}<em>{escape(spaced(suffix))}</em></b></div>"
        for caption, number, suffix, kind in cards
    )


def _comparison(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    unit = common_unit(runs)
    shown = [k for k in CAPTIONS if any(r.score(k) is not None for r in runs)]
    captions = [CAPTIONS[k] for k in shown] + ["Gap"]

    def cell(score):
        if score is None:
            return "–"
        mean, spread = score
        text = _number(unit, mean)
        return text + (f" ± {unit.number(spread)}" if spread is not None else "")

    means = [
        [
            escape(g.caption),
            str(g.runs),
            *(cell(g.scores.get(k)) for k in (*shown, "gap")),
        ]
        for g in groups
    ]
    rows = [
        [
            *map(escape, (r.name, r.info("method") or "–", r.info("seed") or "–")),
            *(escape(_value(r.unit, r.score(k))) for k in shown),
            escape(_difference(r.unit, r.gap())),
            escape(_status(r)),
        ]
        for r in runs
    ]
    out = ""
    if means:
        metric = f"{unit.name} {unit.suffix.strip()}".strip()
        title = "Methods: mean ± standard deviation over runs"
        title += f", {metric}" if metric else ""
        out += f"<h2>{escape(title)}</h2>"
        out += _table(["method", "runs", *captions], means)
    headers = ["run", "method", "seed", *captions, "status"]
    out += "<h2>Runs</h2>" + _table(headers, rows)
    if differ := differences(runs):
        rows = [[escape(k), *map(escape, v)] for k, v in differ.items()]
        out += "<h2>Differences of the configurations</h2>"
        out += _table(["key", *(r.name for r in runs)], rows)
    return out


def render(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """Returns the page.

    Args:
      runs: at least one.
      groups: of the finished ones; shown with two runs or more.
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
        f"<p><small>Scores{count} are those of the last evaluation, never the best one."
        f" Gap = {gap_caption(common_unit(runs))}: positive where hard is worse."
        "</small></p>"
    )
    body.append("<h2>Curves</h2>" + curves(runs))
    body.append(_predictions(runs[0]) if single else "")
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
                f"{chips}{inside}{_predictions(run)}</details>"
            )
    body.append(terms())
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
