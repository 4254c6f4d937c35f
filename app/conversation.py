"""A conversation of the page: what the model is told of it, and what people see of it.

Both come from the same turns, and neither from the other: text made for display never reaches the model. Knows
nothing of Gradio beyond the shape of its chat messages, and nothing of the model beyond its events.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen35.chat.events import (
    Content,
    Event,
    Finished,
    FinishReason,
    Malformed,
    PrefillProgress,
    Reasoning,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from mlx_qwen35.conversations.markdown import fenced

Message = dict[str, Any]  # as the runtime takes it
Block = dict[str, Any]  # as gr.Chatbot shows it


@dataclass(frozen=True)
class Question:
    """What the user said."""

    text: str

    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self.text}]

    def blocks(self) -> list[Block]:
        return [{"role": "user", "content": self.text}]


@dataclass
class ToolCall:
    """A call the model asked for. `arguments` is JSON text, perhaps not yet complete."""

    name: str
    id: str
    arguments: str = ""
    complete: bool = False

    def block(self) -> Block:
        status = "done" if self.complete else "pending"
        return _folded(fenced(self.arguments), title=f"Tool call: {_plain(self.name)}", status=status)


@dataclass
class Answer:
    """An answer, growing by `take` while it streams."""

    reasoning: str = ""
    content: str = ""
    calls: dict[int, ToolCall] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)
    prefill: PrefillProgress | None = None
    usage: Usage | None = None
    reason: FinishReason | None = None
    error: str = ""
    _reasoning_began: float | None = None
    _reasoning_seconds: float | None = None

    def take(self, event: Event) -> None:
        """Add what `event` tells."""
        if isinstance(event, Reasoning):
            self._reasoning_began = self._reasoning_began or time.monotonic()
            self.reasoning += event.text
        elif isinstance(event, PrefillProgress):
            self.prefill = event
        else:
            self._close_reasoning()
        if isinstance(event, Content):
            self.content += event.text
        elif isinstance(event, ToolCallStart):
            self.calls[event.index] = ToolCall(event.name, event.id)
        elif isinstance(event, ToolCallArguments):
            self.calls[event.index].arguments += event.json
        elif isinstance(event, ToolCallEnd):
            arguments = json.dumps(event.arguments, ensure_ascii=False, indent=2)
            self.calls[event.index] = ToolCall(event.name, event.id, arguments, complete=True)
        elif isinstance(event, Malformed):
            self.malformed.append(event.reason)
        elif isinstance(event, Finished):
            self.usage, self.reason = event.usage, event.reason

    def stop(self, error: str = "") -> None:
        """No more events will come: cancelled, or failed with `error`."""
        self._close_reasoning()
        # A call that was cut off was never asked for in full; what there is of it stays out of the history.
        self.calls = {index: call for index, call in self.calls.items() if call.complete}
        self.reason = self.reason or "cancelled"
        self.error = self.error or error

    @property
    def running(self) -> bool:
        return self.reason is None

    def messages(self) -> list[Message]:
        """The answer as the model shall remember it; none when it said nothing."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if calls := [call for call in self.calls.values() if call.complete]:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls
            ]
        return [message] if self.reasoning or self.content or calls else []

    def blocks(self) -> list[Block]:
        """Thinking folded, then the answer, then its tool calls and what went wrong, each in its own block."""
        shown = []
        if self.reasoning:
            shown.append(self._thinking_block())
        if self.content or not (shown or self.calls or self.error):
            shown.append({"role": "assistant", "content": self.content})
        shown += [call.block() for call in self.calls.values()]
        shown += [
            _folded(f"Its text stands in the answer: {_plain(reason)}", title="Unreadable tool call", status="done")
            for reason in self.malformed
        ]
        if self.error:
            shown.append({"role": "assistant", "content": f"⚠️ {_plain(self.error)}"})
        return shown

    def _thinking_block(self) -> Block:
        if self._reasoning_seconds is None:
            return _folded(self.reasoning, title="Thinking", status="pending")
        return _folded(self.reasoning, title="Thought", status="done", duration=round(self._reasoning_seconds, 1))

    def _close_reasoning(self) -> None:
        if self._reasoning_began is not None and self._reasoning_seconds is None:
            self._reasoning_seconds = time.monotonic() - self._reasoning_began


Turn = Question | Answer


def messages_of(turns: Sequence[Turn], system: str = "") -> list[Message]:
    """The conversation as the runtime takes it: reasoning apart from content, nothing made for display.

    A question that could not be answered is left out, else what was wrong with it would fail every later one.
    """
    messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    for turn, following in zip(turns, [*turns[1:], None], strict=True):
        if not (isinstance(following, Answer) and following.error and not following.messages()):
            messages += turn.messages()
    return messages


def blocks_of(turns: Sequence[Turn]) -> list[Block]:
    """The conversation as gr.Chatbot shows it."""
    return [block for turn in turns for block in turn.blocks()]


def paced(events: Iterator[Event], answer: Answer, seconds: float) -> Iterator[None]:
    """Feed `events` to `answer`; yield at most once in `seconds`, since each repaint costs the whole conversation."""
    shown = float("-inf")
    for event in events:
        answer.take(event)
        now = time.monotonic()
        if now - shown >= seconds:
            shown = now
            yield


def status_line(answer: Answer) -> str:
    """One line under the conversation: progress while it runs, counts and speed when it is done."""
    if answer.usage is None:
        if not answer.running:
            return "" if answer.error else "Stopped."
        if answer.prefill is None or answer.prefill.done == answer.prefill.total:
            return "Working…"
        return f"Reading the prompt: {answer.prefill.done:,} of {answer.prefill.total:,} tokens"
    usage = answer.usage
    parts = [f"{usage.prompt_tokens:,} prompt tokens"]
    if usage.cached_tokens:
        parts[0] += f" ({usage.cached_tokens:,} reused)"
    parts.append(f"{usage.completion_tokens:,} tokens answered")
    if usage.reasoning_tokens:
        parts[-1] += f" ({usage.reasoning_tokens:,} thinking)"
    if usage.completion_tokens > 1 and usage.decode_seconds > 0:
        # The first token is the prefill's work.
        parts.append(f"{(usage.completion_tokens - 1) / usage.decode_seconds:.1f} tokens/s")
    parts.append(f"first token after {usage.prefill_seconds:.2f} s")
    if answer.reason == "length":
        parts.append("cut at the longest allowed answer")
    return " · ".join(parts)


def _folded(content: str, **metadata: Any) -> Block:
    return {"role": "assistant", "content": content, "metadata": metadata}


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>$|~#!])", r"\\\1", text)
