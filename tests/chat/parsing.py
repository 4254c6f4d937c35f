"""Helpers of the parser tests: outputs cut into pieces, and events made comparable."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from hypothesis import HealthCheck, settings

from mlx_qwen35.chat.events import (
    Content,
    Malformed,
    ParsedEvent,
    Reasoning,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from mlx_qwen35.chat.parser import OutputParser
from tests.chat.conversations import tool

# A busy machine is no failure: hypothesis' own limits on time are off.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOOLS = [
    tool("get_weather", city={"type": "string"}, days={"type": "integer"}, where={"type": "object"}, any={}),
    tool("write_file", path={"type": "string"}, content={"type": "string"}),
]


def parse(pieces: Iterable[str], in_reasoning: bool = False, tools: list[dict] | None = TOOLS) -> list[ParsedEvent]:
    parser = OutputParser(tools, in_reasoning)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish()


def plain(events: list[ParsedEvent]) -> list[tuple[Any, ...]]:
    """The events without ids, with neighbours that continue each other joined."""
    rows: list[tuple[Any, ...]] = []
    for event in events:
        if isinstance(event, ToolCallStart):
            row: tuple[Any, ...] = ("start", event.index, event.name)
        elif isinstance(event, ToolCallEnd):
            row = ("end", event.index, event.name, event.arguments)
        elif isinstance(event, ToolCallArguments):
            row = ("arguments", event.index, event.json)
        elif isinstance(event, Malformed):
            row = ("malformed", event.index, event.reason)
        else:
            row = ("reasoning" if isinstance(event, Reasoning) else "content", 0, event.text)
        if rows and row[:2] == rows[-1][:2] and row[0] in ("arguments", "reasoning", "content"):
            row = (*row[:2], rows.pop()[2] + row[2])
        rows.append(row)
    return rows


def reasoning(events: list[ParsedEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Reasoning))


def content(events: list[ParsedEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def calls(events: list[ParsedEvent]) -> list[tuple[str, dict[str, Any]]]:
    """(name, arguments) of the complete calls; checks that start, argument pieces and end agree."""
    found = []
    starts = {event.index: event for event in events if isinstance(event, ToolCallStart)}
    pieces: dict[int, str] = {}
    for event in events:
        if isinstance(event, ToolCallArguments):
            assert event.index in starts
            assert event.json
            pieces[event.index] = pieces.get(event.index, "") + event.json
        elif isinstance(event, ToolCallEnd):
            start = starts[event.index]
            assert (start.id, start.name) == (event.id, event.name)
            assert json.loads(pieces[event.index]) == event.arguments
            found.append((event.name, event.arguments))
    return found


def skeleton(text: str) -> str:
    """The text without what the parser may drop: white space and the tags around blocks and calls."""
    for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        text = text.replace(tag, "")
    return "".join(text.split()).replace("\0", "")


def rebuilt(events: list[ParsedEvent]) -> str:
    """The output that the events tell of, up to its skeleton. Only for tools whose parameters are all text."""
    rows = plain(events)
    abandoned = {row[1] for row in rows if row[0] == "malformed"}
    parts: list[str] = []
    pieces: dict[int, str] = {}
    for kind, index, *rest in rows:
        if kind in ("reasoning", "content"):
            parts += [rest[0], "\0" if kind == "reasoning" else ""]
        elif kind == "start" and index not in abandoned:
            parts.append(f"\0<function={rest[0]}>")
        elif kind == "arguments":
            pieces[index] = pieces.get(index, "") + rest[0]
        elif kind == "end":
            pairs = json.loads(pieces[index], object_pairs_hook=list)
            parts += [f"<parameter={key}>{value}</parameter>" for key, value in pairs]
            parts.append("</function>\0")
    return "".join(parts)


class Counted(str):
    """Text that counts the characters its operations look at, so that a test can see the work and not the clock."""

    __slots__ = ()
    looked_at = 0

    def _count(self, characters: int) -> None:
        Counted.looked_at += characters + 1

    def find(self, sub: str, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        stop = len(self) if end is None else min(end, len(self))
        at = str.find(self, sub, start, stop)
        self._count((at if at >= 0 else stop) - start)
        return at

    def startswith(self, prefix: str, start: int = 0) -> bool:  # type: ignore[override]
        self._count(len(prefix))
        return str.startswith(self, prefix, start)

    def endswith(self, suffix: str) -> bool:  # type: ignore[override]
        self._count(len(suffix))
        return str.endswith(self, suffix)

    def __getitem__(self, key: Any) -> Counted:
        found = Counted(str.__getitem__(self, key))
        self._count(len(found))
        return found

    def __add__(self, other: str) -> Counted:
        self._count(len(self) + len(other))
        return Counted(str.__add__(self, other))

    def __radd__(self, other: str) -> Counted:
        self._count(len(self) + len(other))
        return Counted(str.__add__(other, self))

    def lstrip(self, chars: str | None = None) -> Counted:  # type: ignore[override]
        self._count(len(self))
        return Counted(str.lstrip(self, chars))

    def rstrip(self, chars: str | None = None) -> Counted:  # type: ignore[override]
        self._count(len(self))
        return Counted(str.rstrip(self, chars))

    def strip(self, chars: str | None = None) -> Counted:  # type: ignore[override]
        self._count(len(self))
        return Counted(str.strip(self, chars))
