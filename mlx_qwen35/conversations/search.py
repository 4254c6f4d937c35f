"""Finding conversations by what was said in them. Reads files one after the other, newest first; keeps no index."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from mlx_qwen35.chat.messages import normalise_messages
from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.conversations.index import Summary
from mlx_qwen35.conversations.store import Broken, Store
from mlx_qwen35.errors import UserError

MAX_HITS, MAX_SECONDS = 50, 2.0
_AROUND = 40  # characters of an excerpt on each side


@dataclass(frozen=True)
class Hit:
    """excerpt: where the first word stands, on one line; "" where that is the title   message: its place, or None"""

    chat: Summary
    excerpt: str = ""
    message: int | None = None


@dataclass(frozen=True)
class Found:
    """complete: whether everything was looked through   broken: files that could not be"""

    hits: tuple[Hit, ...]
    complete: bool
    broken: tuple[Broken, ...] = ()


def search(store: Store, words: str, max_hits: int = MAX_HITS, seconds: float = MAX_SECONDS) -> Found:
    """Conversations in which every word stands, in the title or any message, in capitals or not. Newest first.

    Ends after so many hits, or with the file that is being read when the time is over.
    """
    wanted = words.casefold().split()
    listing, end = store.listing(), time.monotonic() + seconds
    hits: list[Hit] = []
    broken = [*listing.broken]
    for chat in listing.chats:
        if len(hits) >= max_hits or time.monotonic() > end:
            return Found(tuple(hits), False, tuple(broken))
        try:
            if hit := _hit(chat, wanted, store):
                hits.append(hit)
        except UserError as error:
            broken.append(Broken(f"{chat.id}.json", str(error)))
    return Found(tuple(hits), True, tuple(broken))


def _hit(chat: Summary, wanted: list[str], store: Store) -> Hit | None:
    title = chat.title.casefold()
    if all(word in title for word in wanted):
        return Hit(chat)
    texts = _texts(store.open(chat.id)[1])
    folded = [text.casefold() for text in texts]
    if not all(word in title or any(word in text for text in folded) for word in wanted):
        return None
    word = next(word for word in wanted if word not in title)
    place = next(i for i, text in enumerate(folded) if word in text)
    return Hit(chat, _excerpt(texts[place], word), place)


def _texts(conversation: Conversation) -> list[str]:
    """One of each message."""
    if not conversation.messages:
        return []
    texts = [message["content"] for message in normalise_messages(conversation.messages)]
    # A conversation without a question gets an empty one in front, for the templates.
    return texts[len(texts) - len(conversation.messages) :]


def _excerpt(text: str, word: str) -> str:
    found = re.search(re.escape(word), text, re.IGNORECASE)
    start = max(0, found.start() - _AROUND) if found else 0
    end = (found.end() if found else start) + _AROUND
    line = " ".join(text[start:end].split())
    return ("…" if start else "") + line + ("…" if end < len(text) else "")
