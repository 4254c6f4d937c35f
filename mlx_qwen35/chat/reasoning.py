"""Splits a model's output into the think block and what follows it, while it arrives.

Knows the tags, and that a tool call ends a think block; what the call says is tool_calls.py.
"""

from __future__ import annotations

from collections.abc import Callable

from mlx_qwen35.chat.tag_text import SPACE, Edges, after_gap, tag_at

OPEN, CLOSE = "<think>", "</think>"
CALL, FUNCTION = "<tool_call>", "<function="


class ReasoningSplitter:
    """Text pieces in, (reasoning, content) pieces out; only what may be the beginning of a tag is held back.

    Newlines next to the tags are the format's and are dropped. A block may open at the very start of the output even
    where the prompt did not open one; anywhere later, tags are plain text. With `calls_close`, a tool call inside an
    open block ends the block: `<tool_call>` counts only with `<function=` after it, since a model may reason *about*
    tool calls.
    """

    def __init__(self, in_reasoning: bool, calls_close: bool) -> None:
        self.in_reasoning = in_reasoning
        self._tags = (CLOSE, CALL) if calls_close else (CLOSE,)
        self._buffer = ""
        self._at = 0
        self._edges = Edges()
        self._space: list[str] = []  # before the first visible character
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._read: Callable[[], bool] = self._read_start

    def feed(self, text: str) -> tuple[str, str]:
        """(reasoning, content) that this piece makes certain; reasoning always comes before content."""
        self._buffer = self._buffer[self._at :] + text
        self._at = 0
        while self._read():
            pass
        return self._taken()

    def finish(self) -> tuple[str, str]:
        """What was held back, when no more text comes."""
        rest, self._buffer = self._buffer[self._at :], ""
        self._at = 0
        self._pass_on("".join(self._space) + rest)
        self._reasoning.append(self._edges.rest())
        self._space = []
        return self._taken()

    def _taken(self) -> tuple[str, str]:
        taken = "".join(self._reasoning), "".join(self._content)
        self._reasoning, self._content = [], []
        return taken

    def _read_start(self) -> bool:
        """Before the first visible character: a think tag here opens a block."""
        start = self._at
        while self._at < len(self._buffer) and self._buffer[self._at] in SPACE:
            self._at += 1
        self._space.append(self._buffer[start : self._at])
        tag = tag_at(self._buffer, self._at, (OPEN,)) if self._at < len(self._buffer) else ""
        if tag == "":
            return False
        if tag == OPEN:
            self._at += len(OPEN)
            self.in_reasoning = True
        else:
            self._pass_on("".join(self._space))
        self._space = []
        self._read = self._read_block if self.in_reasoning else self._read_rest
        return True

    def _pass_on(self, text: str) -> None:
        if self.in_reasoning:
            self._think(text)
        else:
            self._content.append(text)

    def _think(self, text: str) -> None:
        self._reasoning.append(self._edges.inner(text))

    def _read_block(self) -> bool:
        at = self._buffer.find("<", self._at)
        if at < 0:
            at = len(self._buffer)
        self._think(self._buffer[self._at : at])
        self._at = at
        if at == len(self._buffer):
            return False
        tag = tag_at(self._buffer, at, self._tags)
        if tag == CALL:
            follows = after_gap(self._buffer, at + len(CALL), (FUNCTION,))
            tag = CALL if follows == FUNCTION else follows
        if tag == "":
            return False
        if tag is None:
            self._think("<")
            self._at += 1
            return True
        if tag == CLOSE:
            self._at += len(CLOSE)
        self.in_reasoning = False
        self._edges = Edges()
        self._read = self._read_rest
        return True

    def _read_rest(self) -> bool:
        self._content.append(self._buffer[self._at :])
        self._at = len(self._buffer)
        return False
