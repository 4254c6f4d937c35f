"""Which tokens a piece of an answer came from, although tags between the pieces are dropped and ends held back.

A piece of the think block or of the content is a verbatim part of the output. So the end of one is where the next one
of its kind begins, and behind another kind it is found after the tag that ended that. Knows no token ids' meaning.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TypeVar

from mlx_qwen35.chat.events import (
    Content,
    Event,
    Logprobs,
    Malformed,
    Reasoning,
    TokenLogprob,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from mlx_qwen35.chat.reasoning import CLOSE, OPEN
from mlx_qwen35.chat.tag_text import SPACE
from mlx_qwen35.chat.tool_calls import END_CALL

E = TypeVar("E", bound=Event)


class Credits:
    """`add` each token with the text that it made certain, then `credit` the events that came of it.

    A token stands with the piece that shows its first visible character, and so do those before it that made no
    character by themselves. Tokens of which nothing is shown stand nowhere: tags, tool calls, what a stop string cut.
    """

    def __init__(self, in_reasoning: bool) -> None:
        self._text, self._at = "", 0  # what is not shown yet, and where in the output it begins
        self._groups: deque[tuple[int, int, list[TokenLogprob]]] = deque()  # of it: begin, end, tokens
        self._open: list[TokenLogprob] = []  # whose bytes are no character yet
        self._kind: type[Event] | None = None  # of the last piece
        # The tags that a piece of either kind may stand behind, if it does not go on from one of its own kind.
        self._tags: dict[type[Event], str] = {Reasoning: "" if in_reasoning else OPEN, Content: CLOSE}

    def add(self, token: TokenLogprob, text: str) -> None:
        """The next token. text: what it made certain, perhaps nothing"""
        self._open.append(token)
        if text:
            begin = self._at + len(self._text)
            self._groups.append((begin, begin + len(text), self._open))
            self._text, self._open = self._text + text, []

    def end(self, text: str) -> None:
        """No more tokens come. text: what stands for bytes that never became a character"""
        if self._open:
            self.add(self._open.pop(), text)

    def credit(self, event: E) -> E:
        """The event, with the tokens that it shows."""
        if isinstance(event, (Content, Reasoning)):
            return replace(event, logprobs=self._shown(type(event), event.text))
        if isinstance(event, (ToolCallStart, ToolCallArguments, ToolCallEnd)):
            self._kind, self._tags[Content] = None, END_CALL
        elif isinstance(event, Malformed):  # all of its text follows
            self._kind, self._tags[Content] = None, ""
        return event

    def _shown(self, kind: type[Event], text: str) -> Logprobs:
        begin = 0 if kind is self._kind else self._find(self._tags[kind], text)
        self._kind = kind
        if begin < 0:
            return ()
        begin += self._at
        end = begin + len(text)
        found: list[TokenLogprob] = []
        while self._groups and self._groups[0][0] < end:
            _, group_end, tokens = self._groups.popleft()
            found += tokens if group_end > begin else ()
        self._text, self._at = self._text[end - self._at :], end
        return tuple(found)

    def _find(self, tag: str, text: str) -> int:
        """Where in what is not shown yet a piece begins that is not the last one's continuation; -1 for nowhere."""
        at = self._text.find(tag) if tag else -1
        while at >= 0:
            after = at + len(tag)
            gap = len(self._text) - after - len(self._text[after:].lstrip(SPACE))
            if (begin := self._text.find(text, after, after + gap + len(text))) >= 0:
                return begin
            at = self._text.find(tag, at + 1)
        return self._text.find(text)
