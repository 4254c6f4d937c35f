"""The plot of a report card, drawn with pillow: divergence against size, and error by layer. Knows no networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

WIDTH, HEIGHT, MARGIN = 1200, 440, 78
INK, FAINT, OURS, STOCK = "#222222", "#dddddd", "#c2410c", "#4b6a88"
TEXT = 16  # pixels


@dataclass(frozen=True)
class Point:
    """One checkpoint: its size in bytes and its mean KL."""

    label: str
    nbytes: int
    kl: float
    ours: bool


def quality_plot(points: Sequence[Point], layer_errors: Sequence[float], floor: float) -> bytes | None:
    """A PNG, or None where pillow is not installed."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return None
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    _sizes(_Panel(draw, font, MARGIN, WIDTH // 2 - 20), points, floor)
    _layers(_Panel(draw, font, WIDTH // 2 + MARGIN, WIDTH - 24), layer_errors)
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


class _Panel:
    """A frame from `left` to `right` with a logarithmic vertical axis."""

    def __init__(self, draw: Any, font: Any, left: int, right: int) -> None:
        self.draw, self.font, self.left, self.right = draw, font, left, right
        self.top, self.bottom = 44, HEIGHT - 60
        self.low, self.high = -3.0, 0.0

    def title(self, text: str, below: str) -> None:
        self.draw.text((self.left, 12), text, INK, self.font)
        self.draw.text(((self.left + self.right) / 2, HEIGHT - 18), below, INK, self.font, anchor="mm")

    def scale(self, values: Sequence[float]) -> None:
        """Whole powers of ten around `values`, each with a line."""
        logs = [math.log10(v) for v in values if v > 0] or [-1.0]
        self.low, self.high = math.floor(min(logs)), math.ceil(max(logs) + 1e-9)
        self.high = max(self.high, self.low + 1)
        for power in range(int(self.low), int(self.high) + 1):
            y = self.y(10.0**power)
            self.draw.line((self.left, y, self.right, y), FAINT)
            self.draw.text((self.left - 8, y), f"1e{power}", INK, self.font, anchor="rm")
        self.draw.rectangle((self.left, self.top, self.right, self.bottom), outline=INK)

    def y(self, value: float) -> float:
        log = min(max(math.log10(value), self.low), self.high) if value > 0 else self.low
        return self.bottom - (log - self.low) / (self.high - self.low) * (self.bottom - self.top)


def _sizes(panel: _Panel, points: Sequence[Point], floor: float) -> None:
    panel.title("mean KL from the source, in nats", "size on disk, GB")
    panel.scale([p.kl for p in points])
    sizes = [p.nbytes / 1e9 for p in points]
    low, high = min(sizes), max(sizes)
    span = (high - low) or high or 1.0

    def x(size: float) -> float:
        return panel.left + (0.08 + 0.84 * (size - low) / span) * (panel.right - panel.left)

    for tick in (low, (low + high) / 2, high) if high > low else (low,):
        panel.draw.text((x(tick), panel.bottom + 16), f"{tick:.3g}", INK, panel.font, anchor="mm")
    if panel.low <= math.log10(max(floor, 1e-300)) <= panel.high:
        panel.draw.line((panel.left, panel.y(floor), panel.right, panel.y(floor)), STOCK)
    for point in points:
        at = x(point.nbytes / 1e9), panel.y(point.kl)
        colour = OURS if point.ours else STOCK
        panel.draw.ellipse((at[0] - 6, at[1] - 6, at[0] + 6, at[1] + 6), colour)
        to_the_left = at[0] > (panel.left + panel.right) / 2
        place = (at[0] - 12, at[1] - 8) if to_the_left else (at[0] + 12, at[1] - 8)
        panel.draw.text(place, point.label[:40], colour, panel.font, anchor="rm" if to_the_left else "lm")


def _layers(panel: _Panel, errors: Sequence[float]) -> None:
    panel.title("squared error of hidden states, relative", f"after layer 1 to {len(errors)}")
    panel.scale(errors)
    step = (panel.right - panel.left) / max(1, len(errors))
    for i, error in enumerate(errors):
        left = panel.left + i * step
        panel.draw.rectangle((left + step * 0.15, panel.y(error), left + step * 0.85, panel.bottom), OURS)
