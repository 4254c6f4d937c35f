"""One answer being made: its events, pulled on a thread of their own, and what they add up to.

The thread lets the screen be repainted, and Ctrl-C be obeyed, between two slow events. Knows nothing of how an
answer looks.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen35.chat.events import Content, Event, Finished, PrefillProgress, Reasoning, ToolCallEnd, Usage

TICK_SECONDS = 1 / 15
_END = object()


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


class EventPump:
    """The events of an answer, or None where none came for a fifteenth of a second.

    What makes them may `ask` in between: the question comes among the events, and `reply` answers it. `stop` may be
    called from a signal handler; what the generator then still does, it does alone.
    """

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._start = start
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)

    @property
    def stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        """End the answer after its next event; iteration ends at once."""
        self._stopped = True
        self._replies.put(None)

    def ask(self, question: Any) -> Any:
        """From the thread that makes events: what `reply` is given; None when the answer was stopped."""
        self._items.put(question)
        return None if self._stopped else self._replies.get()

    def reply(self, value: Any) -> None:
        """Answer what was asked last."""
        self._replies.put(value)

    def join(self, seconds: float) -> None:
        """Wait for the work to have ended."""
        self._thread.join(seconds)

    def __iter__(self) -> Iterator[Any]:
        self._thread.start()
        while not self._stopped:
            try:
                item = self._items.get(timeout=TICK_SECONDS)
            except queue.Empty:
                yield None
                continue
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        events = iter(())
        try:
            events = self._start()
            for event in events:
                self._items.put(event)
                if self._stopped:
                    break
        except BaseException as error:
            self._items.put(error)
        finally:
            if close := getattr(events, "close", None):
                close()
            self._items.put(_END)
