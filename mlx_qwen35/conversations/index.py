"""The first line of a kept conversation's file: enough for a list, so that listing reads no messages.

The whole file is one JSON object, the same that `Conversation.save` writes, with `kept` besides: any kept file can be
copied away and loaded by its name. Its line break after the first keys is what makes the list cheap.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen35.chat.json_text import parse_json
from mlx_qwen35.conversations.conversation import FORMAT, MAX_TITLE, VERSION, Conversation, clean_title, reason
from mlx_qwen35.errors import UserError

MAX_LINE_BYTES = 1 << 14
MAX_MODEL = 400  # characters
_END_OF_TIME = 250_000_000_000  # seconds; what comes later has no date


@dataclass(frozen=True)
class Summary:
    """What a list says of a conversation.

    created, changed: seconds since 1970   messages: how many   revision: one more with each change of the messages
    branch_of: id of the conversation it was copied from, or ""
    """

    id: str
    title: str
    model: str
    created: float
    changed: float
    messages: int = 0
    revision: int = 1
    branch_of: str = ""


def encoded(summary: Summary, conversation: Conversation) -> bytes:
    """The content of a file."""
    rest = json.dumps(conversation.body(summary.model), indent=1)[1:].encode() + b"\n"
    kept = {
        "model": summary.model[:MAX_MODEL],
        "created": summary.created,
        "changed": summary.changed,
        "messages": summary.messages,
        "revision": summary.revision,
        "branch_of": summary.branch_of,
        "rest_bytes": len(rest),
    }
    first = json.dumps({"format": FORMAT, "version": VERSION, "title": summary.title, "kept": kept})
    return first[:-1].encode() + b",\n" + rest


def read_summary(path: Path) -> Summary:
    """What the file's first line says. Raises UserError, one line."""
    try:
        # The caller has seen that this is an ordinary file.
        with open(path, "rb") as file:
            line = file.readline(MAX_LINE_BYTES)
            size = file.seek(0, 2)
    except OSError as error:
        raise UserError(f"cannot be read: {reason(error)}") from None
    try:
        if not line.endswith(b",\n"):
            raise ValueError("the first line is cut off, or of another program")
        first = parse_json(line[:-2].decode() + "}")
        if not isinstance(first, dict) or first.get("format") != FORMAT:
            raise ValueError("it is not a saved chat")
        if first.get("version") != VERSION:
            raise ValueError(f"it has version {first.get('version')!r:.40}, and this program reads version {VERSION}")
        summary, rest_bytes = _checked(path.stem, first.get("title"), first.get("kept"))
    except UnicodeDecodeError:
        raise UserError("is damaged: it is not UTF-8 text") from None
    except ValueError as error:
        raise UserError(f"is damaged: {error}") from None
    if size - len(line) != rest_bytes:
        raise UserError(
            f"is damaged: {size - len(line):,} bytes follow its first line, and {rest_bytes:,} were written"
        )
    return summary


def _checked(id: str, title: Any, kept: Any) -> tuple[Summary, int]:
    if not isinstance(title, str) or len(title) > MAX_TITLE or title != clean_title(title):
        raise ValueError("it has no sound title")
    texts, times, counts = ("model", "branch_of"), ("created", "changed"), ("messages", "revision", "rest_bytes")
    if not isinstance(kept, dict) or sorted(kept) != sorted((*texts, *times, *counts)):
        raise ValueError("its first line does not hold what it should")
    for name, value in kept.items():
        if name in texts:
            sound = isinstance(value, str)
        elif name in times:
            sound = type(value) in (int, float) and 0 <= value < _END_OF_TIME
        else:
            sound = type(value) is int and 0 <= value < 1 << 53
        if not sound:
            raise ValueError(f"{name} is {str(value)[:40]!r}")
    values = dict(kept)
    rest_bytes = values.pop("rest_bytes")
    return Summary(id, title, **values), rest_bytes
