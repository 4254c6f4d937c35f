"""`/v1/sessions`: conversations by name, to fork, export, import and forget. See pinned.py for what a name is worth.

A conversation gets its name by the field `session_id` of a request in any protocol, and clients go on sending all of
it with each request, so that they need no other change.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from mlx_qwen35.errors import SessionError
from mlx_qwen35.server.body import typed
from mlx_qwen35.server.openai_errors import openai_error
from mlx_qwen35.server.pinned import Entry, NameTaken
from mlx_qwen35.server.protocol import Call, Download, Json, Lookup, Refused, SavedFile, Served, Upload

# Names stand in paths of URLs, and never in paths of files.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAME_RULE = "it should be 1 to 64 letters, digits, and _.-, and begin with one of the former"


class ForkBody(msgspec.Struct):
    """POST /v1/sessions/{id}/fork"""

    session_id: str | None = None  # of the fork; a new one by default


def session_name(name: str | None) -> str | None:
    """The field `session_id` of a body. Raises Refused."""
    if name is not None and not NAME.fullmatch(name):
        raise Refused(400, f"session_id is {name!r:.80}; {NAME_RULE}.", param="session_id")
    return name


def endpoints(served: Served) -> list[Lookup | Download | Upload]:
    """Those of the extension."""
    sessions = served.sessions

    def listing(_: Call) -> Json:
        entries = sessions.listing()
        return {
            "object": "list",
            "data": [_told(entry) for entry in entries],
            "limit_bytes": sessions.byte_budget,
        }

    def one(call: Call) -> Json:
        name = _named(call)
        (entry,) = [entry for entry in sessions.listing() if entry.name == name] or [None]
        if entry is None:
            raise _unknown(name)
        return _told(entry) | {"conversation": sessions.messages(name)}

    def fork(call: Call) -> Json:
        new = session_name(typed(call.body, ForkBody).session_id) or f"session-{secrets.token_hex(12)}"
        name = _named(call)
        with _Refusing(name):
            sessions.fork(name, new)
        return {"id": new, "object": "session", "forked_from": name}

    def drop(call: Call) -> Json:
        name = _named(call)
        with _Refusing(name):
            sessions.drop(name)
        return {"id": name, "object": "session", "deleted": True}

    def export(call: Call) -> SavedFile:
        name = _named(call)
        folder = tempfile.TemporaryDirectory(prefix="mlx-qwen35-")
        path = Path(folder.name) / "session"
        with _Refusing(name, path):
            sessions.save(name, path)
        return SavedFile(path, folder.cleanup)

    def take_in(call: Call, path: Path) -> Json:
        name = _named(call)
        with _Refusing(name, path):
            sessions.load(name, path)
        return one(call)

    path = "/v1/sessions"
    return [
        Lookup(path, listing, openai_error, "The sessions, the one used last first."),
        Lookup(f"{path}/{{id}}", one, openai_error, "A session, and what was said in it."),
        Lookup(f"{path}/{{id}}", drop, openai_error, "Forget a session.", method="DELETE"),
        Lookup(f"{path}/{{id}}/fork", fork, openai_error, "Another one with the same past.", ForkBody, "POST"),
        Download(f"{path}/{{id}}/export", export, openai_error, "A session as a file."),
        Upload(f"{path}/{{id}}/import", take_in, openai_error, "A session from such a file, under a new name."),
    ]


def _named(call: Call) -> str:
    """The session that the address of a request names. Raises Refused."""
    name = call.path["id"]
    if not NAME.fullmatch(name):
        raise Refused(400, f"The session is called {name!r:.80}; {NAME_RULE}.", param="id")
    return name


class _Refusing:
    """Says what went wrong with a session by its name, and nothing of paths."""

    def __init__(self, name: str, path: Path | None = None) -> None:
        self._name, self._path = name, str(path or "")

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, KeyError):
            raise _unknown(self._name) from None
        if isinstance(error, SessionError):
            text = str(error).replace(self._path, "The file") if self._path else str(error)
            raise Refused(409 if isinstance(error, NameTaken) else 400, text) from None


def _unknown(name: str) -> Refused:
    return Refused(404, f"There is no session {name!r:.80} (they live in memory, until the server ends).", param="id")


def _told(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "session",
        "created": int(entry.created),
        "last_used": int(entry.used),
        "messages": entry.messages,
        "tokens": entry.tokens,
        "kept_tokens": entry.kept,
        "kept_bytes": entry.nbytes,
    }
