"""The live strip: speed, what was reused, the context, memory and drafts, of the answer that runs or ended last.

It looks at what the tab already knows of its answer, a few times a second while one runs and seldom else.
"""

from __future__ import annotations

import html
import time
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import mlx.core as mx

from mlx_qwen35.app.backend import ServerBackend
from mlx_qwen35.app.conversation import Answer, speed
from mlx_qwen35.app.desk import Backend, Desk
from mlx_qwen35.app.pulse import LIVELY
from mlx_qwen35.app.tab import Tab
from mlx_qwen35.hub.machine import this_machine
from mlx_qwen35.hub.progress import gigabytes
from mlx_qwen35.models import fit

SELDOM = 1.5  # seconds between two looks where no answer runs


@dataclass(frozen=True)
class Figure:
    """value: the number   unit: what it counts   says: in full, for a pointer that rests   part: of a whole, 0 to 1"""

    value: str
    unit: str
    says: str
    part: float | None = None


@dataclass
class Pace:
    """How fast an answer comes, seen from here: its counts are told at its end only."""

    _answer: Answer | None = None
    _since: float = 0.0
    _pieces: int = 0
    _drafts: tuple[int, int] = (0, 0)
    lively: bool = False
    shown: str = field(default="", repr=False)

    def see(self, answer: Answer, stats: Any) -> None:
        """Once for each look."""
        if answer is not self._answer:
            self._answer, self._since = answer, time.monotonic()
            self._pieces, self._drafts = pieces(answer), drafts_of(stats)

    def speed(self, answer: Answer) -> float:
        """Pieces a second since the first look; tokens, but for characters that take several."""
        seconds = time.monotonic() - self._since
        return (pieces(answer) - self._pieces) / seconds if seconds > 0 else 0.0

    def drafts(self, stats: Any) -> tuple[int, int]:
        """Guessed and kept since the first look, by all answers that run."""
        guessed, kept = drafts_of(stats)
        return guessed - self._drafts[0], kept - self._drafts[1]


def strip(desk: Desk, tab: gr.State) -> gr.Markdown:
    """Inside the block that is open. tab: what is open in the page"""
    # gr.HTML needs script made of text, which our policy refuses. What stands here is our own, and escaped.
    shown = gr.Markdown(elem_id="strip", sanitize_html=False)
    pulse, pace = gr.Timer(LIVELY), gr.State(Pace())

    def look(tab: Tab, pace: Pace) -> tuple[Any, Any]:
        turn = tab.turn
        if turn:
            turn.pulse.beat(time.monotonic())
        figures = figures_of(desk.runtime, turn.answer if turn else None, pace, limit)
        text, lively = as_html(figures), bool(turn and turn.running)
        repaint = text if text != pace.shown else gr.skip()
        timer = gr.Timer(LIVELY if lively else SELDOM) if lively != pace.lively else gr.skip()
        pace.shown, pace.lively = text, lively
        return repaint, timer

    limit = memory_limit(desk.runtime)
    pulse.tick(look, [tab, pace], [shown, pulse], api_visibility="private", queue=False, show_progress="hidden")
    return shown


def figures_of(backend: Backend, answer: Answer | None, pace: Pace, limit: int | None) -> list[Figure]:
    """What is known, in the order in which it is shown. limit: bytes that a model may use, where known"""
    stats = backend.stats()
    found = []
    if answer is not None and answer.usage is None and answer.reason is None:
        pace.see(answer, stats)
        found = _running(answer, pace, stats, backend.context)
    elif answer is not None and answer.usage is not None:
        found = _ended(answer, backend.context)
    return [*found, *_memory(stats, limit), *_away(backend)]


def _running(answer: Answer, pace: Pace, stats: Any, context: int | None) -> list[Figure]:
    found, prefill = [], answer.prefill
    total = prefill.total if prefill else 0
    if prefill is not None and prefill.done < total:
        reading = getattr(stats, "prefill_speed", 0.0)
        found.append(Figure(f"{prefill.done:,}", f"of {total:,} tokens read", "The prompt", prefill.done / total))
        if reading:
            found.append(Figure(f"{reading:,.0f}", "tokens/s", "Reading the prompt"))
    elif so_far := pace.speed(answer):
        found.append(Figure(f"{so_far:.1f}", "tokens/s", "Speed of this answer so far"))
    if prefill is not None and total:
        found.append(_reused(prefill.cached, total))
        found.append(_context(total + pieces(answer), context))
    guessed, kept = pace.drafts(stats)
    return [*found, *_drafts(guessed, kept)]


