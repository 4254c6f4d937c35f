"""Drafts without a network: what followed the last time the text ended like this. Token ids in, token ids out.

Pays where an answer repeats its prompt or itself: edits of code, JSON, quotations (prompt-lookup decoding).
"""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST, LONGEST = 3, 4  # tokens that have to be the same; more would miss, fewer would guess


class NGrams:
    """Where each run of tokens stood last in a growing text."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], int] = {}  # run -> the position after it, but for the text's own end
        self._seen = 0

    def drafts(self, ids: Sequence[int], most: int, unread: int = 0) -> list[int]:
        """Up to `most` tokens that may follow `ids`, a text that only ever grows; none where nothing repeats.

        unread: tokens that follow already and are not known yet: taken to be what the drafts begin with
        """
        self._learn(ids)
        for length in range(LONGEST, SHORTEST - 1, -1):
            place = self._last.get(tuple(ids[-length:])) if len(ids) >= length else None
            if place is not None:
                # A run that reaches the end goes round: what it repeats, it repeats on.
                period = len(ids) - place
                found = [ids[place + i % period] for i in range(unread + most)]
                return found[unread:]
        return []

    def _learn(self, ids: Sequence[int]) -> None:
        """Runs that end before the last token; the last one is what is looked up."""
        for end in range(max(self._seen, SHORTEST), len(ids)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._last[tuple(ids[end - length : end])] = end
        self._seen = max(self._seen, len(ids))
