"""One line about an answer: how fast, how full the context, how much was reused, how many drafts stayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mlx_qwen35.chat.events import PrefillProgress, Usage

if TYPE_CHECKING:
    from mlx_qwen35.generation.stats import Stats


def fitting(parts: list[str], width: int) -> str:
    """As many of the parts, from the first on, as a line of `width` characters has room for."""
    line = ""
    for part in parts:
        longer = f"{line} · {part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line


def of_usage(usage: Usage, context: int) -> list[str]:
    """Of an answer that has ended. context: tokens that there is room for"""
    # The first token is the prefill's work.
    speed = (usage.completion_tokens - 1) / usage.decode_seconds if usage.decode_seconds > 0 else 0.0
    used = usage.prompt_tokens + usage.completion_tokens
    return _parts(speed, used, context, usage.cached_tokens, usage.drafted_tokens, usage.accepted_tokens)


class LiveStatus:
    """Of the answer that is being written, from the engine's counters: exact while nobody else asks it anything."""

    def __init__(self, stats: Callable[[], Stats], context: int) -> None:
        self._stats, self._context, self._before = stats, context, stats()
        self._prompt = PrefillProgress(0, 0)

    def take(self, progress: PrefillProgress) -> None:
        """Learn how long the prompt is, and how much of it was known."""
        self._prompt = progress
        if progress.summary is not None:
            self._before = self._stats()  # what a summary takes is not the answer's

    def parts(self) -> list[str]:
        """As they are now; none before the first token."""
        now, before = self._stats(), self._before
        written = now.answer_tokens - before.answer_tokens
        if not written:
            return []
        drafted, accepted = now.drafted_tokens - before.drafted_tokens, now.accepted_tokens - before.accepted_tokens
        used = self._prompt.total + written
        return _parts(now.decode_speed, used, self._context, self._prompt.cached, drafted, accepted)


def _parts(speed: float, used: int, context: int, reused: int, drafted: int, accepted: int) -> list[str]:
    """The ones that matter most come first, since a narrow terminal has room for those only."""
    parts = [f"{speed:,.1f} tokens/s"] if speed > 0 else []
    parts.append(f"{used:,} of {context:,} context")
    if reused:
        parts.append(f"{reused:,} reused")
    if drafted:
        parts.append(f"{accepted / drafted:.0%} of drafts")
    return parts