def _ended(answer: Answer, context: int | None) -> list[Figure]:
    usage, found = answer.usage, []
    assert usage is not None
    if measured := speed(usage):
        found.append(Figure(f"{measured:.1f}", "tokens/s", "Speed of the last answer"))
    if usage.prompt_tokens:
        found.append(_reused(usage.cached_tokens, usage.prompt_tokens, usage.cache_note))
        found.append(_context(usage.prompt_tokens + usage.completion_tokens, context))
    return [*found, *_drafts(usage.drafted_tokens, usage.accepted_tokens)]


def _reused(cached: int, total: int, note: str = "") -> Figure:
    says = f"{cached:,} of {total:,} prompt tokens were known and not computed again" + (f"; {note}" if note else "")
    return Figure(f"{100 * cached / total:.0f} %", "reused", says)


def _context(used: int, available: int | None) -> Figure:
    if not available:
        return Figure(f"{used:,}", "tokens of context", "Used by this conversation")
    says = f"{used:,} of {available:,} tokens that a conversation may have"
    return Figure(f"{_short(used)} of {_short(available)}", "context", says, min(1.0, used / available))


def _drafts(guessed: int, kept: int) -> list[Figure]:
    if guessed <= 0:
        return []
    says = f"{kept:,} of {guessed:,} tokens guessed ahead stayed"
    return [Figure(f"{100 * kept / guessed:.0f} %", "drafts kept", says)]


def _memory(stats: Any, limit: int | None) -> list[Figure]:
    used = getattr(stats, "active_bytes", None)
    if used is None:
        return []
    if not limit:
        return [Figure(gigabytes(used), "memory", "Of the model and its caches")]
    says = f"{gigabytes(used)} of the {gigabytes(limit)} that a model may use on this machine"
    return [Figure(f"{gigabytes(used)} of {gigabytes(limit)}", "memory", says, min(1.0, used / limit))]


def _away(backend: Backend) -> list[Figure]:
    """Until it is back, which needs nothing to be done here."""
    if not (isinstance(backend, ServerBackend) and backend.away):
        return []
    says = "It is looked for every few seconds; the conversation goes on where it was"
    return [Figure("⚠️", f"the server at {backend.host} does not answer; looking for it", says)]


def memory_limit(backend: Backend) -> int | None:
    """Bytes that models may use where this one runs, if that is known; what is free now would change with them."""
    if isinstance(backend, ServerBackend) and backend.machine() is None:
        return None
    return fit.machine().budget if mx.metal.is_available() else this_machine().total


def pieces(answer: Answer) -> int:
    """Tokens of an answer so far, as nearly as its events tell."""
    return max(answer.reasoning_tokens, len(answer.reasoning)) + len(answer.content)


def drafts_of(stats: Any) -> tuple[int, int]:
    """Guessed and kept since the start, where that is told."""
    return getattr(stats, "drafted_tokens", 0), getattr(stats, "accepted_tokens", 0)


def as_html(figures: list[Figure]) -> str:
    """One line that wraps where there is no room for it."""
    return f'<div class="strip" role="group" aria-label="Figures">{"".join(map(_as_html, figures))}</div>'


def _as_html(figure: Figure) -> str:
    bar = ""
    if figure.part is not None:
        full = " full" if figure.part > 0.9 else ""
        bar = f'<i class="part{full}" style="--part: {100 * figure.part:.1f}%"></i>'
    value, unit, says = (html.escape(text) for text in (figure.value, figure.unit, figure.says))
    return f'<span class="figure" title="{says}"><b>{value}</b> {unit}{bar}</span>'


def _short(count: int) -> str:
    """A count in a narrow place: 812, 3.4k, 262k."""
    return f"{count:,}" if count < 1_000 else f"{count / 1_000:.1f}k" if count < 10_000 else f"{count / 1_000:.0f}k"
