"""Conversations that clients gave a name, so that what was computed of them stays: bounded in number and in memory.

Everything is remembered anyway, until other texts need the room. A name keeps its conversation's place from those, not
from answers that run while memory itself runs out. All of them together keep at most half of the memory for what is
remembered: beyond that, the one that was used longest ago is kept as any other text is, and beyond MAX_SESSIONS names
or MAX_CHARACTERS of conversation it is forgotten.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_qwen35.errors import SessionError
from mlx_qwen35.runtime import ChatRequest, Runtime
from mlx_qwen35.session import Session
from mlx_qwen35.session_file import MAX_HEADER_BYTES

MAX_SESSIONS = 64
MAX_CHARACTERS = 128 << 20  # of all conversations, as JSON
SHARE = 2  # of the memory for what is remembered, one part in so many


class NameTaken(SessionError):
    """A new conversation was to get the name of another one."""


@dataclass
class Pinned:
    """A named conversation. created, used: seconds since 1970   characters: of it, as JSON"""

    session: Session
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)
    characters: int = 0


@dataclass(frozen=True)
class Entry:
    """What is told of one. tokens: of the conversation   kept: of these, in memory   nbytes: that they take there"""

    name: str
    created: float
    used: float
    messages: int
    tokens: int
    kept: int
    nbytes: int


class PinnedSessions:
    """Any thread may call it. Methods that find no such name raise KeyError."""

    def __init__(self, runtime: Runtime, most: int = MAX_SESSIONS, most_characters: int = MAX_CHARACTERS) -> None:
        self._runtime, self._most, self._most_characters = runtime, most, most_characters
        self._pinned: OrderedDict[str, Pinned] = OrderedDict()  # used longest ago first
        self._lock = threading.Lock()

    @property
    def byte_budget(self) -> int:
        """What all of them may keep in memory."""
        return self._runtime.prefixes.budget // SHARE

    @property
    def file_limit(self) -> int:
        """Bytes of a file that may be taken in: of what is computed, and of the conversation before it."""
        return self.byte_budget + MAX_HEADER_BYTES

    def begin(self, name: str) -> Session:
        """The conversation of that name, with nothing said if it is new: to be asked with its `hold`."""
        with self._lock:
            if name not in self._pinned:
                self._pinned[name] = Pinned(Session(self._runtime))
            session = self._touched(name).session
            self._forget_some()  # here too: of what is refused, nothing ever ends
            return session

    def ended(
        self, name: str, session: Session, request: ChatRequest, answer: dict[str, Any], ids: Sequence[int]
    ) -> None:
        """A turn of it came to its end."""
        messages = [*request.messages, answer]
        size = len(json.dumps(messages, default=str))
        session.follow(messages, request.tools, request.enable_thinking, ids)
        with self._lock:
            if name in self._pinned and self._pinned[name].session is session:
                self._pinned[name].characters = size
                self._touched(name)
        self._give_way()

    def fork(self, name: str, new: str) -> None:
        """Another conversation with the same past. Raises SessionError where `new` is taken."""
        with self._lock:
            self._require_free(new)
            pinned = self._touched(name)
            self._pinned[new] = Pinned(pinned.session.fork(), characters=pinned.characters)
        self._give_way()

    def save(self, name: str, path: Path) -> None:
        """Write it to a file, as `Session.save` does. Raises SessionError."""
        with self._lock:
            session = self._touched(name).session
        session.save(path)

    def load(self, name: str, path: Path) -> None:
        """Take in a file that need not be trusted: what is wrong with it is refused. Raises SessionError."""
        with self._lock:
            self._require_free(name)
        session = Session.load(self._runtime, path, trusted=False, limit_bytes=self.byte_budget)
        with self._lock:
            if name in self._pinned:
                session.close()
            self._require_free(name)
            self._pinned[name] = Pinned(session, characters=len(json.dumps(session.messages)))
        self._give_way()

    def drop(self, name: str) -> None:
        """Forget it."""
        with self._lock:
            self._pinned.pop(name).session.close()

    def messages(self, name: str) -> list[dict[str, Any]]:
        """What was said in it, in the runtime's form."""
        with self._lock:
            return self._pinned[name].session.messages

    def listing(self) -> list[Entry]:
        """All of them, the one used last first."""
        with self._lock:
            pinned = list(self._pinned.items())[::-1]
        held = self._runtime.prefixes.held([p.session.hold for _, p in pinned])
        return [
            Entry(name, p.created, p.used, len(p.session.messages), len(p.session.cached_ids), kept, nbytes)
            for (name, p), (kept, nbytes) in zip(pinned, held)
        ]

    def _touched(self, name: str) -> Pinned:
        self._pinned.move_to_end(name)
        self._pinned[name].used = time.time()
        return self._pinned[name]

    def _require_free(self, name: str) -> None:
        if name in self._pinned:
            raise NameTaken(f"There is a session {name!r} already.")

    def _give_way(self) -> None:
        """The ones used longest ago are forgotten beyond the bounds of number and length, and let go of memory."""
        with self._lock:
            self._forget_some()
            holds = [pinned.session.hold for pinned in self._pinned.values()]
        self._runtime.prefixes.keep_within(holds, self.byte_budget)

    def _forget_some(self) -> None:
        while len(self._pinned) > self._most or self._characters > self._most_characters:
            self._pinned.popitem(last=False)[1].session.close()

    @property
    def _characters(self) -> int:
        return sum(pinned.characters for pinned in self._pinned.values())
