"""How often a growing answer is painted: as often as the page that shows it keeps up with.

The page looks at the live figures every `LIVELY` seconds, and later where painting has kept it. Knows no Gradio.
"""

from __future__ import annotations

from dataclasses import dataclass

LIVELY = 0.25  # seconds between two looks at the figures while an answer runs
REPAINT = 0.05  # seconds; the eye sees no more
UNHEARD = 20_000  # characters painted in a second where nothing is heard: what falls behind does so for good
RESTS = 3.0  # times as long as painting took


@dataclass
class Pulse:
    """Of one page and one answer. late: seconds by which the last look came late   heard: when that was"""

    heard: float = float("-inf")
    late: float = float("inf")

    def beat(self, now: float) -> None:
        """The page looks."""
        self.late, self.heard = max(0.0, now - self.heard - LIVELY), now

    def rest(self, painted: float, characters: int) -> float:
        """Seconds from the last painting, at `painted`, to the next. characters: that are painted each time"""
        longest = max(REPAINT, characters / UNHEARD)
        if self.heard <= painted:  # what was painted last may still be on its way
            return longest
        return min(longest, max(REPAINT, RESTS * self.late))
