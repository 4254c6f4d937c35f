"""What the engine counts: speeds of the last steps, totals, and memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import mlx.core as mx

LAST_STEPS = 256


@dataclass(frozen=True)
class Stats:
    """Speeds are those of the last steps, in tokens/s; seconds; bytes.

    set_aside: sequences that had to give up their place, and read their text again
    batch: sequences in the last decode steps, on average   cached_tokens: prompt tokens not computed again, since start
    drafted_tokens, accepted_tokens: guessed ahead, and those of them that stayed, since start
    ahead_tokens, ahead_used_tokens: of next prompts, read while nobody waited, and those of them that were asked for
    draft_depth, draft_note: of the last step, and why
    tokens_per_step: that a sequence got from a step in which it drafted, on average, since start
    """

    prefill_speed: float
    decode_speed: float
    batch: float
    rows: int
    waiting: int
    requests: int
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    queue_seconds: float
    set_aside: int
    live_bytes: int
    prefix_bytes: int
    evictions: int
    drafted_tokens: int
    accepted_tokens: int
    tokens_per_step: float
    ahead_tokens: int
    ahead_used_tokens: int
    draft_depth: int
    draft_note: str
    active_bytes: int
    peak_bytes: int


class Counters:
    """Fed by the engine."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int, float]] = deque(maxlen=LAST_STEPS)  # prefilled, drawn, seconds
        self._waits: deque[float] = deque(maxlen=LAST_STEPS)
        self._requests = self._prompt = self._cached = self._answer = self._set_aside = 0
        self._drafts = self._accepted = self._draft_steps = 0
        self._ahead = self._ahead_used = 0

    def entered(self, prompt: int, cached: int, queued: float) -> None:
        """A request took its place in the batch."""
        self._requests += 1
        self._prompt += prompt
        self._cached += cached
        self._waits.append(queued)

    def drafted(self, drafts: int, accepted: int) -> None:
        """A sequence drafted in a step."""
        self._drafts += drafts
        self._accepted += accepted
        self._draft_steps += 1

    def read_ahead(self, tokens: int) -> None:
        """So many tokens of a next prompt were computed while nobody waited."""
        self._ahead += tokens

    def used_ahead(self, tokens: int) -> None:
        """A request began after so many of them."""
        self._ahead_used += tokens

    def set_aside(self) -> None:
        self._set_aside += 1

    def stepped(self, prefilled: int, drawn: int, seconds: float) -> None:
        self._steps.append((prefilled, drawn, seconds))
        self._answer += drawn

    def stats(
        self,
        *,
        rows: int,
        waiting: int,
        live_bytes: int,
        prefix_bytes: int,
        evictions: int,
        draft_depth: int,
        draft_note: str,
    ) -> Stats:
        steps = list(self._steps)
        prefills = [(tokens, seconds) for tokens, _, seconds in steps if tokens]
        decodes = [(drawn, seconds) for tokens, drawn, seconds in steps if not tokens and drawn]
        return Stats(
            prefill_speed=_rate(prefills),
            decode_speed=_rate(decodes),
            batch=sum(drawn for drawn, _ in decodes) / len(decodes) if decodes else 0.0,
            rows=rows,
            waiting=waiting,
            requests=self._requests,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            answer_tokens=self._answer,
            queue_seconds=sum(self._waits) / len(self._waits) if self._waits else 0.0,
            set_aside=self._set_aside,
            live_bytes=live_bytes,
            prefix_bytes=prefix_bytes,
            evictions=evictions,
            drafted_tokens=self._drafts,
            accepted_tokens=self._accepted,
            tokens_per_step=1 + self._accepted / self._draft_steps if self._draft_steps else 1.0,
            ahead_tokens=self._ahead,
            ahead_used_tokens=self._ahead_used,
            draft_depth=draft_depth,
            draft_note=draft_note,
            active_bytes=mx.get_active_memory(),
            peak_bytes=mx.get_peak_memory(),
        )


def _rate(pairs: list[tuple[int, float]]) -> float:
    seconds = sum(s for _, s in pairs)
    return sum(n for n, _ in pairs) / seconds if seconds else 0.0
