"""An answer's events as blocks, one after the other: thinking, text, a tool call. Knows no protocol.

Protocols whose answers are lists of blocks write both of their forms from here, so that a stream and a whole answer say
the same: `Blocks.take` gives the steps of a stream, and `Blocks.of` the finished blocks.

A tool call that was shown and then turns out to be none (`Malformed`) cannot be taken back. It ends as it stands, not
`complete`, and its text is not said once more. Clients of both protocols know calls that were cut: their arguments
are no whole JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_qwen35.chat.events import (
    Content,
    Event,
    Finished,
    Logprobs,
    Malformed,
    Reasoning,
    TokenLogprob,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)

Kind = Literal["thinking", "text", "call"]


@dataclass
class Block:
    """text: of a call, its arguments as JSON

    complete: False for a call that was cut, for what the limit of tokens cut, and for an open block
    """

    index: int
    kind: Kind
    id: str = ""
    name: str = ""
    complete: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list)
    _pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def arguments(self) -> dict[str, Any]:
        """Of a call; those of a cut one as far as they are whole."""
        return whole_members(self.text)

    def add(self, piece: str) -> None:
        self._pieces.append(piece)


@dataclass(frozen=True)
class Opened:
    block: Block


@dataclass(frozen=True)
class Grew:
    block: Block
    piece: str
    logprobs: Logprobs = ()


@dataclass(frozen=True)
class Closed:
    block: Block


Step = Opened | Grew | Closed


class Blocks:
    """Events in, steps out; `done` holds the blocks that were closed."""

    def __init__(self) -> None:
        self.done: list[Block] = []
        self._open: Block | None = None
        self._unsaid = 0  # characters of content that were shown as a call

    @classmethod
    def of(cls, events: Iterable[Event]) -> Blocks:
        """Those of a whole answer."""
        blocks = cls()
        for event in events:
            for _ in blocks.take(event):
                pass
        return blocks

    @property
    def called(self) -> bool:
        """Whether there is a call, complete or cut."""
        return any(block.kind == "call" for block in self.done)

    def take(self, event: Event) -> Iterator[Step]:
        """The steps that an event makes; it has to be read to its end."""
        if isinstance(event, Reasoning):
            yield from self._say("thinking", event.text, event.logprobs)
        elif isinstance(event, Content):
            shown = min(self._unsaid, len(event.text))
            self._unsaid -= shown
            yield from self._say("text", event.text[shown:], () if shown else event.logprobs)
        elif isinstance(event, ToolCallStart):
            yield from self._start("call", event.id, event.name)
        elif isinstance(event, ToolCallArguments):
            yield from self._grow(event.json)
        elif isinstance(event, ToolCallEnd):
            yield from self._end_call(event)
        elif isinstance(event, Malformed):
            if event.index is not None:
                self._unsaid = event.length
                yield from self._close(complete=False)
        elif isinstance(event, Finished):
            yield from self._close(complete=event.reason != "length")

    def _say(self, kind: Kind, text: str, logprobs: Logprobs) -> Iterator[Step]:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            yield from self._start(kind)
        yield from self._grow(text, logprobs)

    def _start(self, kind: Kind, id: str = "", name: str = "") -> Iterator[Step]:
        yield from self._close(complete=True)
        self._open = Block(len(self.done), kind, id, name)
        yield Opened(self._open)

    def _grow(self, piece: str, logprobs: Logprobs = ()) -> Iterator[Step]:
        if self._open is not None and piece:
            self._open.add(piece)
            self._open.logprobs += logprobs
            yield Grew(self._open, piece, logprobs)

    def _end_call(self, event: ToolCallEnd) -> Iterator[Step]:
        if self._open is not None and not self._open.text:
            yield from self._grow(json.dumps(event.arguments, ensure_ascii=False))
        yield from self._close(complete=True)

    def _close(self, complete: bool) -> Iterator[Step]:
        if self._open is not None:
            block, self._open = self._open, None
            block.complete = complete
            self.done.append(block)
            yield Closed(block)


def whole_members(text: str) -> dict[str, Any]:
    """The members of the JSON object that `text` is, or is the beginning of; a member that is cut is left out."""
    decoder = json.JSONDecoder()
    members: dict[str, Any] = {}
    at = _after(text, 0, "{")
    while at is not None:
        try:
            name, end = decoder.raw_decode(text, at)
            value_at = _after(text, end, ":")
            if value_at is None or not isinstance(name, str):
                break
            value, end = decoder.raw_decode(text, value_at)
        except (ValueError, RecursionError):
            break
        members[name] = value
        at = _after(text, end, ",")
    return members


def _after(text: str, at: int, mark: str) -> int | None:
    """Where the next value begins, if `mark` comes next; None if not."""
    at = _spaces_end(text, at)
    return _spaces_end(text, at + 1) if text.startswith(mark, at) else None


def _spaces_end(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
