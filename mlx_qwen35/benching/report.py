"""A bench as a Markdown table, as JSON, and as a plot. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import Any

from mlx_qwen35.benching.measuring import Measure
from mlx_qwen35.planning.chips import Chip, label
from mlx_qwen35.planning.roofline import limits
from mlx_qwen35.planning.subject import Subject

WIDTH, HEIGHT, MARGIN = 1000, 420, 70
COLOURS = ("#c2410c", "#4b6a88", "#6b7f3a", "#7a4b88")


@dataclass
class Bench:
    """Everything of one run. conditions: lines on the machine and versions   on_cpu: that is what computes
    load: seconds of ours
    peak: MLX's bytes, those of a peer in this process among them
    energy: whose watts are told, or why none are
    cold, cached: seconds to the first token of a prompt of `cached_length` tokens, new and again
    """

    title: str
    conditions: Sequence[str]
    subject: Subject
    chip: Chip | None
    on_cpu: bool
    load: float
    peak: int
    cold: float
    cached: float
    cached_length: int
    energy: str
    measures: list[Measure] = field(default_factory=list)


def lines_of(bench: Bench) -> list[str]:
    """Markdown."""
    names = list(dict.fromkeys(m.contender for m in bench.measures))
    others = names[1:]
    head = ["prompt", "at once", *(f"{n}, prompt tok/s" for n in names), *(f"{n}, decode tok/s" for n in names)]
    by = " (by CPU seconds)" if bench.on_cpu else ""
    head += [f"ours / {n}, prompt{by}" for n in others] + [f"ours / {n}, decode{by}" for n in others]
    counted = any(m.watts for m in bench.measures)
    head += [f"{n}, watts" for n in names] if counted else []
    head += ["of the limits"] if bench.chip else []
    rows = [head, ["--:"] * len(head)]
    for case in dict.fromkeys(m.case for m in bench.measures):
        found = {m.contender: m for m in bench.measures if m.case == case}
        prefills = [_number(found[n].prefill) if n in found else "-" for n in names]
        decodes = [_number(found[n].decode) if n in found else "-" for n in names]
        ours = found[names[0]]
        ratios = [_ratio(bench, ours, found.get(n), what) for what in ("prefill", "decode") for n in others]
        watts = [f"{found[n].watts:.1f}" if n in found else "-" for n in names] if counted else []
        row = [f"{case.length:,}", str(case.batch), *prefills, *decodes, *ratios, *watts]
        rows.append([*row, _of_limits(bench, ours)] if bench.chip else row)
    table = [f"| {' | '.join(row)} |" for row in rows]
    first = (
        f"A prompt of {bench.cached_length:,} tokens: first token after {bench.cold:.2f} s, asked again "
        f"{bench.cached:.2f} s. Loaded in {bench.load:.1f} s; MLX's peak, of all that run in this process, "
        f"{bench.peak / 1e9:.2f} GB. Energy: {bench.energy}."
    )
    return [f"### {bench.title}", "", *bench.conditions, "", *table, "", first]


def _ratio(bench: Bench, ours: Measure, other: Measure | None, what: str) -> str:
    """By the clock; where the CPU computes also by its seconds, which hold on a machine that others use as well."""
    if other is None or not getattr(other, what):
        return "-"
    told = f"{getattr(ours, what) / getattr(other, what):.2f}"
    spent = getattr(other, f"{what}_cpu")
    return f"{told} ({getattr(ours, f'{what}_cpu') / spent:.2f})" if bench.on_cpu and spent else told


def _of_limits(bench: Bench, ours: Measure) -> str:
    """Prompt and decode, as parts of what the chip's arithmetic and bandwidth allow."""
    assert bench.chip is not None
    most = limits(bench.subject, bench.chip, ours.case.length, ours.case.batch)
    return f"{ours.prefill / most.prefill:.0%}, {ours.decode / most.decode:.0%}"


def data_of(bench: Bench) -> dict[str, Any]:
    return {
        "model": bench.title,
        "conditions": list(bench.conditions),
        "chip": bench.chip and label(bench.chip),
        "energy": bench.energy,
        "load_seconds": bench.load,
        "peak_bytes": bench.peak,
        "first_token": {"tokens": bench.cached_length, "cold": bench.cold, "cached": bench.cached},
        "measures": [asdict(m) for m in bench.measures],
    }


def plot(bench: Bench) -> bytes:
    """A PNG: prompt and decode speed of single answers against the length of the prompt."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    half = WIDTH // 2
    for left, what in ((0, "prefill"), (half, "decode")):
        _panel(draw, font, (left + MARGIN, left + half - 20), bench, what)
    for place, name in enumerate(dict.fromkeys(m.contender for m in bench.measures)):
        draw.text((MARGIN + 220 * place, HEIGHT - 22), name, COLOURS[place % len(COLOURS)], font)
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _panel(draw: Any, font: Any, sides: tuple[int, int], bench: Bench, what: str) -> None:
    single = [m for m in bench.measures if m.case.batch == 1]
    lengths = sorted({m.case.length for m in single})
    most = max((getattr(m, what) for m in single), default=1.0) or 1.0
    (left, right), top, bottom = sides, 44, HEIGHT - 70
    draw.text((left, 14), f"{'prompt' if what == 'prefill' else 'decode'}, tokens a second", "#222222", font)
    draw.rectangle((left, top, right, bottom), outline="#222222")
    for part in (0.0, 0.5, 1.0):
        y = bottom - part * (bottom - top)
        draw.text((left - 6, y), _number(part * most), "#222222", font, anchor="rm")
    step = (right - left) / max(1, len(lengths))
    at = {n: left + step * (i + 0.5) for i, n in enumerate(lengths)}
    for n, x in at.items():
        draw.text((x, bottom + 14), f"{n:,}", "#222222", font, anchor="mm")
    for place, name in enumerate(dict.fromkeys(m.contender for m in bench.measures)):
        found = {m.case.length: getattr(m, what) for m in single if m.contender == name}
        points = [(at[n], bottom - found[n] / most * (bottom - top)) for n in lengths if n in found]
        colour = COLOURS[place % len(COLOURS)]
        draw.line(points, colour, 3) if len(points) > 1 else None
        for x, y in points:
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), colour)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
