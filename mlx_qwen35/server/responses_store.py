"""Responses that a later request may go on from, by id: in memory, bounded, the least recently used dropped first.

They live as long as the server. What a client wants to keep longer, it keeps itself (`"store": false`, as agents do).
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_RESPONSES = 1_000
MAX_CHARACTERS = 128 << 20  # of all conversations, as JSON; those that share their beginning count it each


@dataclass(frozen=True)
class Stored:
    """response: the object as it was answered   items: of its own input   said: the whole conversation with its answer,
    in the runtime's form, without instructions, which are of one request only"""

    response: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    said: Sequence[dict[str, Any]]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        size = len(json.dumps([self.response, list(self.items), list(self.said)]))
        object.__setattr__(self, "size", size)


class ResponseStore:
    """Any thread may call it."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_responses, self._max_characters = max_responses, max_characters
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._items: dict[str, Mapping[str, Any]] = {}  # of all that is stored, by their own ids
        self._size = 0
        self._lock = threading.Lock()

    def put(self, stored: Stored) -> None:
        """Keep a response; one that is larger than all there is room for is not kept."""
        if stored.size > self._max_characters:
            return
        with self._lock:
            self._drop(stored.response["id"])
            self._stored[stored.response["id"]] = stored
            self._items.update(_by_id(stored))
            self._size += stored.size
            while len(self._stored) > self._max_responses or self._size > self._max_characters:
                self._drop(next(iter(self._stored)))

    def get(self, name: str) -> Stored | None:
        with self._lock:
            if name in self._stored:
                self._stored.move_to_end(name)
            return self._stored.get(name)

    def item(self, name: str) -> Mapping[str, Any] | None:
        """An output item of any stored response."""
        with self._lock:
            return self._items.get(name)

    def drop(self, name: str) -> bool:
        """Whether there was one."""
        with self._lock:
            return self._drop(name)

    def _drop(self, name: str) -> bool:
        stored = self._stored.pop(name, None)
        if stored is None:
            return False
        self._size -= stored.size
        for item in _by_id(stored):
            self._items.pop(item, None)
        return True


def _by_id(stored: Stored) -> dict[str, Mapping[str, Any]]:
    return {item["id"]: item for item in stored.response["output"]}
