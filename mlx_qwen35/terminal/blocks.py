"""Cuts Markdown into blocks while it arrives: what is finished can be printed for good, the last block repainted.

Knows where a block ends, not how it looks.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"\s*(?:[-*+]\s+|\d{1,9}[.)]\s+)?(`{3,}|~{3,})(.*)")


class MarkdownBlocks:
    """Text in, finished blocks out; the blocks and the tail join to the text.

    A block ends at a blank line outside a code fence when the next line is not indented (an indented one continues
    a list item). Linear time: each line is looked at once.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []  # complete lines of the open block
        self._partial: list[str] = []  # pieces of the line that has no end yet
        self._fence = ""
        self._blank = False  # the last complete line was blank, outside a fence; a block may end here

    @property
    def tail(self) -> str:
        """The block that is still open."""
        return "".join(self._lines) + "".join(self._partial)

    def tail_lines(self, count: int) -> str:
        """The end of the open block, at most `count` lines of it: bounded work for a block of any length."""
        return "".join(self._lines[-count:]) + "".join(self._partial)

    @property
    def line_count(self) -> int:
        """Lines in the open block."""
        return len(self._lines) + 1

    @property
    def fence(self) -> str:
        """The opening of the code fence the text is inside of, or ""."""
        return self._fence

    def feed(self, text: str) -> list[str]:
        """Take a piece of text; return the blocks it finished."""
        *ended, rest = text.split("\n")
        blocks = []
        for line in ended:
            if self._partial:
                line = "".join(self._partial) + line
                self._partial = []
            blocks += self._begin(line)
            self._end(line)
        if rest:
            blocks += [] if self._partial else self._begin(rest)
            self._partial.append(rest)
        return blocks

    def finish(self) -> str:
        """The last block; afterwards nothing is left."""
        tail = self.tail
        self.__init__()
        return tail

    def _begin(self, line: str) -> list[str]:
        """The block that is finished, now that a line begins like this."""
        if not (self._blank and line and not line[0].isspace()):
            return []
        finished, self._lines, self._blank = "".join(self._lines), [], False
        return [finished]

    def _end(self, line: str) -> None:
        self._lines.append(line + "\n")
        self._follow_fence(line)
        self._blank = not line.strip() and not self._fence

    def _follow_fence(self, line: str) -> None:
        found = _FENCE.match(line)
        if not found:
            return
        mark, rest = found.groups()
        if not self._fence:
            # A line of backticks with more of them after it is inline code, not an opening.
            self._fence = "" if mark[0] == "`" and "`" in rest else mark
        elif mark[0] == self._fence[0] and len(mark) >= len(self._fence) and not rest.strip():
            self._fence = ""
