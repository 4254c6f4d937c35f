"""Token ids under digests of what they stand for, bounded in bytes. Knows nothing of tokenizers or turns."""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence

ENTRY_BYTES = 256  # what an entry costs beside its ids, about


class RunningDigest:
    """A running digest of token ids: which ids stand before a piece."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=20)

    def add(self, ids: Sequence[int]) -> None:
        self._state.update(array("I", ids))

    def key(self, piece: str) -> bytes:
        """Names `piece` after the ids added so far."""
        return self._state.digest() + text_digest(piece)


class IdMemory:
    """Token ids under digests, least recently used dropped. Any thread may call it."""

    def __init__(self, max_bytes: int) -> None:
        self._entries: OrderedDict[bytes, array[int]] = OrderedDict()
        self._lock = threading.Lock()
        self._left = max_bytes

    def get(self, key: bytes) -> array[int] | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: bytes, ids: Sequence[int]) -> None:
        entry = array("I", ids)
        with self._lock:
            self._remove(key)
            self._entries[key] = entry
            self._left -= _cost(entry)
            while self._left < 0:
                self._remove(next(iter(self._entries)))

    def drop(self, key: bytes) -> None:
        with self._lock:
            self._remove(key)

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._left += _cost(entry)


def _cost(entry: array[int]) -> int:
    return ENTRY_BYTES + entry.itemsize * len(entry)


def text_digest(text: str) -> bytes:
    # A request may hold half of a surrogate pair, which UTF-8 proper cannot say.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).digest()
