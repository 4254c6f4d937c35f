"""A conversation: its title, messages and settings, and the file it can be kept in. No terminal, no page, no model."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_qwen35.chat.json_text import parse_json
from mlx_qwen35.chat.messages import normalise_messages
from mlx_qwen35.conversations.efforts import Efforts, as_list, checked_efforts, still_said
from mlx_qwen35.conversations.settings import Settings, checked_settings
from mlx_qwen35.errors import RequestError, UserError
from mlx_qwen35.hub.cache import write_atomically
from mlx_qwen35.requests import ChatRequest

FORMAT, VERSION = "mlx-qwen35 chat", 1
MAX_FILE_BYTES = 256 << 20
MAX_TITLE = 200  # characters

Message = dict[str, Any]


@dataclass
class Conversation:
    """Messages without the system prompt, which is a setting.

    title: "" where nobody gave one   efforts: of what was said, as far as anybody measured it
    """

    settings: Settings = field(default_factory=Settings)
    messages: list[Message] = field(default_factory=list)
    title: str = ""
    efforts: Efforts = field(default_factory=dict)

    def change(self, **changes: Any) -> None:
        """Change settings by name."""
        self.settings = replace(self.settings, **changes)

    def asking(self, question: str) -> list[Message]:
        """The messages of a request that asks `question` next."""
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        return [*system, *self.messages, {"role": "user", "content": question}]

    def request(self, question: str, tools: Sequence[Mapping[str, Any]] | None = None) -> ChatRequest:
        """The request that asks `question` next, as the settings say. tools: OpenAI form"""
        s = self.settings
        return ChatRequest(
            self.asking(question),
            tools,
            enable_thinking=s.thinking,
            preset=s.preset,
            sampling=s.sampling,
            max_tokens=s.max_tokens,
            stop=s.stop,
            seed=s.seed,
            **s.form,
        )

    def add(self, question: str, *said: Message) -> None:
        """Keep a question with its answer, whole or stopped half-way, and what tools said on the way."""
        # What stood here before, and was taken back, had efforts of its own.
        self.efforts = still_said(self.efforts, self.messages)
        self.messages += [{"role": "user", "content": question}, *said]

    def body(self, model: str) -> dict[str, Any]:
        """What a file holds of it, apart from the format's name and the title."""
        settings = {**asdict(self.settings), "sampling": dict(self.settings.sampling)}
        if not settings["form"]:
            del settings["form"]  # earlier releases read the file then
        efforts = as_list(still_said(self.efforts, self.messages))
        measured = {"efforts": efforts} if efforts else {}
        return {"model": model, "settings": settings, "messages": self.messages, **measured}

    def save(self, path: Path, model: str) -> None:
        """Write everything as JSON: all of it or nothing. Raises UserError."""
        if path.exists() and not _is_ours(path):
            raise UserError(f"{path} exists and is not a saved chat. Choose another name.")
        write_new(path, self.as_json(model).encode())

    def as_json(self, model: str) -> str:
        """What a file holds, whole."""
        title = {"title": self.title} if self.title else {}
        return json.dumps({"format": FORMAT, "version": VERSION, **title, **self.body(model)}, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path, limit_bytes: int = MAX_FILE_BYTES) -> Conversation:
        """Read what `save` wrote, or a file of the store. Raises UserError, one line, for anything else."""
        saved = _read(path, limit_bytes)
        if saved.get("format") != FORMAT:
            raise UserError(f"{path} is not a saved chat (its format is not {FORMAT!r}). /save writes one.")
        if saved.get("version") != VERSION:
            raise UserError(f"{path} has version {saved.get('version')!r:.40}; this program reads version {VERSION}.")
        try:
            title = saved.get("title", "")
            if not isinstance(title, str):
                raise RequestError("title is not text.")
            settings, messages = checked_settings(saved.get("settings")), _messages(saved.get("messages"))
            return cls(settings, messages, clean_title(title), checked_efforts(saved.get("efforts", [])))
        except RequestError as error:
            raise UserError(f"{path} is a damaged chat: {error}") from None


def clean_title(text: str) -> str:
    """A title on one line, of at most MAX_TITLE characters that a file can hold."""
    return " ".join(text[: 4 * MAX_TITLE].encode("utf-8", "replace").decode().split())[:MAX_TITLE].rstrip()


def write_new(path: Path, content: bytes) -> None:
    """Write a file that a person named, in a folder that exists. Raises UserError."""
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent}.")
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {reason(error)}.") from None


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """The content of an ordinary file of at most so many bytes. Raises UserError."""
    try:
        # A pipe or a device would block, or never end.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} is not a file.")
            if status.st_size > limit_bytes:
                raise UserError(f"{path} has {status.st_size:,} bytes; a saved chat has at most {limit_bytes:,}.")
            return file.read(limit_bytes)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is not a file.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"Cannot read {path}: {reason(error)}.") from None


def reason(error: OSError | ValueError) -> str:
    """Why, in lower case, to follow a colon."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list):
        raise RequestError("messages is not a list.")
    if not value:
        return []
    normalise_messages(value)  # the check that every request goes through; what is kept is the file's own form
    if any(message.get("role") in ("system", "developer") for message in value):
        raise RequestError("messages holds a system message; it belongs into settings.system.")
    return value


def _read(path: Path, limit_bytes: int = MAX_FILE_BYTES) -> dict[str, Any]:
    try:
        content = parse_json(read_bytes(path, limit_bytes).decode())
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text, so it is not a saved chat.") from None
    except ValueError as error:
        raise UserError(f"{path} is not a saved chat: not JSON ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a saved chat: a JSON {type(content).__name__}, not an object.")
    return content


def _is_ours(path: Path) -> bool:
    try:
        return _read(path).get("format") == FORMAT
    except UserError:
        return False
