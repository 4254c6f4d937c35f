"""Stop strings in a stream of text: what may be shown, and where the answer ends."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string, which is never shown. Holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._longest = max((len(s) for s in self._stops), default=0)
        self._held = ""
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; `matched` is the one."""
        return self.matched is not None

    def feed(self, text: str) -> str:
        """The part of the stream that is safe to show after `text` was added."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        window = self._held + text
        found = min(((at, stop) for stop in self._stops if (at := window.find(stop)) >= 0), default=None)
        if found is not None:
            self.matched, self._held = found[1], ""
            return window[: found[0]]
        keep = self._possible_start(window)
        self._held = window[len(window) - keep :]
        return window[: len(window) - keep]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, window: str) -> int:
        """The length of the longest end of `window` that begins a stop string."""
        for length in range(min(self._longest - 1, len(window)), 0, -1):
            if any(s.startswith(window[-length:]) for s in self._stops):
                return length
        return 0
