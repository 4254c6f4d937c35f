"""Reads the family's tool calls out of the answer's content while it arrives, and passes the rest on.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

A value is raw text and may itself hold `</parameter>`. It ends only at a `</parameter>` on a line of its own that the
next line continues with `<parameter=` or `</function>`; so whatever the template prints is read back exactly, except
for a value with those two lines in it. Every character is looked at a bounded number of times, and no regular
expression is involved. Knows nothing of think blocks; that is reasoning.py.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen35.chat.argument_values import ArgumentValue
from mlx_qwen35.chat.events import (
    Content,
    Malformed,
    ParsedEvent,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    joined,
)
from mlx_qwen35.chat.schema_types import ParameterType, parameter_types
from mlx_qwen35.chat.tag_text import SPACE, Edges, after_gap, held_back, tag_at

CALL, END_CALL = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
AFTER_VALUE = (PARAMETER, END_FUNCTION)
MAX_NAME = 256


@dataclass
class _Call:
    """The call being read, from its name on."""

    index: int
    id: str
    name: str
    types: Mapping[str, ParameterType]
    arguments: dict[str, Any] = field(default_factory=dict)


class ToolCallParser:
    """Content pieces in, events out: Content, ToolCallStart, ToolCallArguments, ToolCallEnd, Malformed.

    Without tools there are no calls, and tags are plain text. A tool that is not in `tools` is reported like any
    other: whoever runs the tools refuses it. Text that looks like a call and is none is reported whole, as Malformed
    followed by Content; when its ToolCallStart was already reported, Malformed carries its index. Newlines at the
    start of the content, before a call and after one are the format's and are dropped.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        self._types = parameter_types(tools)
        self.ended_calls = 0
        self._next_index = 0
        self._buffer = ""
        self._at = 0
        self._read: Callable[[], bool] = self._read_text if tools else self._read_plain
        self._events: list[ParsedEvent] = []
        self._edges = Edges()
        self._raw: list[str] = []  # all text of the call being read
        self._name = ""
        self._call: _Call | None = None
        self._value = ArgumentValue(ParameterType())
        self._key = ""
        self._drop_newline = False  # the newline after <parameter=KEY> is still to come

    def feed(self, text: str) -> list[ParsedEvent]:
        """The events that this piece makes certain."""
        self._buffer = self._buffer[self._at :] + text
        self._at = 0
        while self._read():
            pass
        return self._taken()

    def finish(self) -> list[ParsedEvent]:
        """What was held back, when no more text comes. A call that has not ended is malformed."""
        if self._read in (self._read_text, self._read_plain):
            self._text(self._buffer[self._at :])
        elif self._read != self._read_end:  # there, at most half an end tag is left, of a call that was read
            self._take(len(self._buffer) - self._at)
            self._malformed("the answer ended inside a tool call")
        if newlines := self._edges.rest():
            self._events.append(Content(newlines))
        self._buffer, self._at = "", 0
        return self._taken()

    def _taken(self) -> list[ParsedEvent]:
        events, self._events = joined(self._events), []
        return events

    # Text outside calls.

    def _read_plain(self) -> bool:
        self._text(self._buffer[self._at :])
        self._at = len(self._buffer)
        return False

    def _read_text(self) -> bool:
        at = self._buffer.find(CALL, self._at)
        end = at if at >= 0 else len(self._buffer) - held_back(self._buffer, self._at, CALL)
        self._text(self._buffer[self._at : end])
        self._at = end
        if at < 0:
            return False
        self._raw = []
        self._take(len(CALL))
        self._read = self._read_function
        return True

    def _text(self, text: str) -> None:
        if inner := self._edges.inner(text):
            self._events.append(Content(inner))

    def _malformed(self, reason: str) -> bool:
        """Give the call up: all its text is content, and so is what follows."""
        raw = "".join(self._raw)
        self._events.append(Malformed(reason, self._call.index if self._call else None, len(raw)))
        self._text(raw)
        self._raw, self._call = [], None
        self._read = self._read_text
        return True

    # Inside a call. Each step reads one thing, and returns False when it needs more text.

    def _take(self, count: int) -> None:
        self._raw.append(self._buffer[self._at : self._at + count])
        self._at += count

    def _skip_space(self) -> None:
        end = self._at
        while end < len(self._buffer) and self._buffer[end] in SPACE:
            end += 1
        self._take(end - self._at)

    def _next_tag(self, *tags: str) -> str | None:
        """The tag that comes next, taken; "" when more text is needed; None when something else comes."""
        self._skip_space()
        if self._at == len(self._buffer):
            return ""
        tag = tag_at(self._buffer, self._at, tags)
        if tag:
            self._take(len(tag))
        return tag

    def _read_function(self) -> bool:
        tag = self._next_tag(FUNCTION)
        if tag is None:
            return self._malformed(f"no {FUNCTION}NAME> after {CALL}")
        self._name, self._read = "", self._read_function_name if tag else self._read_function
        return bool(tag)

    def _read_name(self) -> bool | None:
        """Whether the name up to `>` is complete in `self._name`; None when it cannot be a name."""
        limit = self._at + MAX_NAME + 1 - len(self._name)
        end = self._at
        while end < min(limit, len(self._buffer)) and self._buffer[end] not in "><\n":
            end += 1
        self._name += self._buffer[self._at : end]
        self._take(end - self._at)
        if self._at == len(self._buffer) and end < limit:
            return False
        if end == limit or self._buffer[end] != ">" or not self._name.strip():
            return None
        self._take(1)
        return True

    def _read_function_name(self) -> bool:
        complete = self._read_name()
        if complete is None:
            return self._malformed("a tool call without a readable function name")
        if complete:
            name = self._name.strip()
            self._call = _Call(self._next_index, f"call_{uuid.uuid4().hex[:24]}", name, self._types.get(name, {}))
            self._next_index += 1
            self._edges = Edges()
            self._events.append(ToolCallStart(self._call.index, self._call.id, name))
            self._read = self._read_parameter
        return complete

    def _read_parameter(self) -> bool:
        tag = self._next_tag(PARAMETER, END_FUNCTION)
        if tag is None:
            return self._malformed(f"neither {PARAMETER}KEY> nor {END_FUNCTION} where one was expected")
        if tag == END_FUNCTION:
            self._end_function()
        elif tag == PARAMETER:
            self._name, self._read = "", self._read_key
        return bool(tag)

    def _read_key(self) -> bool:
        complete = self._read_name()
        if complete is None:
            return self._malformed("a parameter without a readable name")
        if complete:
            assert self._call is not None
            self._key = self._name
            self._value = ArgumentValue(self._call.types.get(self._key, ParameterType()))
            before = ", " if self._call.arguments else "{"
            self._argument_json(f"{before}{json.dumps(self._key, ensure_ascii=False)}: ")
            self._read = self._read_value_start
        return complete

    def _read_value_start(self) -> bool:
        if self._at == len(self._buffer):
            return False
        self._drop_newline = self._buffer[self._at] == "\n"
        self._read = self._read_lines if self._drop_newline else self._read_inline
        return True

    def _read_lines(self) -> bool:
        """A value on lines of its own, as the template prints it. The newline in front is still in the buffer: when
        the value is empty, a model may write it once only."""
        return self._read_value("\n" + END_PARAMETER, lambda at: tag_at(self._buffer, at, _NEXT_LINES))

    def _read_inline(self) -> bool:
        """`<parameter=KEY>VALUE</parameter>`, which the template never prints but models do."""
        return self._read_value(END_PARAMETER, lambda at: after_gap(self._buffer, at, AFTER_VALUE))

    def _read_value(self, end_tag: str, next_tag: Callable[[int], str | None]) -> bool:
        at = self._buffer.find(end_tag, self._at)
        end = at if at >= 0 else len(self._buffer) - held_back(self._buffer, self._at, end_tag)
        self._value_text(end - self._at)
        if at < 0:
            return False
        follows = next_tag(at + len(end_tag))
        if follows is None:  # the tag belongs to the value
            self._value_text(1)
        elif follows:
            self._take(len(end_tag))
            assert self._call is not None
            rest, self._call.arguments[self._key] = self._value.finish()
            self._argument_json(rest)
            self._read = self._read_parameter
        return follows != ""

    def _value_text(self, count: int) -> None:
        text = self._buffer[self._at : self._at + count]
        self._take(count)
        if self._drop_newline and text:
            text = text[1:]
            self._drop_newline = False
        self._argument_json(self._value.add(text))

    def _argument_json(self, text: str) -> None:
        assert self._call is not None
        if text:
            self._events.append(ToolCallArguments(self._call.index, text))

    def _end_function(self) -> None:
        call = self._call
        assert call is not None
        self._argument_json("}" if call.arguments else "{}")
        self._events.append(ToolCallEnd(call.index, call.id, call.name, call.arguments))
        self.ended_calls += 1
        self._call, self._raw = None, []
        self._read = self._read_end

    def _read_end(self) -> bool:
        tag = self._next_tag(END_CALL, FUNCTION)
        if tag is None:
            self._raw = [text for text in self._raw if text.strip(SPACE)]
            return self._malformed(f"text between {END_FUNCTION} and {END_CALL}")
        if tag == FUNCTION:
            self._raw = [FUNCTION]
            self._name, self._read = "", self._read_function_name
        elif tag == END_CALL:
            self._raw, self._read = [], self._read_text
        return bool(tag)


_NEXT_LINES = tuple("\n" + tag for tag in AFTER_VALUE)
