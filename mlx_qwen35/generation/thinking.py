"""The think block as a guide: how long it may be, how it ends, and that there is one. Knows ids and no text.

Inside, everything may come but a second beginning. The end of the answer counts as the end of the block there, and so
does a tool call, where calls are read. After it, a guide of the answer takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlx_qwen35.generation.guides import Guide, Mask, all_but, bits_of
from mlx_qwen35.generation.spelling import Spelling


@dataclass(frozen=True)
class ThinkTokens:
    """What the block is made of.

    end: `</think>`   stop_ids: of the answer   refused: what is never said, in the block and after it
    closing: what is said when the budget is used up, `end` in it   gap: what the answer begins with
    size: of the vocabulary   spelled: tags that only their own tokens may write
    call: the token that begins a tool call, where one ends the block
    """

    end: int
    stop_ids: tuple[int, ...]
    refused: tuple[int, ...]
    closing: tuple[int, ...]
    gap: tuple[int, ...]
    size: int
    spelled: tuple[Spelling, ...]
    call: int | None = None

    def __post_init__(self) -> None:
        assert self.end in self.closing


@dataclass(frozen=True)
class _Place:
    """Where in the block: a value, so that drafts can be looked at and forgotten.

    left: tokens of the budget; None without one   saying: what must come next   held: of each tag, spelled out
    """

    open: bool = True
    left: int | None = None
    saying: tuple[int, ...] = ()
    held: tuple[int, ...] = ()


class Thinking:
    """Guides an answer that begins inside the think block."""

    def __init__(self, tokens: ThinkTokens, budget: int | None = None, answer: Guide | None = None) -> None:
        """budget: tokens until the block is closed, the closing text and the end not counted; None is no limit

        answer: guides what comes after the block
        """
        self._tokens, self._answer = tokens, answer
        self._place = self._running_out(_Place(left=budget, held=(0,) * len(tokens.spelled)))
        self._rest = Mask(all_but(tokens.refused, tokens.size))
        moved = (tokens.stop_ids, tokens.end) if tokens.stop_ids else None
        self._inside = Mask(all_but((*tokens.refused, *tokens.stop_ids), tokens.size), moved)

    def masks(self, drafts: Sequence[int] = ()) -> list[Mask | None]:
        masks: list[Mask | None] = []
        place = self._place
        for at in range(len(drafts) + 1):
            if not place.open and not place.saying and self._answer is not None:
                return masks + self._answer.masks(drafts[at:])
            mask = self._mask(place)
            masks.append(mask)
            if at == len(drafts) or not mask.allows(drafts[at]):
                break
            if self._calls(place, drafts[at]) and self._answer is not None:
                return masks + self._answer.masks(drafts[at:])[1:]
            place = self._after(place, drafts[at])
        return masks

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            place = self._place
            if self._answer is not None and (self._calls(place, token) or not (place.open or place.saying)):
                self._answer.accept((token,))
            self._place = self._after(place, token)

    def forced(self) -> Sequence[int]:
        if self._place.open or self._place.saying or self._answer is None:
            return self._place.saying
        return self._answer.forced()

    def fork(self) -> Thinking:
        other = Thinking(self._tokens, None, self._answer and self._answer.fork())
        other._place = self._place
        return other

    @property
    def is_open(self) -> bool:
        """Whether the block is not closed yet."""
        return self._place.open

    @property
    def steady(self) -> bool:
        if self._place.open or self._place.saying:
            return False
        return self._answer is None or self._answer.steady

    @property
    def done(self) -> bool:
        return not self._place.open and self._answer is not None and self._answer.done

    def _calls(self, place: _Place, token: int) -> bool:
        return place.open and not place.saying and token == self._tokens.call

    def _mask(self, place: _Place) -> Mask:
        if place.saying:
            return Mask(bits_of(place.saying[:1], self._tokens.size))
        if not place.open:
            return self._rest
        bits = self._inside.bits
        for tag, held in zip(self._tokens.spelled, place.held):
            bits = tag.without(bits, held)
        return replace(self._inside, bits=bits)

    def _after(self, place: _Place, token: int) -> _Place:
        if place.saying:
            return _Place(place.open and token != self._tokens.end, None, place.saying[1:])
        if not place.open:
            return place
        if token == self._tokens.call:
            return _Place(open=False)
        if token == self._tokens.end:
            return _Place(open=False, saying=self._tokens.gap if self._answer is not None else ())
        left = None if place.left is None else place.left - 1
        held = tuple(tag.after(held, token) for tag, held in zip(self._tokens.spelled, place.held))
        return self._running_out(_Place(True, left, held=held))

    def _running_out(self, place: _Place) -> _Place:
        return place if place.left is None or place.left > 0 else replace(place, saying=self._tokens.closing)


def leave_room(budget: int | None, max_tokens: int, closing: int) -> int | None:
    """The budget, or less where otherwise max_tokens would end the answer before it has begun.

    closing: tokens of the closing text. A quarter of max_tokens, up to 256, is left for the answer.
    """
    if budget is None:
        return None
    return int(np.clip(max_tokens - closing - min(256, -(-max_tokens // 4)), 0, budget))
