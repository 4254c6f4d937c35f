"""What could have been reused: the outside truth that cached-token counts are held against.

Prefixes are compared as text and counted in tokens. Where ids are spelled as the tokenizer spells them this is the
longest common prefix of ids; where an answer was sampled otherwise, a side that takes it apart again and so misses it
is not excused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

BAR = 1.15  # prefilled tokens over those that no earlier prompt or answer began with


@dataclass(frozen=True)
class Reuse:
    """One turn, in tokens. `shared`: longest common prefix of the prompt with any earlier prompt and its answer.

    rerendered: after `shared`, but of messages that were there before; the template wrote them in another way
    cached: what the runtime says it reused   reported_rerendered, cache_note: the runtime's own word on the rest
    note: what is wrong with the answer; "" if nothing is
    """

    prompt: int
    shared: int
    rerendered: int
    cached: int
    first_seconds: float = 0.0
    thinking: bool = True
    note: str = ""
    reported_rerendered: int = 0
    cache_note: str = ""

    @property
    def prefilled(self) -> int:
        return self.prompt - self.cached

    @property
    def ratio(self) -> float:
        return ratio([self])


@dataclass(frozen=True)
class Total:
    """The turns of a script together. Ratios are prefilled tokens over those beyond `shared`."""

    prompt: int
    cached: int
    prefilled: int
    beyond: int
    rerendered: int
    reported_rerendered: int
    ratio: float
    ratio_after_first: float  # the first turn is cold and dilutes the rest
    worst_turn: float
    first_seconds: float | None  # median over the thinking turns after the first; None without any


def shared_tokens(pieces: Sequence[bytes], earlier: Sequence[bytes]) -> int:
    """How many tokens of a prompt, given as bytes, lie within its longest common prefix with any of `earlier`."""
    whole = b"".join(pieces)
    common = max((_common_prefix(whole, text) for text in earlier), default=0)
    return sum(end <= common for end in itertools.accumulate(map(len, pieces)))


def _common_prefix(one: bytes, other: bytes) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def new_messages_at(prompt: Sequence[int], user_start: Sequence[int]) -> int:
    """Where the last user block (a question, or tool results) begins in a prompt; all before it is history.

    user_start: the ids of "<|im_start|>user". The line break before them comes with the new messages.
    """
    n = len(user_start)
    starts = (i for i in range(len(prompt) - n, -1, -1) if list(prompt[i : i + n]) == list(user_start))
    return max(next(starts, 0) - 1, 0)


def total(turns: Sequence[Reuse]) -> Total:
    """The sums of a script's turns, and its ratios."""
    timed = [turn.first_seconds for turn in turns[1:] if turn.thinking]
    return Total(
        prompt=sum(turn.prompt for turn in turns),
        cached=sum(turn.cached for turn in turns),
        prefilled=sum(turn.prefilled for turn in turns),
        beyond=sum(turn.prompt - turn.shared for turn in turns),
        rerendered=sum(turn.rerendered for turn in turns),
        reported_rerendered=sum(turn.reported_rerendered for turn in turns),
        ratio=ratio(turns),
        ratio_after_first=ratio(turns[1:]),
        worst_turn=max(turn.ratio for turn in turns),
        first_seconds=median(timed) if timed else None,
    )


def ratio(turns: Sequence[Reuse]) -> float:
    """Prefilled tokens over those beyond the longest common prefix; at least one token of a prompt always is."""
    return sum(turn.prefilled for turn in turns) / max(sum(max(turn.prompt - turn.shared, 1) for turn in turns), 1)
