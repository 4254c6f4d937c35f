"""Free text in which a tool call may begin; from there on its grammar guides. Knows ids and no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_qwen35.generation.grammars import Matched
from mlx_qwen35.generation.guides import Guide, Mask, all_but
from mlx_qwen35.generation.spelling import Spelling


@dataclass(frozen=True)
class FreeText:
    """What may be said before a call.

    call: the token that begins one   spelled: the same in other tokens   refused: ids that are never said
    """

    call: int
    spelled: Spelling
    refused: tuple[int, ...]
    size: int


class CallsInText:
    """Guides an answer: text, then calls to the end. Without a grammar there are none."""

    def __init__(self, text: FreeText, calls: Matched | None) -> None:
        """calls: at its beginning, where it takes the token that begins a call"""
        self._text, self._calls = text, calls
        self._in_call = False
        self._held = 0  # bytes of a spelled call at the end of the text
        refused = text.refused if calls else (*text.refused, text.call)
        self._mask = Mask(all_but(refused, text.size))

    def masks(self, drafts: Sequence[int] = ()) -> list[Mask | None]:
        masks: list[Mask | None] = []
        held = self._held
        for at in range(len(drafts) + 1):
            if self._in_call and self._calls is not None:
                return masks + self._calls.masks(drafts[at:])
            mask = self._mask_at(held)
            masks.append(mask)
            if at == len(drafts) or not mask.allows(drafts[at]):
                break
            if drafts[at] == self._text.call and self._calls is not None:
                return masks + self._calls.masks(drafts[at:])[1:]
            held = self._text.spelled.after(held, drafts[at])
        return masks

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._in_call = self._in_call or token == self._text.call
            if self._in_call and self._calls is not None:
                self._calls.accept((token,))
            else:
                self._held = self._text.spelled.after(self._held, token)

    def forced(self) -> Sequence[int]:
        return self._calls.forced() if self._in_call and self._calls is not None else ()

    def fork(self) -> Guide:
        other = CallsInText(self._text, self._calls and self._calls.fork())
        other._in_call, other._held = self._in_call, self._held
        return other

    @property
    def steady(self) -> bool:
        return False

    @property
    def done(self) -> bool:
        return self._in_call and self._calls is not None and self._calls.done

    def _mask_at(self, held: int) -> Mask:
        return replace(self._mask, bits=self._text.spelled.without(self._mask.bits, held))
