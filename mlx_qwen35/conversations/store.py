"""Saved conversations: one file each, in a folder that only its owner can read. Knows no terminal and no page.

Two processes at once: every change is made under a lock of the folder, and `save` also checks that the messages on
disk are the revision it goes on from. If not, it changes nothing and raises ChangedElsewhere, so that no answer is
lost on either side; who calls it keeps the conversation as one of its own. Reading takes no lock: files are replaced
whole. Titles are text inside the files; names of files are made here and never come from anybody.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_qwen35.chat.messages import normalise_messages
from mlx_qwen35.conversations.conversation import Conversation, clean_title, reason
from mlx_qwen35.conversations.efforts import still_said
from mlx_qwen35.conversations.index import Summary, encoded, read_summary
from mlx_qwen35.errors import UserError
from mlx_qwen35.hub.cache import locked, write_atomically
from mlx_qwen35.hub.catalog import state_folder

MAX_BYTES = 32 << 20  # of one conversation
MAX_CHATS = 10_000
LOCK_SECONDS = 5.0
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")


class ChangedElsewhere(UserError):
    """The conversation on disk is not the one that was opened."""


@dataclass(frozen=True)
class Broken:
    """A file that cannot be used. why: the rest of a sentence that begins with the name"""

    name: str
    why: str


@dataclass(frozen=True)
class Listing:
    """Newest first; what is broken is named beside the rest and hides none of it."""

    chats: tuple[Summary, ...]
    broken: tuple[Broken, ...] = ()


def conversations_folder() -> Path:
    """Where conversations are kept."""
    return state_folder() / "conversations"


class Store:
    """All methods raise UserError, one line, for what cannot be done; the conversations given to them stay as they are.

    May be used by several threads.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or conversations_folder()

    def listing(self) -> Listing:
        """Everything that is kept. Reads the first line of each file; a missing folder is an empty one."""
        chats, broken = [], []
        for name in self._names():
            path = self.folder / name
            try:
                if not _ID.fullmatch(path.stem):
                    raise UserError("was not put here by this program; import it to use it")
                if path.is_symlink() or not path.is_file():
                    raise UserError("is not a file")
                chats.append(read_summary(path))
            except (UserError, OSError) as error:
                if path.exists():  # else it was deleted since
                    broken.append(Broken(name, str(error)))
        return Listing(tuple(sorted(chats, key=lambda s: (s.changed, s.id), reverse=True)), tuple(broken))

    def open(self, id: str) -> tuple[Summary, Conversation]:
        """A conversation with what `save` needs to go on with it."""
        path = self._path(id)
        if not path.is_file():
            raise UserError("That chat is not there any more: it was deleted.")
        # The summary first: should the file be replaced in between, `save` notices.
        summary = self._summary(path)
        return summary, Conversation.load(path, MAX_BYTES)

    def create(self, conversation: Conversation, model: str, branch_of: str = "") -> Summary:
        """Keep a new conversation; one without a title is called by its first question."""
        with self._changing():
            if len(self._names()) >= MAX_CHATS:
                raise UserError(f"{MAX_CHATS:,} chats are kept already; delete some first.")
            now = time.time()
            id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(4)}"
            title = clean_title(conversation.title) or title_of(conversation)
            return self._write(Summary(id, title, model, now, now, branch_of=branch_of), conversation)

    def save(self, opened: Summary, conversation: Conversation, model: str) -> Summary:
        """Replace the messages and settings of `opened`; its title stays. Raises ChangedElsewhere."""
        with self._changing():
            path = self._path(opened.id)
            if not path.is_file():
                raise ChangedElsewhere("This chat was deleted meanwhile.")
            try:
                kept = read_summary(path)
            except UserError as error:
                raise ChangedElsewhere(f"The file of this chat {error}.") from None
            if kept.revision != opened.revision:
                raise ChangedElsewhere("This chat went on in another window meanwhile.")
            changed = max(time.time(), kept.changed)
            now = replace(kept, model=model, changed=changed, revision=kept.revision + 1)
            return self._write(now, conversation)

    def rename(self, id: str, title: str) -> Summary:
        """Give another title. It does not count as a change of the messages: who is chatting goes on undisturbed."""
        if not (title := clean_title(title)):
            raise UserError("A chat needs a title that is not empty.")
        with self._changing():
            summary, conversation = self.open(id)
            return self._write(replace(summary, title=title), conversation)

    def delete(self, id: str) -> None:
        """Remove it, and what a write that was cut off may have left of it."""
        with self._changing():
            self._path(id).unlink(missing_ok=True)
            for left in self.folder.glob(f".{id}.json.*"):
                left.unlink(missing_ok=True)

    def branch(self, id: str, messages: int) -> Summary:
        """A copy that ends after so many messages."""
        summary, conversation = self.open(id)
        return self.create(branched(conversation, messages, summary.title), summary.model, summary.id)

    def import_file(self, path: Path, model: str = "") -> Summary:
        """Keep what an exported file holds, as a new conversation. The file is not trusted."""
        return self.create(Conversation.load(path, MAX_BYTES), model)

    def _summary(self, path: Path) -> Summary:
        try:
            return read_summary(path)
        except UserError as error:
            raise UserError(f"{path} {error}.") from None

    def _write(self, summary: Summary, conversation: Conversation) -> Summary:
        summary = replace(summary, messages=len(conversation.messages))
        content = encoded(summary, conversation)
        if len(content) > MAX_BYTES:
            raise UserError(f"The chat has {len(content):,} bytes; at most {MAX_BYTES:,} are kept.")
        write_atomically(self._path(summary.id), content, 0o600)
        return summary

    def _path(self, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise UserError(f"There is no chat {id[:40]!r}.")
        return self.folder / f"{id}.json"

    def _names(self) -> list[str]:
        """Names of files, the newest first as far as names tell; no more than may be there."""
        try:
            names = [entry.name for entry in os.scandir(self.folder)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"Cannot read {self.folder}: {reason(error)}.") from None
        return sorted((n for n in names if n.endswith(".json") and n[0] != "."), reverse=True)[:MAX_CHATS]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone in the folder, which is there and private; what the disk refuses becomes one line."""
        give_up = time.monotonic() + LOCK_SECONDS

        def pause(seconds: float) -> None:
            if time.monotonic() > give_up:
                raise UserError(f"Another program has been writing to {self.folder} for {LOCK_SECONDS:g} s. Try again.")
            time.sleep(seconds)

        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.folder.stat().st_mode & 0o077:
                self.folder.chmod(0o700)
            with locked(self.folder / ".lock", pause, waiting=lambda: None):
                yield
        except OSError as error:
            raise UserError(f"Cannot write to {self.folder}: {reason(error)}.") from None


def branched(conversation: Conversation, messages: int, title: str) -> Conversation:
    """A copy of the first messages, called after `title`."""
    if not 0 <= messages <= len(conversation.messages):
        raise UserError(f"The chat has {len(conversation.messages)} messages, so it cannot branch after {messages}.")
    name = title if title.endswith(" (branch)") else f"{clean_title(title)[:180]} (branch)"
    said = copy.deepcopy(conversation.messages[:messages])
    return Conversation(conversation.settings, said, name, still_said(conversation.efforts, said))


def title_of(conversation: Conversation) -> str:
    """The beginning of the first question."""
    messages = normalise_messages(conversation.messages) if conversation.messages else []
    question = next((m["content"] for m in messages if m["role"] == "user" and m["content"].strip()), "")
    title = clean_title(question)
    return (title if len(title) <= 60 else title[:59].rstrip() + "…") or "untitled"
