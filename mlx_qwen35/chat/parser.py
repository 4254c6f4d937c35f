"""A model's output, piece by piece, as typed events: the think block, the answer, tool calls. Knows no token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_qwen35.chat.events import Content, ParsedEvent, Reasoning
from mlx_qwen35.chat.reasoning import ReasoningSplitter
from mlx_qwen35.chat.tool_calls import ToolCallParser


class OutputParser:
    """One answer's parser: `feed` each piece of text, then `finish` once. Never raises on any text.

    `in_reasoning` says whether the prompt ended inside an open think block (`ChatTemplate.opens_thinking`).
    Where the text is cut into pieces changes how finely events come, never what they say.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None, in_reasoning: bool) -> None:
        self._splitter = ReasoningSplitter(in_reasoning, calls_close=bool(tools))
        self._calls = ToolCallParser(tools)

    @property
    def in_reasoning(self) -> bool:
        """Whether the text fed so far ends inside the think block."""
        return self._splitter.in_reasoning

    @property
    def ended_calls(self) -> int:
        """How many tool calls are complete; with any, the answer finishes as `tool_calls`."""
        return self._calls.ended_calls

    def feed(self, text: str) -> list[ParsedEvent]:
        """The events that this piece makes certain; often none, when it may be the beginning of a tag."""
        reasoning, content = self._splitter.feed(text)
        events: list[ParsedEvent] = [Reasoning(reasoning)] if reasoning else []
        return events + self._calls.feed(content) if content else events

    def finish(self) -> list[ParsedEvent]:
        """The rest, when no more text comes. Calls that were begun and not ended are Malformed."""
        reasoning, content = self._splitter.finish()
        events: list[ParsedEvent] = [Reasoning(reasoning)] if reasoning else []
        return events + self._calls.feed(content) + self._calls.finish()


class PlainText:
    """The parser of a text that was asked for as it stands."""

    in_reasoning = False

    def feed(self, text: str) -> list[ParsedEvent]:
        return [Content(text)] if text else []

    def finish(self) -> list[ParsedEvent]:
        return []
