"""Tags in text that is still arriving: questions, each answered in time that does not grow with the text, and the
newlines beside them.
"""

from __future__ import annotations

from collections.abc import Iterable

SPACE = " \t\r\n"
# Between two tags; a model that writes more is not writing the format.
MAX_GAP = 16


def held_back(text: str, start: int, tag: str) -> int:
    """How many characters at the end of text[start:] may be the beginning of `tag`."""
    for count in range(min(len(tag) - 1, len(text) - start), 0, -1):
        if text.endswith(tag[:count]):
            return count
    return 0


def tag_at(text: str, at: int, tags: Iterable[str]) -> str | None:
    """The tag that begins at `at`; "" when one may begin there but the text ends too early; None when none does."""
    left = len(text) - at
    possible = None
    for tag in tags:
        if text.startswith(tag, at):
            return tag
        if left < len(tag) and tag.startswith(text[at:]):
            possible = ""
    return possible


def after_gap(text: str, at: int, tags: Iterable[str]) -> str | None:
    """`tag_at`, after at most MAX_GAP characters of white space."""
    limit = min(len(text), at + MAX_GAP)
    while at < limit and text[at] in SPACE:
        at += 1
    return tag_at(text, at, tags)


class Edges:
    """Text between tags, without the newlines at its edges, which are the format's. Those at its end wait for more."""

    def __init__(self) -> None:
        self._fresh, self._newlines = True, 0

    def inner(self, text: str) -> str:
        """What this piece makes certain."""
        if self._fresh:
            text = text.lstrip("\n")
        self._fresh &= not text
        body = text.rstrip("\n")
        waited = self.rest() if body else ""
        self._newlines += len(text) - len(body)
        return waited + body

    def rest(self) -> str:
        """The newlines at its end, where no tag follows after all."""
        newlines, self._newlines = self._newlines, 0
        return "\n" * newlines
