"""What the events of an answer add up to. Knows nothing of how an answer looks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen35.chat.events import Content, Event, Finished, PrefillProgress, Reasoning, ToolCallEnd, Usage


def counted(count: int, what: str) -> str:
    """1 token, 1,200 tokens."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclass
class Answer:
    """What has arrived so far. `reason` stays "cancelled" until the answer ends by itself."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    reason: str = "cancelled"
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    thought_seconds: float = 0.0
    reasoning_tokens: int = 0

    @property
    def begun(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls)

    def take(self, event: Event) -> None:
        """Account for one event."""
        if isinstance(event, PrefillProgress):
            return
        now = time.monotonic()
        self.first_token = self.first_token or now
        if isinstance(event, Reasoning):
            self.reasoning.append(event.text)
            self.reasoning_tokens = event.tokens
            self.thought_seconds = now - self.first_token
        elif isinstance(event, Content):
            self.content.append(event.text)
        elif isinstance(event, ToolCallEnd):
            function = {"name": event.name, "arguments": event.arguments}
            self.tool_calls.append({"id": event.id, "type": "function", "function": function})
        elif isinstance(event, Finished):
            self.usage, self.reason = event.usage, event.reason

    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content)}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message

    def thought(self) -> str:
        """One line in place of the reasoning."""
        return f"thought for {self.thought_seconds:.1f} s, {counted(self.reasoning_tokens, 'token')}"

    def cut_off(self) -> str:
        """What to say when the answer ended at its limit."""
        return f"(cut off after {counted(self.usage.completion_tokens, 'token')})"
