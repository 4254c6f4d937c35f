"""The lines of a streamed `chat.completion` as events. Knows nothing of connections."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from mlx_qwen35.chat.events import (
    Content,
    Event,
    FinishReason,
    Malformed,
    PrefillProgress,
    Reasoning,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from mlx_qwen35.openai_client import ServerError

# A comment by which our server keeps a silent stream alive.
PREFILL = re.compile(rb": prefill (\d{1,12})/(\d{1,12}) tokens")


@dataclass
class _Call:
    id: str
    name: str
    arguments: str = ""


class Chunks:
    """Feed it lines; `done` when the answer has ended, then `reason` and `usage` hold."""

    def __init__(self) -> None:
        self.done = False
        self.reason: FinishReason = "stop"
        self.usage = Usage()
        self.progress = PrefillProgress(0, 0)
        self._calls: dict[int, _Call] = {}

    def take(self, line: bytes) -> Iterator[Event]:
        """The events of one line of the stream. Raises ServerError for an error that the server sends in it."""
        if found := PREFILL.fullmatch(line):
            self.progress = PrefillProgress(int(found[1]), int(found[2]))
            yield self.progress
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise ServerError(f"The server says: {_error_in(chunk['error'])}")
            if isinstance(chunk.get("usage"), Mapping):
                self.usage = _usage(chunk["usage"])
            for choice in chunk.get("choices") or ():
                yield from self._choice(choice)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise ServerError(f"The server sends what is no chunk of an answer ({type(error).__name__}).") from error

    def finish(self) -> Iterator[Event]:
        """The ends of tool calls, which the protocol leaves to be guessed."""
        for index, call in self._calls.items():
            try:
                arguments = json.loads(call.arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
            if isinstance(arguments, dict):
                yield ToolCallEnd(index, call.id, call.name, arguments)
            else:
                yield Malformed("its arguments are no JSON object", index, len(call.arguments))
                yield Content(call.arguments)
        self._calls.clear()

    def _choice(self, choice: Mapping[str, Any]) -> Iterator[Event]:
        delta = choice.get("delta") or {}
        # Two names are in use for it.
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            yield Reasoning(_text(thought))
        if said := delta.get("content"):
            yield Content(_text(said))
        for call in delta.get("tool_calls") or ():
            yield from self._call(call)
        if reason := choice.get("finish_reason"):
            self.reason = reason if reason in get_args(FinishReason) else "stop"

    def _call(self, piece: Mapping[str, Any]) -> Iterator[Event]:
        index, function = int(piece.get("index") or 0), piece.get("function") or {}
        if index not in self._calls:
            self._calls[index] = _Call(_text(piece.get("id") or f"call_{index}"), _text(function.get("name") or ""))
            yield ToolCallStart(index, self._calls[index].id, self._calls[index].name)
        if arguments := _text(function.get("arguments") or ""):
            self._calls[index].arguments += arguments
            yield ToolCallArguments(index, arguments)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _error_in(error: Any) -> str:
    said = error.get("message") if isinstance(error, Mapping) else error
    return (str(said).splitlines() or [""])[0][:500]


def _usage(told: Mapping[str, Any]) -> Usage:
    prompt, answer = told.get("prompt_tokens_details") or {}, told.get("completion_tokens_details") or {}
    cache, drafts = told.get("cache") or {}, told.get("drafts") or {}
    return Usage(
        prompt_tokens=_count(told, "prompt_tokens"),
        completion_tokens=_count(told, "completion_tokens"),
        reasoning_tokens=_count(answer, "reasoning_tokens"),
        cached_tokens=_count(prompt, "cached_tokens"),
        rerendered_tokens=_count(cache, "rerendered_tokens"),
        cache_note=str(cache.get("note") or "")[:500],
        decode_steps=_count(drafts, "decode_steps"),
        drafted_tokens=_count(drafts, "drafted_tokens"),
        accepted_tokens=_count(drafts, "accepted_tokens"),
    )


def _count(told: Mapping[str, Any], name: str) -> int:
    value = told.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
