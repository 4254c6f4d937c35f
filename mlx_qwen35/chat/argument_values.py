"""One tool-call argument while it is being written: text pieces in, pieces of its JSON text out."""

from __future__ import annotations

import json
from typing import Any

from mlx_qwen35.chat.schema_types import ParameterType

NUMBER_CHARS = frozenset("0123456789+-.eE \t\r\n")
LONGEST_WORD = len("false")


class ArgumentValue:
    """Text streams as a JSON string; anything else waits for its end, since only then its type is certain.

    Where the schema allows text beside other types, text streams from the moment it can be nothing else.
    """

    def __init__(self, kind: ParameterType) -> None:
        self._type = kind
        self._pieces: list[str] = []
        self._first = ""  # first character that is no space
        self._held = 0  # characters since then, while undecided
        self._streams = kind.is_text
        self._opened = False

    def add(self, text: str) -> str:
        """Take a piece of the value; returns the JSON text that is now certain."""
        if not text:
            return ""
        self._pieces.append(text)
        if not self._streams:
            if self._may_be_other(text):
                return ""
            self._streams = True
            text = "".join(self._pieces)
        return self._opening() + _escaped(text)

    def finish(self) -> tuple[str, Any]:
        """(the rest of the JSON text, the value)."""
        text = "".join(self._pieces)
        if self._streams:
            return self._opening() + '"', text
        value = self._type.decode(text)
        return json.dumps(value, ensure_ascii=False), value

    def _opening(self) -> str:
        if self._opened:
            return ""
        self._opened = True
        return '"'

    def _may_be_other(self, text: str) -> bool:
        """Whether the value so far, which ends with `text`, may still be something else than text."""
        if not self._type.may_be_text:
            return True
        if not self._first:
            text = text.lstrip()
            if not text:
                return True
            self._first = text[0]
        self._held += len(text)
        if self._first in "{[":
            return True
        if self._first in "tTfFnN":
            return self._held <= LONGEST_WORD or not text.strip()
        return self._first in NUMBER_CHARS and NUMBER_CHARS.issuperset(text)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
