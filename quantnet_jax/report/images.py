"""Images of a report: histograms over time, kernels, predictions, a matrix."""

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantnet_jax.report.charts import as_json, short
from quantnet_jax.report.load import Run, finite
from quantnet_jax.report.terms import escape

# Palettes of 256 colours (red, green, blue, alpha) for both colour schemes: mid tones
# over the page's own background.
FADE = np.asarray([(99, 102, 241, a) for a in range(256)], np.uint8)
SIGNED = np.asarray(
    [(224, 96, 32, min(255, 2 * (127 - i))) for i in range(127)]
    + [(79, 110, 230, min(255, 2 * (i - 127))) for i in range(127, 256)],
    np.uint8,
)
"""Orange below 127, nothing there, blue above."""
LARGEST = 100


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
    image = png(np.round(dark * 255).astype(np.uint8), FADE)
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
        f'<div class="map" data-map="{as_json(data)}"><img alt="" src="{image}">'
        f'</div><small class="axis"><span>{x} {first:.4g}</span><span>weights '
        f"{short(low)} … {short(high)}</span><span>{last:.4g}</span></small></div>"
    )


def kernels(path: str, run: Run) -> str:
    """The first channels of a kernel, before and after quantization."""
    found = _mapping(_mapping(run.exhibits.get("kernels")).get(path))
    shown = ""
    for key, caption in (("before", "float"), ("after", "quantized")):
        if (pixels := _pixels(found.get(key))) is None or pixels.ndim != 2:
            return ""
        shown += f'<figure><img alt="" src="{png(pixels, SIGNED)}">'
        shown += f"<figcaption>{caption}</figcaption></figure>"
    return (
        f'<div class="card"><h3 style="overflow-wrap:anywhere">{escape(path)}</h3>'
        f'<div class="pair">{shown}</div></div>'
    )


def samples(run: Run) -> str:
    """Predictions of single examples: image, truth, prediction."""
    out = strips = ""
    for sample in _list(_mapping(run.exhibits.get("panels")).get("samples")):
        sample = _mapping(sample)
        if "images" in sample:
            strips += _strip(sample)
            continue
        if (pixels := _pixels(sample.get("image"))) is None:
            continue
        kind, mark = ("good", "✓") if sample.get("good") else ("bad", "✗")
        out += (
            f'<figure class="{kind}"><img alt="" src="{png(pixels)}"><figcaption><b>'
            f"{escape(sample.get('title', ''))}</b>{mark} "
            f"{escape(sample.get('text', ''))}</figcaption></figure>"
        )
    return (out and f'<div class="card samples">{out}</div>') + strips


def _strip(sample: Mapping[str, Any]) -> str:
    """The images of one example side by side."""
    shown = ""
    for caption, value in _mapping(sample["images"]).items():
        if (pixels := _pixels(value)) is not None:
            shown += f'<figure><img alt="" src="{png(pixels)}">'
            shown += f"<figcaption>{escape(caption)}</figcaption></figure>"
    title = f"{escape(sample.get('title', ''))}: {escape(sample.get('text', ''))}"
    return f'<div class="card"><h3>{title}</h3><div class="samples">{shown}</div></div>'


def matrix(run: Run) -> str:
    """A square of counts as a table, or as an image where it is large."""
    found = _mapping(_mapping(run.exhibits.get("panels")).get("matrix"))
    names, rows = _list(found.get("names")), _list(found.get("counts"))
    try:
        counts = np.asarray(rows, float)
    except (TypeError, ValueError):
        return ""
    if counts.shape != (len(names), len(names)) or not 0 < len(names) <= LARGEST:
        return ""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    title = f"<h3>{escape(found.get('title', ''))}</h3>"
    if len(names) > 20:
        data = png(np.round(255 * np.sqrt(shares)).astype(np.uint8), FADE)
        image = f'<img class="matrix" alt="" src="{data}">'
        return f'<div class="card">{title}{image}</div>'
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = ""
    for name, row, share in zip(names, counts, shares, strict=True):
        cells = "".join(
            f'<td style="background:rgba(99,102,241,{0.85 * s**0.5:.2f})">{c:g}</td>'
            for c, s in zip(row, share, strict=True)
        )
        body += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    return (
        f'<div class="card">{title}<div class="wide"><table class="counts"><thead><tr>'
        f"<th></th>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _pixels(value: Any) -> np.ndarray | None:
    """uint8 pixels of {'shape', 'data'}; None for what is none of that."""
    try:
        data = np.frombuffer(base64.b64decode(value["data"]), np.uint8)
        pixels = data.reshape([int(n) for n in value["shape"]])
    except (TypeError, ValueError, KeyError):
        return None
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    known = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    return pixels if known and pixels.size else None


def png(pixels: np.ndarray, palette: np.ndarray | None = None) -> str:
    """A PNG as data URL: gray (H, W), RGB (H, W, 3), or (H, W) into a palette."""
    rows = pixels.reshape(len(pixels), -1)
    # Each row starts with its filter type, 0 = none.
    body = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    kind = 3 if palette is not None else 2 if pixels.ndim == 3 else 0

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    size = struct.pack(">IIBBBBB", pixels.shape[1], len(pixels), 8, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", size)]
    if palette is not None:
        chunks.append(chunk(b"PLTE", palette[:, :3].tobytes()))
        chunks.append(chunk(b"tRNS", palette[:, 3].tobytes()))
    chunks += [chunk(b"IDAT", zlib.compress(body, 9)), chunk(b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return "data:image/png;base64," + base64.b64encode(data).decode()
