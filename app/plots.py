"""Small line plots as SVG, in the page's own colours. Gradio's own need script made of text, which our policy refuses.

A plot is a picture with words: a reader of screens gets its last, least and greatest value.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 320, 96, 44, 8, 8  # units of the picture, which scales with its place
FEWEST_DOTS = 60  # more points than these are a line without dots


@dataclass(frozen=True)
class Series:
    """What is plotted over the answers of a session. values: None where it is not known   most: of the scale"""

    title: str
    unit: str
    values: Sequence[float | None]
    most: float | None = None


def plot(series: Series) -> str:
    """HTML: the title, the last value, and the line; only a word where nothing is known yet."""
    known = [value for value in series.values if value is not None]
    title, unit = html.escape(series.title), html.escape(series.unit)
    if not known:
        return f'<figure class="plot"><figcaption>{title}<span>nothing yet</span></figcaption></figure>'
    top = series.most or max(known) or 1.0
    says = f"{title}: last {_number(known[-1])}, least {_number(min(known))}, most {_number(max(known))} {unit}"
    caption = f"<figcaption>{title}<span>{_number(known[-1])} {unit}</span></figcaption>"
    picture = _scale(top) + "".join(_stretch(points, top) for points in _stretches(series.values))
    return (
        f'<figure class="plot">{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{says}">'
        f"{picture}</svg></figure>"
    )


def _scale(top: float) -> str:
    lines = []
    for part in (0.0, 0.5, 1.0):
        y = _y(part * top, top)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y}" y2="{y}" class="grid"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{_number(part * top)}</text>')
    return "".join(lines)


def _stretches(values: Sequence[float | None]) -> list[list[tuple[float, int, float]]]:
    """Points without gaps: where in the picture, the number of the answer, and the value."""
    step = (WIDTH - LEFT - 6) / max(1, len(values) - 1)
    found: list[list[tuple[float, int, float]]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            found.append([])
        else:
            found[-1].append((LEFT + 3 + place * step, place + 1, value))
    return [points for points in found if points]


def _stretch(points: list[tuple[float, int, float]], top: float) -> str:
    line = " ".join(f"{x:.1f},{_y(value, top)}" for x, _, value in points)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{_y(value, top)}" r="2.5"><title>answer {number}: {_number(value)}</title></circle>'
        for x, number, value in (points if len(points) <= FEWEST_DOTS else points[-1:])
    )
    return f'<polyline points="{line}"/>{dots}'


def _y(value: float, top: float) -> float:
    part = min(1.0, max(0.0, value / top))
    return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
