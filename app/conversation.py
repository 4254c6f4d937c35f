"""What people see of a conversation: the messages that are kept of it, and an answer while it grows.

Text made for display never reaches the model: blocks are made from messages and events, and nothing from blocks.
Knows nothing of Gradio beyond the shape of its chat messages, and nothing of the model beyond its events.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen35.app.harmless import answered, asked, plain
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
from mlx_qwen35.conversations.efforts import Effort, Efforts
from mlx_qwen35.conversations.markdown import fenced
from mlx_qwen35.tools.tool import Step
from mlx_qwen35.tools.toolbox import REFUSED, STOPPED

Message = dict[str, Any]  # as the runtime takes it
Block = dict[str, Any]  # as gr.Chatbot shows it
SHORTEST = 0.02  # seconds; drafts may bring a short answer at once, which tells nothing of speed
SHOWN_RESULT = 6_000  # characters of a tool's result; the model reads all of it


@dataclass
class Calling:
    """A call being made. `arguments` is JSON text, perhaps not yet complete."""

    name: str
    id: str
    arguments: str = ""
    complete: bool = False
    step: Step | None = None

    def block(self) -> Block:
        if self.step is None:
            return call_block(self.name, self.arguments, None, None)
        return call_block(self.name, self.arguments, self.step.text, Effort(self.step.seconds))


@dataclass
class Answer:
    """An answer, growing by `take` while it streams."""

    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: dict[int, Calling] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)
    prefill: PrefillProgress | None = None
    usage: Usage | None = None
    reason: FinishReason | None = None
    reasoning_tokens: int = 0
    characters: int = 0
    _began: float | None = None
    _thought_seconds: float | None = None

    def take(self, event: Event | Step) -> None:
        """Add what `event` tells."""
        if isinstance(event, PrefillProgress):
            self.prefill = event
            return
        if isinstance(event, Reasoning):
            self._began = self._began or time.monotonic()
            self.reasoning.append(event.text)
            self.reasoning_tokens = event.tokens
        else:
            self._close_thought()
        if isinstance(event, (Reasoning, Content)):
            self.characters += len(event.text)
        if isinstance(event, Content):
            self.content.append(event.text)
        elif isinstance(event, ToolCallStart):
            self.calls[event.index] = Calling(event.name, event.id)
        elif isinstance(event, ToolCallArguments):
            self.calls[event.index].arguments += event.json
        elif isinstance(event, ToolCallEnd):
            self.calls[event.index] = Calling(event.name, event.id, _pretty(event.arguments), complete=True)
        elif isinstance(event, Step):
            for call in self.calls.values():
                if call.id == event.call.id:
                    call.step = event
        elif isinstance(event, Malformed):
            self.malformed.append(event.reason)
            if event.index is not None:
                self.calls.pop(event.index, None)
        elif isinstance(event, Finished):
            self.usage, self.reason = event.usage, event.reason

    @property
    def thought(self) -> Effort | None:
        """Of the think block, where there was one."""
        if self._began is None:
            return None
        seconds = time.monotonic() - self._began if self._thought_seconds is None else self._thought_seconds
        return Effort(seconds, self.reasoning_tokens)

    def stop(self) -> None:
        """No more events will come."""
        self._close_thought()
        # A call that was cut off was never asked for in full.
        self.calls = {index: call for index, call in self.calls.items() if call.complete}
        self.reason = self.reason or "cancelled"

    def blocks(self) -> list[Block]:
        """Thinking folded, then the answer, then its tool calls and what went wrong, each in its own block."""
        shown = []
        if self.reasoning:
            shown.append(thought_block("".join(self.reasoning), self.thought, thinking=self._thought_seconds is None))
        text = "".join(self.content)
        if text or not (shown or self.calls or self.reason):
            shown += content_blocks(text, whole=self.reason is not None)
        shown += [call.block() for call in self.calls.values()]
        for reason in self.malformed:
            shown.append(_folded(f"Its text stands in the answer: {plain(reason)}", "Unreadable tool call", "done"))
        return shown

    def _close_thought(self) -> None:
        if self._began is not None and self._thought_seconds is None:
            self._thought_seconds = time.monotonic() - self._began


@dataclass
class Shown:
    """blocks: for gr.Chatbot   places: for each of them, the message it shows (its index)"""

    blocks: list[Block] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def add(self, place: int, *blocks: Block) -> None:
        self.blocks += blocks
        self.places += [place] * len(blocks)


def shown(messages: Sequence[Message], efforts: Efforts) -> Shown:
    """Messages as blocks."""
    results = {_id(m.get("tool_call_id")): m["content"] for m in messages if m["role"] == "tool"}
    made = Shown()
    for place, message in enumerate(messages):
        text = _text(message.get("content"))
        if message["role"] == "user":
            made.add(place, question_block(text))
        elif message["role"] == "assistant":
            if thought := message.get("reasoning_content"):
                made.add(place, thought_block(thought, efforts.get(place)))
            if text:
                made.add(place, *content_blocks(text))
            for call in message.get("tool_calls", ()):
                function, id = call["function"], _id(call.get("id"))
                arguments = function["arguments"]
                arguments = arguments if isinstance(arguments, str) else _pretty(arguments)
                result = _text(results.get(id, STOPPED) if id else STOPPED)
                made.add(place, call_block(function["name"], arguments, result, efforts.get(id, Effort(0.0))))
    return made


def question_block(text: str) -> Block:
    """What a person said."""
    return _block(asked(text), "user")


def thought_block(text: str, effort: Effort | None, thinking: bool = False) -> Block:
    """Open while it grows, closed from then on."""
    counted = f" · {effort.tokens:,} tokens" if effort and effort.tokens else ""
    if thinking:
        # The time stands in the title while it runs: Gradio shows a duration for what is done.
        running = f" · {effort.seconds:.0f} s" if effort else ""
        return _folded(answered(text), f"Thinking{counted}{running}", "pending")
    return _folded(answered(text), f"Thought{counted}", "done", effort)


def content_blocks(text: str, whole: bool = True) -> list[Block]:
    """An answer; one that is JSON has the parsed value below what was written."""
    if not whole:  # what may become an object is code from the start, or it would jump at the end
        return [_block(fenced(text) if text.lstrip().startswith("{") else answered(text))]
    try:
        value = json.loads(text) if text.lstrip().startswith(("{", "[")) else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, (dict, list)):
        return [_block(fenced(text)), _folded(fenced(_pretty(value)), "Parsed JSON")]
    return [_block(answered(text))]


def call_block(name: str, arguments: str, result: str | None, effort: Effort | None) -> Block:
    """A call with what came of it; `result` is None while that is not known."""
    said = f"Arguments\n\n{fenced(arguments)}"
    if result is None:
        return _folded(said, f"Calling {plain(name)}", "pending")
    title = {REFUSED: "Refused", STOPPED: "Stopped"}.get(result)
    title = title or ("Failed" if result.startswith("Error: ") else "Called")
    cut = result[:SHOWN_RESULT] + ("\n…" if len(result) > SHOWN_RESULT else "")
    return _folded(f"{said}\n\nResult\n\n{fenced(cut, '')}", f"{title} {plain(name)}", "done", effort)


def trouble_block(line: str) -> Block:
    """What went wrong, for people only."""
    return _block(f"⚠️ {plain(line)}")


def status_line(answer: Answer | None) -> str:
    """One line under the conversation: progress while it runs, counts and speed when it is done."""
    if answer is None:
        return ""
    if answer.usage is None:
        if answer.reason is not None:
            return "Stopped."
        if answer.prefill is not None and answer.prefill.summary:
            return f"Summarising older turns: {answer.prefill.summary:,} tokens"
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
    if measured := speed(usage):
        parts.append(f"{measured:.1f} tokens/s")
    parts.append(f"first token after {usage.prefill_seconds:.2f} s")
    if answer.reason == "length":
        parts.append("cut at the longest allowed answer")
    return " · ".join(parts)


def speed(usage: Usage) -> float | None:
    """Tokens a second; None where the answer was over before anything could be measured."""
    if usage.completion_tokens < 2 or usage.decode_seconds < SHORTEST:
        return None
    return (usage.completion_tokens - 1) / usage.decode_seconds  # the first token is the prefill's work


def _block(text: str, role: str = "assistant") -> Block:
    # In this form Gradio takes a text as it is; a bare string it would unindent, all of it at each repaint.
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _folded(text: str, title: str, status: str | None = None, effort: Effort | None = None) -> Block:
    metadata: dict[str, Any] = {"title": title}
    if status:
        metadata["status"] = status
    if effort and effort.seconds:
        metadata["duration"] = round(effort.seconds, 1) or 0.1
    return {**_block(text), "metadata": metadata}


def _id(value: Any) -> str:
    """Of a call; a chat that was imported may have anything there."""
    return value if isinstance(value, str) else ""


def _text(content: Any) -> str:
    """Of a message, whose content may be text or parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, dict))


def _pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
