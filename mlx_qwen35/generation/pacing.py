"""How much prefill goes into the next step, and whose: measured time in, tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

SHARED_SECONDS = 0.1  # a step's prefill while others wait for their next token
ALONE_SECONDS = 0.5  # and while nobody does; a request that arrives meanwhile waits that long
MULTIPLE = 32  # tokens; windows are whole chunks of the delta rule, where the device is fast enough
SMALLEST = 8  # tokens, where it is not
# While nobody waits. A step costs something whatever it holds, and windows that shrink are measured by that.
SMALLEST_ALONE = 64
FIRST_WINDOW = 256  # tokens, before anything was measured
NEW_WEIGHT = 0.3  # of a new measurement in the running mean; costs grow slowly, with the context


class Prefilling(Protocol):
    """A sequence with prompt tokens to compute."""

    @property
    def remaining(self) -> int: ...
    @property
    def arrived(self) -> float: ...
    def next_window(self, room: int) -> int: ...


P = TypeVar("P", bound=Prefilling)


class Pacer:
    """Learns the cost of prefill from the steps' times."""

    def __init__(self, largest: int) -> None:
        """largest: tokens of prefill a step may hold, for its memory"""
        self._largest = max(largest, MULTIPLE)
        self._token_seconds: float | None = None
        self._decode_seconds = 0.0

    def observe(self, prefilled: int, seconds: float) -> None:
        """A step took `seconds`, with `prefilled` tokens of prompts in it."""
        if prefilled == 0:
            self._decode_seconds += NEW_WEIGHT * (seconds - self._decode_seconds)
        else:
            cost = max(seconds - self._decode_seconds, 1e-6) / prefilled
            old = self._token_seconds
            self._token_seconds = cost if old is None else old + NEW_WEIGHT * (cost - old)

    def tokens(self, shared: bool) -> int:
        """Prompt tokens for the next step."""
        if self._token_seconds is None:
            wanted = FIRST_WINDOW
        else:
            wanted = int((SHARED_SECONDS if shared else ALONE_SECONDS) / self._token_seconds)
        wanted = min(wanted, self._largest)
        wanted = max(wanted, SMALLEST if shared else min(SMALLEST_ALONE, self._largest))
        return wanted // MULTIPLE * MULTIPLE if wanted >= MULTIPLE else wanted

    def share(self, rows: Sequence[P], shared: bool, now: float) -> list[tuple[P, int]]:
        """Rows and their tokens of the next step's prefill.

        The least remaining time goes first, less the time waited: short prompts overtake long ones, none forever.
        """
        pace = self._token_seconds or 0.0
        room, windows = self.tokens(shared or len(rows) > 1), []
        for row in sorted(rows, key=lambda row: row.remaining * pace - (now - row.arrived)):
            if room <= 0:
                break
            windows.append((row, row.next_window(room)))
            room -= windows[-1][1]
        return windows
