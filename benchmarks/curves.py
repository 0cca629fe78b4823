"""Line charts as small SVG files, for pages that have no script."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 150, 26, 34
COLOURS = ("#1b6ca8", "#c8553d", "#4f8a3d", "#7d5ba6", "#b8860b", "#3a3a3a")


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
      name: in the legend.
      points: (x, y) of each point.
      colour: number of it.
      dashed: whether it is.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


def chart(title: str, lines: Sequence[Line], *, xlabel: str = "epoch") -> str:
    """An SVG chart on a white ground, with legend and axes.

    Raises:
      ValueError: there is no finite point.
    """
    points = [p for line in lines for p in line.points if all(map(math.isfinite, p))]
    if not points:
        raise ValueError(f"chart {title!r} has no points")
    (x0, x1), (y0, y1) = (_range([p[i] for p in points]) for i in (0, 1))
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    sx = lambda x: LEFT + (x - x0) / (x1 - x0) * wide
    sy = lambda y: TOP + (y1 - y) / (y1 - y0) * tall
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 16, title, "start", "font-weight='bold'"),
        _text(LEFT + wide / 2, HEIGHT - 6, xlabel, "middle"),
    ]
    for y in ticks(y0, y1):
        parts += [
            f'<path d="M{LEFT} {sy(y):.1f}h{wide}" stroke="#ddd"/>',
            _text(LEFT - 6, sy(y) + 4, f"{y:g}", "end"),
        ]
    parts += [_text(sx(x), HEIGHT - 20, f"{x:g}", "middle") for x in ticks(x0, x1)]
    for n, line in enumerate(lines):
        colour = COLOURS[line.colour % len(COLOURS)]
        style = f'stroke="{colour}" fill="none" stroke-width="1.6"'
        style += ' stroke-dasharray="5 3"' if line.dashed else ""
        path = "L".join(f"{sx(x):.1f} {sy(y):.1f}" for x, y in line.points)
        y = TOP + 8 + 15 * n
        x = WIDTH - RIGHT + 10
        parts += [
            f'<path d="M{path}" {style}/>',
            f'<path d="M{x} {y}h22" {style}/>',
            _text(x + 27, y + 4, line.name, "start"),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in [low, high], about `count` of them.

    Example:
      >>> ticks(0.0, 21.0)
      [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) or 0.5
    return low - pad, high + pad


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>'
        f"{html.escape(text)}</text>"
    )
