"""An answer's events added up to one value. Knows nothing of how they came."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen35.chat.events import (
    Content,
    Event,
    Finished,
    FinishReason,
    Logprobs,
    PrefillProgress,
    Reasoning,
    TokenLogprob,
    ToolCallEnd,
    Usage,
)


@dataclass(frozen=True)
class Reply:
    """A whole answer.

    tool_calls: OpenAI form, `{"id", "type", "function": {"name", "arguments"}}`, the arguments a mapping
    reason: "stop", "length" (cut at max_tokens), "tool_calls", "cancelled" (the model was closed)
    events: what it was gathered from, progress left out, for who needs the order in which its parts came
    logprobs, reasoning_logprobs: of the tokens of either, where they were asked for; tags and calls are in neither
    """

    content: str
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    reason: FinishReason = "stop"
    events: tuple[Event, ...] = field(default=(), compare=False, repr=False)
    logprobs: Logprobs = field(default=(), compare=False, repr=False)
    reasoning_logprobs: Logprobs = field(default=(), compare=False, repr=False)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation, to be appended to it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message


@dataclass(frozen=True)
class Completion:
    """How a text went on.

    text: what was added to it   ids: the same as sampled, the stop id last if there is one
    logprobs: of the tokens of the text, where they were asked for
    """

    text: str
    ids: tuple[int, ...]
    usage: Usage
    reason: FinishReason
    logprobs: Logprobs = field(default=(), compare=False, repr=False)


class Gathering:
    """Events in, a reply out."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[TokenLogprob] = []
        self._reasoning_logprobs: list[TokenLogprob] = []
        self._events: list[Event] = []
        self.finished: Finished | None = None

    def take(self, event: Event) -> None:
        if not isinstance(event, PrefillProgress):
            self._events.append(event)
        if isinstance(event, Content):
            self._content.append(event.text)
            self._logprobs += event.logprobs
        elif isinstance(event, Reasoning):
            self._reasoning.append(event.text)
            self._reasoning_logprobs += event.logprobs
        elif isinstance(event, ToolCallEnd):
            function = {"name": event.name, "arguments": event.arguments}
            self._calls.append({"id": event.id, "type": "function", "function": function})
        elif isinstance(event, Finished):
            self.finished = event

    def reply(self) -> Reply:
        """What has come; before the last event, `Finished`, as of an answer that was cancelled."""
        finished = self.finished or Finished("cancelled")
        usage, reason = finished.usage, finished.reason
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        logprobs, before = tuple(self._logprobs), tuple(self._reasoning_logprobs)
        return Reply(content, reasoning, self._calls, usage, reason, tuple(self._events), logprobs, before)


def gathered(answer: Generator[Event]) -> Reply:
    """Read an answer to its end; an error on the way closes it, which cancels."""
    gathering = Gathering()
    with closing(answer) as events:
        for event in events:
            gathering.take(event)
    return gathering.reply()


async def agathered(answer: AsyncGenerator[Event]) -> Reply:
    """`gathered` for event loops; cancelling the task closes the answer at once."""
    gathering = Gathering()
    async with aclosing(answer) as events:
        async for event in events:
            gathering.take(event)
    return gathering.reply()
